//! Files: who may read them, what broken ones say, and that a command killed anywhere leaves a usable authority.

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering::SeqCst;

use tempfile::TempDir;

use super::*;
use crate::ca::rotation::Phase;

const NOW: Duration = Duration::from_secs(1_800_000_000);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn made() -> (TempDir, Directory) {
    let temporary = TempDir::new().unwrap();
    let directory = Directory::new(temporary.path().join("ca"));
    directory.init(&"td".parse().unwrap(), DAY, None, NOW).unwrap();
    (temporary, directory)
}

fn roots_told(directory: &Directory) -> Vec<CertificateDer<'static>> {
    let pem = fs::read(directory.path().join(BUNDLE)).unwrap();
    CertificateDer::pem_slice_iter(&pem).map(Result::unwrap).collect()
}

fn error_of(directory: &Directory) -> String {
    directory.load().err().map(|error| error.to_string()).unwrap_or_default()
}

#[test]
fn a_rotation_changes_what_signs_and_what_is_trusted() {
    let (_temporary, directory) = made();
    let first = directory.load().unwrap().generations[0].clone();
    assert!(directory.init(&"td".parse().unwrap(), DAY, None, NOW).unwrap_err().to_string().contains("already"));
    let later = NOW + 2 * DAY;

    directory.rotate(Step::Prepare, None, NOW, false).unwrap();
    let prepared = directory.load().unwrap();
    assert_eq!(prepared.generations[0].root, first.root, "the old one signs");
    let second = prepared.generations[1].clone();
    assert_eq!(prepared.authority.roots(), [first.root.clone(), second.root.clone()]);
    assert_eq!(roots_told(&directory).len(), 2);
    let early = directory.rotate(Step::Activate, None, NOW + DAY, false).unwrap_err();
    assert!(early.to_string().contains("too early: `activate` must wait 5 s more"), "{early}");
    assert_eq!(directory.load().unwrap().state.phase(), Phase::Prepared, "nothing changed");

    directory.rotate(Step::Activate, None, later, false).unwrap();
    let activated = directory.load().unwrap();
    assert_eq!(activated.generations[0].intermediate, second.intermediate, "the new one signs");
    assert_eq!(activated.authority.roots(), [second.root.clone(), first.root.clone()]);

    directory.rotate(Step::Finish, None, later + 2 * DAY, false).unwrap();
    assert_eq!(directory.load().unwrap().authority.roots(), std::slice::from_ref(&second.root));
    assert_eq!(roots_told(&directory), [second.root]);
    assert!(!directory.path().join("g1").exists(), "the old key is gone");
}

#[test]
fn a_new_intermediate_stands_under_the_same_root() {
    let (_temporary, directory) = made();
    let before = directory.load().unwrap();
    directory.rotate(Step::Intermediate, None, NOW, false).unwrap();
    let after = directory.load().unwrap();
    assert_eq!(after.authority.roots(), before.authority.roots());
    assert_ne!(after.generations[0].intermediate, before.generations[0].intermediate);
}

/// Only `intermediate` signs with a root that is in force: its key can lie in a safe, and comes back for that alone.
#[test]
fn a_roots_key_is_read_by_who_signs_with_it_and_can_be_kept_elsewhere() {
    let (temporary, directory) = made();
    let key = directory.path().join("g1/root-key.pem");
    let good = fs::read_to_string(&key).unwrap();
    let intermediate = || directory.rotate(Step::Intermediate, None, NOW, false).err().map(|error| error.to_string());
    // Nobody parses it before it is needed.
    fs::write(&key, "no key").unwrap();
    assert_eq!(error_of(&directory), "");
    assert!(intermediate().is_some_and(|error| error.contains("root-key.pem: no private key")));
    let other = CaCertificate::root(&"td".parse().unwrap(), NOW).unwrap();
    fs::write(&key, &*other.key.to_pem()).unwrap();
    assert!(intermediate().is_some_and(|error| error.contains("root-key.pem: the key is not that of")));

    // It is taken away.
    let safe = temporary.path().join("root-key.pem");
    fs::write(&safe, good).unwrap();
    fs::set_permissions(&safe, fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(&key).unwrap();
    let before = directory.load().unwrap().generations[0].clone();
    directory.repair().unwrap();
    assert!(
        intermediate().is_some_and(|error| error.contains("g1/root-key.pem is not here: give the root and its key"))
    );
    let given = || ImportedRoot::read(&directory.path().join("root.pem"), &safe).unwrap();
    directory.rotate(Step::Intermediate, Some(given()), NOW, false).unwrap();
    let after = directory.load().unwrap().generations[0].clone();
    assert!(after.root == before.root && after.intermediate != before.intermediate && after.number == 2);
    assert!(
        directory.path().join("g2/intermediate-key.pem").exists() && !directory.path().join("g2/root-key.pem").exists()
    );

    // What is not asked for is refused, not ignored.
    let foreign = ImportedRoot(other);
    let error = directory.rotate(Step::Intermediate, Some(foreign), NOW, false).unwrap_err().to_string();
    assert!(error.contains("the root given is not that of") && error.contains("g2/root.pem"), "{error}");
    for step in [Step::Activate, Step::Finish, Step::Cancel] {
        let error = directory.rotate(step, Some(given()), NOW, true).unwrap_err().to_string();
        assert!(error.contains("takes no root"), "{error}");
    }
    // A whole rotation without the old root's key, as before.
    directory.rotate(Step::Prepare, None, NOW, false).unwrap();
    directory.rotate(Step::Activate, None, NOW + 2 * DAY, false).unwrap();
    directory.rotate(Step::Finish, None, NOW + 4 * DAY, false).unwrap();
    assert_ne!(directory.load().unwrap().generations[0].root, before.root);
}

/// The same name and the same key, valid for longer: another certificate, so another root to rotate to. Neither is taken for the other.
#[test]
fn a_root_signed_anew_over_its_key_is_rotated_to_like_any_other() {
    let (temporary, directory) = made();
    let old = directory.load().unwrap().generations[0].clone();
    let (certificate, key) = (directory.path().join("g1/root.pem"), directory.path().join("g1/root-key.pem"));
    let given = |certificate: &Path| Some(ImportedRoot::read(certificate, &key).unwrap());
    let error = directory.rotate(Step::Prepare, given(&certificate), NOW, false).unwrap_err().to_string();
    assert!(error.contains("the root given is that of") && error.contains("g1/root.pem already"), "{error}");
    let longer = temporary.path().join("longer.pem");
    let anew = {
        let (_, parsed) = X509Certificate::from_der(&old.root).unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let name = parsed.subject().iter_common_name().next().unwrap().as_str().unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let end = Validity::of(&old.root).unwrap().not_after + 365 * DAY;
        params.not_after = (std::time::UNIX_EPOCH + end).into();
        let key = rcgen::KeyPair::from_pem(&fs::read_to_string(&key).unwrap()).unwrap();
        params.self_signed(&key).unwrap().der().clone()
    };
    fs::write(&longer, pem_of(std::slice::from_ref(&anew))).unwrap();
    let signs = |directory: &Directory| {
        let authority = directory.load().unwrap().authority;
        let key = heddle_identity::WorkloadKey::generate().unwrap();
        let id = "spiffe://td/ns/shop/sa/web".parse().unwrap();
        let request = crate::ca::request::SigningRequest::parse(&key.certificate_request(&id).unwrap()).unwrap();
        let chain = authority.sign_workload(&request, None, NOW).unwrap();
        // Whoever knows but one of the two trusts what is signed under either.
        for roots in [vec![old.root.clone()], vec![anew.clone()], vec![old.root.clone(), anew.clone()]] {
            heddle_identity::Credential::check(&id, key.clone(), chain.clone(), roots, None, NOW).unwrap();
        }
        authority.roots().to_vec()
    };
    directory.rotate(Step::Prepare, given(&longer), NOW, false).unwrap();
    assert_eq!(signs(&directory), [old.root.clone(), anew.clone()]);
    assert_eq!(roots_told(&directory), [old.root.clone(), anew.clone()]);
    directory.rotate(Step::Activate, None, NOW + 2 * DAY, false).unwrap();
    assert_eq!(signs(&directory), [anew.clone(), old.root.clone()]);
    directory.rotate(Step::Finish, None, NOW + 4 * DAY, false).unwrap();
    assert_eq!(signs(&directory), std::slice::from_ref(&anew));
    assert_eq!(roots_told(&directory), [anew]);
}

#[test]
fn an_imported_root_is_taken_with_its_own_key_only() {
    let temporary = TempDir::new().unwrap();
    let (_other, source) = made();
    let (certificate, key) = (source.path().join("g1/root.pem"), source.path().join("g1/root-key.pem"));
    let imported = ImportedRoot::read(&certificate, &key).unwrap();
    let directory = Directory::new(temporary.path().join("ca"));
    directory.init(&"td".parse().unwrap(), DAY, Some(imported), NOW).unwrap();
    assert_eq!(directory.load().unwrap().authority.roots(), source.load().unwrap().authority.roots());

    let wrong_key = ImportedRoot::read(&certificate, &source.path().join("g1/intermediate-key.pem"));
    let error = wrong_key.err().unwrap().to_string();
    assert!(error.contains("intermediate-key.pem: the key is not that of"), "{error}");
    let leaf = temporary.path().join("leaf.pem");
    let pair = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::default();
    fs::write(&leaf, params.self_signed(&pair).unwrap().pem()).unwrap();
    let leaf_key = temporary.path().join("leaf-key.pem");
    fs::write(&leaf_key, pair.serialize_pem()).unwrap();
    fs::set_permissions(&leaf_key, fs::Permissions::from_mode(0o600)).unwrap();
    let error = ImportedRoot::read(&leaf, &leaf_key).err().unwrap().to_string();
    assert!(error.contains("leaf.pem: not a CA certificate"), "{error}");
}

#[test]
fn secrets_that_others_can_read_are_refused_by_name() {
    let (_temporary, directory) = made();
    for name in ["g1/root-key.pem", "g1/intermediate-key.pem", "nodes.json", "state.json"] {
        let path = directory.path().join(name);
        for mode in [0o644, 0o640, 0o604, 0o660, 0o601] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = error_of(&directory);
            assert!(error.contains(name) && error.contains(&format!("mode {mode:04o}")), "{error}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        assert_eq!(error_of(&directory), "", "stricter is fine");
    }
}

/// Who may write into the directory, or say which directory it is, could put keys and nodes of his own there.
#[test]
fn a_directory_that_others_rule_is_refused_by_every_command() {
    let (temporary, directory) = made();
    let elsewhere = temporary.path().join("elsewhere");
    let link = temporary.path().join("link");
    std::os::unix::fs::symlink(directory.path(), &link).unwrap();
    fs::write(&elsewhere, "a file").unwrap();
    let commands = |directory: &Directory| {
        let out = temporary.path().join("token");
        let errors = [
            directory.load().err(),
            directory.repair().err(),
            directory.issue_token("a", NOW).err(),
            directory.issue_token_into("a", NOW, &out).err(),
            directory.revoke_token("a").err(),
            directory.rotate(Step::Prepare, None, NOW, true).err(),
            directory.init(&"td".parse().unwrap(), DAY, None, NOW).err(),
        ];
        assert!(!out.exists());
        errors.map(|error| error.map(|error| error.to_string()).unwrap_or_default())
    };
    let refused = |directory: &Directory, word: &str| {
        for (index, error) in commands(directory).into_iter().enumerate() {
            assert!(error.contains(word), "command {index}: {error:?} does not say {word:?}");
        }
    };
    let set = |mode: u32| fs::set_permissions(directory.path(), fs::Permissions::from_mode(mode)).unwrap();
    for mode in [0o777, 0o775, 0o757, 0o1777] {
        set(mode);
        refused(&directory, &format!("mode {mode:04o}: others than its owner may change what is in it; chmod go-w"));
    }
    set(0o755);
    refused(&Directory::new(&link), "link: a symbolic link: name the directory itself");
    refused(&Directory::new(&elsewhere), "elsewhere: not a directory");
    std::os::unix::fs::chown(directory.path(), Some(12345), None).expect("only root may give a directory away");
    refused(&directory, "ca belongs to user 12345");
    std::os::unix::fs::chown(directory.path(), Some(nix::unistd::geteuid().as_raw()), None).unwrap();
    // And the directory of a generation.
    let generation = directory.path().join("g1");
    fs::set_permissions(&generation, fs::Permissions::from_mode(0o770)).unwrap();
    assert!(error_of(&directory).contains("g1 has mode 0770: others than its owner may change"));
    fs::set_permissions(&generation, fs::Permissions::from_mode(0o700)).unwrap();
    fs::rename(&generation, temporary.path().join("g1")).unwrap();
    std::os::unix::fs::symlink(temporary.path().join("g1"), &generation).unwrap();
    assert!(error_of(&directory).contains("g1: a symbolic link"));
    fs::remove_file(&generation).unwrap();
    fs::rename(temporary.path().join("g1"), &generation).unwrap();
    assert_eq!(error_of(&directory), "", "the control");
    let lock = fs::metadata(directory.path().join(LOCK)).unwrap();
    assert_eq!(lock.permissions().mode() & 0o777, 0o600, "nobody else can hold it");
}

/// Wherever it ends, the file is whole, nobody else's to read, and there is no other.
#[test]
fn a_tokens_file_is_the_former_or_the_new_one_wherever_it_ends() {
    let mut ends = Vec::new();
    for n in 0.. {
        let (temporary, directory) = made();
        let place = temporary.path().join("out");
        fs::create_dir(&place).unwrap();
        let out = place.join("token");
        directory.issue_token_into("node-a", NOW, &out).unwrap();
        let read = || fs::read_to_string(&out).unwrap();
        let counts = |token: &str| directory.load().unwrap().nodes.by_token(token.trim_end()).is_some();
        let former = read();
        assert!(counts(&former) && former.len() == 65 && former.ends_with('\n'), "the control");
        directory.crash.store(n, SeqCst);
        let outcome = directory.issue_token_into("node-a", NOW, &out);
        directory.crash.store(usize::MAX, SeqCst);
        let (now, files) = (read(), fs::read_dir(&place).unwrap().count());
        assert_eq!((now == former, files), (outcome.is_err(), 1), "ended at {n}");
        assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o7777, 0o600);
        ends.push(counts(&now));
        if outcome.is_ok() {
            break;
        }
    }
    // But between the two renames, what the file says counts.
    assert_eq!(ends, [true, true, false, true]);
}

#[test]
fn a_token_that_cannot_be_written_leaves_the_former_one() {
    let (temporary, directory) = made();
    let former = directory.issue_token("node-a", NOW).unwrap();
    let (folder, link) = (temporary.path().join("folder"), temporary.path().join("link"));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "kept").unwrap();
    std::os::unix::fs::symlink(folder.join("file"), &link).unwrap();
    for (out, word) in [
        (temporary.path().join("nowhere/token"), "cannot write"),
        (folder.clone(), "is there and is no file"),
        (link.clone(), "is there and is no file"),
        ("/dev/null".into(), "is there and is no file"),
        ("/".into(), "not the name of a file"),
    ] {
        let error = directory.issue_token_into("node-a", NOW, &out).unwrap_err().to_string();
        assert!(error.contains(word), "{}: {error}", out.display());
        assert!(directory.load().unwrap().nodes.by_token(&former).is_some(), "{}", out.display());
    }
    assert!(link.is_symlink() && fs::read(folder.join("file")).unwrap() == b"kept");
    // A name that is no node's is found out before anything is written.
    let out = temporary.path().join("token");
    fs::write(&out, "former").unwrap();
    assert!(directory.issue_token_into("Node A", NOW, &out).is_err());
    assert_eq!(fs::read(&out).unwrap(), b"former");
}

#[test]
fn secrets_of_another_user_are_refused_by_name() {
    let (_temporary, directory) = made();
    let path = directory.path().join("g1/intermediate-key.pem");
    if std::os::unix::fs::chown(&path, Some(12345), None).is_err() {
        panic!("this test gives a file away, which only root may");
    }
    let error = error_of(&directory);
    assert!(error.contains("intermediate-key.pem belongs to user 12345"), "{error}");
}

#[test]
fn broken_files_are_named_with_what_is_wrong() {
    let (_temporary, directory) = made();
    let path = |name: &str| directory.path().join(name);
    let foreign = {
        let root = CaCertificate::root(&"td".parse().unwrap(), NOW).unwrap();
        root.intermediate(&"td".parse().unwrap(), NOW).unwrap()
    };
    let certificate = fs::read_to_string(path("g1/root.pem")).unwrap();
    let state = fs::read_to_string(path("state.json")).unwrap();
    for (name, text, word) in [
        ("state.json", "", "EOF while parsing"),
        ("state.json", "{", "EOF while parsing"),
        ("state.json", "\u{0}\u{0}\u{0}\u{0}", "expected value"),
        ("state.json", &state.replace("steady", "odd"), "unknown variant `odd`"),
        ("state.json", &state.replace("\"active\": 1", "\"active\": 9"), "ca/g9: No such file"),
        ("nodes.json", "[]", "nodes.json: "),
        ("g1/root.pem", "", "no CERTIFICATE in PEM"),
        ("g1/root.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "not an X.509 certificate"),
        ("g1/root.pem", "-----BEGIN CERTIFICATE-----\nAA", "PEM"),
        ("g1/root.pem", &format!("{certificate}{certificate}"), "more than one certificate"),
        ("g1/intermediate-key.pem", &foreign.key.to_pem(), "the key is not that of"),
        ("g1/intermediate.pem", &certificate, "the key is not that of"),
    ] {
        let path = path(name);
        let good = fs::read_to_string(&path).unwrap();
        fs::write(&path, text).unwrap();
        let error = error_of(&directory);
        let file = name.rsplit('/').next().unwrap();
        let is_named = error.contains(file) || error.contains(word);
        assert!(is_named && error.contains(word), "{name}: {error}");
        fs::write(&path, good).unwrap();
        assert_eq!(error_of(&directory), "", "the control");
    }
    fs::write(path("nodes.json"), [0xff, 0xfe]).unwrap();
    assert!(error_of(&directory).contains("nodes.json: not text"));
    fs::remove_file(path("nodes.json")).unwrap();
    assert!(error_of(&directory).contains("cannot read"), "{}", error_of(&directory));
    // Both belong together, and the root beside them is another.
    fs::write(path("g1/intermediate.pem"), pem_of(&[foreign.der])).unwrap();
    fs::write(path("g1/intermediate-key.pem"), foreign.key.to_pem().as_str()).unwrap();
    assert!(error_of(&directory).contains("intermediate.pem: not signed by the root.pem beside it"));
}

/// Ends `act` at its n-th checkpoint for every n, and looks at what is left.
fn killed_anywhere(
    prepare: impl Fn(&Directory),
    act: impl Fn(&Directory) -> Result<(), DirectoryError>,
    look: impl Fn(&Directory),
) -> usize {
    for n in 0.. {
        let (_temporary, directory) = made();
        prepare(&directory);
        let secret = directory.load().unwrap().generations[0].root.clone();
        directory.crash.store(n, SeqCst);
        let outcome = act(&directory);
        directory.crash.store(usize::MAX, SeqCst);
        let contents = directory.load().unwrap_or_else(|error| panic!("killed at {n}: {error}"));
        assert!(
            contents.authority.roots().contains(&secret) || outcome.is_ok() || contents.state.phase() == Phase::Steady
        );
        look(&directory);
        // The next start makes everything follow the state.
        directory.repair().unwrap();
        let told: BTreeSet<_> = roots_told(&directory).into_iter().map(|der| der.to_vec()).collect();
        let trusted: BTreeSet<_> = contents.authority.roots().iter().map(|der| der.to_vec()).collect();
        assert_eq!(told, trusted, "killed at {n}");
        let left: Vec<_> = fs::read_dir(directory.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left.len(), 4 + contents.generations.len(), "killed at {n}: {left:?}");
        if outcome.is_ok() {
            return n;
        }
    }
    unreachable!()
}

#[test]
fn a_command_killed_between_any_two_writes_leaves_the_former_state_or_the_next() {
    let later = NOW + 3 * DAY;
    let prepared = |directory: &Directory| drop(directory.rotate(Step::Prepare, None, NOW, false).unwrap());
    let activated = |directory: &Directory| {
        prepared(directory);
        directory.rotate(Step::Activate, None, later, false).unwrap();
    };
    let step =
        |step: Step, at: Duration| move |directory: &Directory| directory.rotate(step, None, at, false).map(drop);
    let phases = |allowed: [Phase; 2]| {
        move |directory: &Directory| {
            let phase = directory.load().unwrap().state.phase();
            assert!(allowed.contains(&phase), "{phase:?}");
        }
    };
    let points = [
        killed_anywhere(|_| {}, step(Step::Prepare, NOW), phases([Phase::Steady, Phase::Prepared])),
        killed_anywhere(prepared, step(Step::Activate, later), phases([Phase::Prepared, Phase::Activated])),
        killed_anywhere(prepared, step(Step::Cancel, later), phases([Phase::Prepared, Phase::Steady])),
        killed_anywhere(activated, step(Step::Finish, later + 3 * DAY), phases([Phase::Activated, Phase::Steady])),
        killed_anywhere(|_| {}, step(Step::Intermediate, NOW), phases([Phase::Steady, Phase::Steady])),
        killed_anywhere(
            |_| {},
            |directory| directory.issue_token("node-a", NOW).map(drop),
            phases([Phase::Steady, Phase::Steady]),
        ),
    ];
    assert!(points[0] >= 12 && points.iter().all(|&n| n >= 2), "places where it was killed: {points:?}");
}

#[test]
fn an_interrupted_step_is_simply_taken_again() {
    for n in 0.. {
        let (_temporary, directory) = made();
        directory.crash.store(n, SeqCst);
        let first = directory.rotate(Step::Prepare, None, NOW, false);
        directory.crash.store(usize::MAX, SeqCst);
        if directory.load().unwrap().state.phase() == Phase::Steady {
            directory.rotate(Step::Prepare, None, NOW, false).unwrap();
        }
        assert_eq!(directory.load().unwrap().authority.roots().len(), 2);
        assert_eq!(roots_told(&directory).len(), if first.is_ok() { 2 } else { roots_told(&directory).len() });
        if first.is_ok() {
            return;
        }
    }
}

#[test]
fn an_interrupted_init_is_simply_made_again() {
    for n in 0.. {
        let temporary = TempDir::new().unwrap();
        let directory = Directory::new(temporary.path().join("ca"));
        let domain: TrustDomain = "td".parse().unwrap();
        directory.crash.store(n, SeqCst);
        let first = directory.init(&domain, DAY, None, NOW);
        directory.crash.store(usize::MAX, SeqCst);
        if first.is_ok() {
            assert!(n > 8);
            return;
        }
        let again = directory.init(&domain, DAY, None, NOW);
        let is_there = matches!(again, Err(DirectoryError::Exists(_)));
        assert!(again.is_ok() || is_there, "{again:?}");
        directory.load().unwrap();
    }
}

#[test]
fn nothing_is_done_where_no_authority_is() {
    let temporary = TempDir::new().unwrap();
    let directory = Directory::new(temporary.path());
    let words = [
        directory.load().err(),
        directory.repair().err(),
        directory.issue_token("a", NOW).err(),
        directory.revoke_token("a").err(),
        directory.rotate(Step::Prepare, None, NOW, false).err(),
    ];
    for error in words {
        assert!(error.unwrap().to_string().contains("holds no authority: `heddle ca init` makes one"));
    }
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0, "and nothing is left behind");
}
