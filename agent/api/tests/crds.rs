//! The definitions under `deploy/crds` are those that the types say.

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

use heddle_api::schema;

fn committed() -> io::Result<BTreeMap<String, String>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/crds");
    let files = fs::read_dir(folder)?.map(|entry| {
        let path = entry?.path();
        Ok((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), fs::read_to_string(&path)?))
    });
    files.collect()
}

#[test]
fn what_is_committed_is_what_the_types_say() {
    let (wanted, found) = (schema::files(), committed().unwrap());
    assert!(wanted.keys().eq(found.keys()), "run `cargo xtask crds`: {:?} {:?}", wanted.keys(), found.keys());
    for (name, text) in wanted {
        assert!(found[&name] == text, "{name} is not what the types in agent/api say: run `cargo xtask crds`");
    }
}

#[test]
fn what_is_written_is_yaml() {
    for (name, text) in schema::files() {
        let reading = heddle_api::read(&name, text.as_bytes());
        assert_eq!((reading.ignored, reading.items, reading.invalid), (1, vec![], vec![]), "{name}");
    }
}
