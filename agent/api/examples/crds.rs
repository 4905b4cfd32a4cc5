//! Writes the CustomResourceDefinitions of our kinds into a folder, and deletes those of kinds that are gone: `cargo xtask crds`.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::{env, fs};

use heddle_api::schema;

fn main() -> io::Result<()> {
    let Some(folder) = env::args_os().nth(1) else { return Err(io::Error::other("say which folder")) };
    let folder = Path::new(&folder);
    fs::create_dir_all(folder)?;
    let (wanted, found) = (schema::files(), found(folder)?);
    for name in found.keys().filter(|name| !wanted.contains_key(*name)) {
        fs::remove_file(folder.join(name))?;
        eprintln!("{name}: deleted");
    }
    for (name, text) in &wanted {
        let is_new = found.get(name) != Some(text);
        if is_new {
            fs::write(folder.join(name), text)?;
        }
        eprintln!("{name}: {}", if is_new { "written" } else { "unchanged" });
    }
    Ok(())
}

/// Name to content of the files that are there.
fn found(folder: &Path) -> io::Result<BTreeMap<String, String>> {
    let entries = fs::read_dir(folder)?.map(|entry| {
        let path = entry?.path();
        Ok((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), fs::read_to_string(&path)?))
    });
    entries.collect()
}
