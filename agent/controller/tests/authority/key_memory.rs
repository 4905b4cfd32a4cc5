//! A CA's key is in memory while it signs, and nowhere afterwards, neither as bytes nor as the text of its file.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use heddle_controller::ca::request::SigningRequest;
use heddle_controller::ca::{Directory, ImportedRoot, Step};
use heddle_identity::WorkloadKey;
use tempfile::TempDir;
use zeroize::Zeroizing;

use crate::client::{domain, id, unix_now};
use crate::memory::Masked;

/// One key of the directory, as it must not be found: its scalar, and the line of its PEM that most of the scalar is in.
struct Wanted {
    file: &'static str,
    scalar: Masked,
    text: Masked,
}

impl Wanted {
    /// Reads it without leaving a copy itself.
    fn of(directory: &Path, file: &'static str) -> Self {
        let mut bytes = Zeroizing::new(vec![0; 4096]);
        let length = File::open(directory.join(file)).unwrap().read(&mut bytes).unwrap();
        let mut lines = bytes[..length].split(|byte| *byte == b'\n').skip(1);
        let (first, second) = (lines.next().unwrap(), lines.next().unwrap());
        let mut digits = Zeroizing::new([0; 128]);
        digits[..64].copy_from_slice(first);
        digits[64..].copy_from_slice(second);
        let mut der = Zeroizing::new([0; 96]);
        base64::engine::general_purpose::STANDARD.decode_slice(digits.as_slice(), &mut *der).unwrap();
        Self { file, scalar: Masked::of_pkcs8(&*der), text: Masked::of(second) }
    }

    fn places(&self) -> usize {
        self.scalar.places() + self.text.places()
    }

    #[track_caller]
    fn assert_gone(&self, after: &str) {
        let places = (self.scalar.places(), self.text.places());
        assert_eq!(places, (0, 0), "{} is still in memory after {after}", self.file);
    }
}

#[test]
fn a_key_of_the_authority_is_gone_when_it_is_not_used_any_more() {
    let temporary = TempDir::new().unwrap();
    let directory = Directory::new(temporary.path().join("ca"));
    let now = unix_now();
    directory.init(&domain(), Duration::from_secs(3600), None, now).unwrap();
    let [root, intermediate] =
        ["g1/root-key.pem", "g1/intermediate-key.pem"].map(|file| Wanted::of(directory.path(), file));
    for key in [&root, &intermediate] {
        key.assert_gone("init");
    }

    let loaded = directory.load().unwrap();
    let key = WorkloadKey::generate().unwrap();
    let request = SigningRequest::parse(&key.certificate_request(&id("web")).unwrap()).unwrap();
    for _ in 0..20 {
        loaded.authority.sign_workload(&request, None, now).unwrap();
    }
    assert!(intermediate.places() > 0, "the control: it signs");
    assert_eq!(intermediate.text.places(), 0, "its text is gone already");
    root.assert_gone("load, which does not read it");
    drop(loaded);
    intermediate.assert_gone("what was loaded");

    directory.rotate(Step::Intermediate, None, now, false).unwrap();
    for key in [&root, &intermediate] {
        key.assert_gone("a new intermediate");
    }
    let [certificate, key] = ["g2/root.pem", "g2/root-key.pem"].map(|file| directory.path().join(file));
    let imported = ImportedRoot::read(&certificate, &key).unwrap();
    assert!(root.places() > 0, "the control: it is about to sign");
    drop(imported);
    root.assert_gone("an import");
}
