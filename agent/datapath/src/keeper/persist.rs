//! The keeper's memory across its own restart: which pods are in, and whether the node was released by hand.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::enrol::PodSpec;
use crate::error::DatapathError;

/// What is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Layout of this file.
    pub version: u32,
    /// `heddle release --node` is in force.
    pub released: bool,
    /// Enrolled pods.
    pub pods: Vec<RememberedPod>,
}

/// One enrolled pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RememberedPod {
    /// With what.
    pub spec: PodSpec,
    /// Where: its path may lead elsewhere by the time this is read.
    pub netns_cookie: u64,
}

const VERSION: u32 = 1;

fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("keeper.json")
}

/// Writes by rename: a reader sees the old or the new file.
///
/// # Errors
/// The directory cannot be written.
pub fn save(run_dir: &Path, released: bool, pods: Vec<RememberedPod>) -> Result<(), DatapathError> {
    let path = path(run_dir);
    let temporary = path.with_extension("json.new");
    let what = || format!("write {}", path.display());
    let text = serde_json::to_vec(&Remembered { version: VERSION, released, pods })
        .map_err(|error| DatapathError::Io { what: what(), source: error.into() })?;
    let mut file = fs::File::create(&temporary).map_err(DatapathError::io(what()))?;
    file.write_all(&text).map_err(DatapathError::io(what()))?;
    fs::rename(&temporary, &path).map_err(DatapathError::io(what()))
}

/// Reads it. A file that cannot be read as ours is put aside and reported: the agent will say again what it wants, and
/// what is in the kernel stays in force until then.
#[must_use]
pub fn load(run_dir: &Path) -> Remembered {
    let path = path(run_dir);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Remembered::default(),
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "cannot read the keeper's state; starting without");
            return Remembered::default();
        }
    };
    match serde_json::from_slice::<Remembered>(&text) {
        Ok(remembered) if remembered.version == VERSION => remembered,
        other => {
            let why = other.map_or_else(|error| error.to_string(), |r| format!("version {}", r.version));
            let aside = path.with_extension("json.bad");
            tracing::error!(path = %path.display(), aside = %aside.display(), why, "not a state file of this keeper; put aside");
            let _ = fs::rename(&path, &aside);
            Remembered::default()
        }
    }
}

/// Removes it.
pub fn remove(run_dir: &Path) {
    for extension in ["json", "json.new", "json.bad"] {
        let _ = fs::remove_file(path(run_dir).with_extension(extension));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_loaded() {
        let dir = tempfile::tempdir().expect("dir");
        save(dir.path(), true, vec![]).expect("save");
        assert_eq!(load(dir.path()), Remembered { version: VERSION, released: true, pods: vec![] });
    }

    #[test]
    fn a_broken_file_is_put_aside_not_fatal() {
        let dir = tempfile::tempdir().expect("dir");
        for text in ["{", "[]", "{\"version\": 99, \"released\": true, \"pods\": []}"] {
            fs::write(path(dir.path()), text).expect("write");
            assert_eq!(load(dir.path()), Remembered::default());
            assert_eq!(fs::read_to_string(dir.path().join("keeper.json.bad")).expect("aside"), text);
        }
    }
}
