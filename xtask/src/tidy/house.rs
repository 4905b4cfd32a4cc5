//! What `tidy` looks at: the files of the repository and the packages cargo sees in it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::tools;

/// The repository at one moment.
#[derive(Debug, Default)]
pub struct House {
    /// Path from the top folder, with `/`, to content.
    pub files: BTreeMap<String, Vec<u8>>,
    pub packages: Vec<Package>,
}

/// A package of the workspace, or of one of the small workspaces beside it.
#[derive(Debug, Clone)]
pub struct Package {
    pub name: String,
    /// Its folder from the top folder.
    pub folder: String,
    pub targets: Vec<Target>,
    pub dependencies: Vec<Dependency>,
}

/// A crate of a package.
#[derive(Debug, Clone)]
pub struct Target {
    pub kind: String,
    /// The crate's root file from the top folder.
    pub root: String,
}

/// A direct dependency.
#[derive(Debug, Clone)]
pub struct Dependency {
    pub name: String,
    /// Only for tests, examples and benches.
    pub is_dev: bool,
}

impl House {
    /// Reads the repository this xtask belongs to.
    pub fn visit() -> Result<House> {
        let root = tools::repository();
        let mut house = House::default();
        for path in paths(&root)? {
            // A file that git lists and the disk lacks is being deleted.
            if let Ok(content) = fs::read(root.join(&path)) {
                house.files.insert(path, content);
            }
        }
        let mut manifests = vec!["Cargo.toml"];
        manifests.extend(
            ["ebpf-programs/programs/Cargo.toml", "tests/fuzz/libfuzzer/Cargo.toml"]
                .into_iter()
                .filter(|manifest| house.files.contains_key(*manifest)),
        );
        for manifest in manifests {
            house.packages.extend(packages(&root, manifest)?);
        }
        Ok(house)
    }

    /// Files that are text, with a path that ends so.
    pub fn texts(&self, suffix: &str) -> impl Iterator<Item = (&str, &str)> {
        let ends = move |path: &str| path.ends_with(suffix);
        self.files
            .iter()
            .filter(move |(path, _)| ends(path))
            .filter_map(|(path, content)| Some((path.as_str(), std::str::from_utf8(content).ok()?)))
    }

    /// One file as text.
    pub fn text(&self, path: &str) -> Option<&str> {
        std::str::from_utf8(self.files.get(path)?).ok()
    }
}

/// Tracked files and new ones that are not ignored; in an exported copy without git, all but build output.
fn paths(root: &Path) -> Result<Vec<String>> {
    let mut git = Command::new("git");
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(root);
    if root.join(".git").exists()
        && let Ok(list) = tools::output(&mut git)
    {
        return Ok(list.split('\0').filter(|path| !path.is_empty()).map(String::from).collect());
    }
    let mut found = Vec::new();
    walk(root, Path::new(""), &mut found)?;
    Ok(found)
}

fn walk(root: &Path, folder: &Path, found: &mut Vec<String>) -> Result<()> {
    let here = root.join(folder);
    for entry in fs::read_dir(&here).with_context(|| format!("cannot read {}", here.display()))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            if entry.file_name() != "target" && entry.file_name() != ".git" {
                walk(root, &path, found)?;
            }
        } else {
            found.push(path.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<MetadataPackage>,
}

#[derive(Deserialize)]
struct MetadataPackage {
    name: String,
    manifest_path: PathBuf,
    targets: Vec<MetadataTarget>,
    dependencies: Vec<MetadataDependency>,
}

#[derive(Deserialize)]
struct MetadataTarget {
    kind: Vec<String>,
    src_path: PathBuf,
}

#[derive(Deserialize)]
struct MetadataDependency {
    name: String,
    kind: Option<String>,
}

fn packages(root: &Path, manifest: &str) -> Result<Vec<Package>> {
    let mut command = tools::cargo();
    command
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline", "--manifest-path"])
        .arg(root.join(manifest));
    let text = tools::output(&mut command)?;
    let metadata: Metadata = serde_json::from_str(&text).with_context(|| format!("cargo metadata of {manifest}"))?;
    let relative = |path: &Path| path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned();
    Ok(metadata
        .packages
        .into_iter()
        .map(|package| Package {
            folder: package.manifest_path.parent().map(relative).unwrap_or_default(),
            targets: package
                .targets
                .iter()
                .map(|target| Target { kind: target.kind.join(","), root: relative(&target.src_path) })
                .collect(),
            dependencies: package
                .dependencies
                .into_iter()
                .map(|dependency| Dependency {
                    name: dependency.name,
                    is_dev: dependency.kind.as_deref() == Some("dev"),
                })
                .collect(),
            name: package.name,
        })
        .collect())
}

/// A house of a few files; each `…/src/lib.rs` and `…/src/main.rs` is a package named after its folder.
#[cfg(test)]
pub fn planted(files: &[(&str, &str)]) -> House {
    let mut house = House::default();
    for (path, text) in files {
        house.files.insert((*path).to_owned(), text.as_bytes().to_vec());
        let root = ["/src/lib.rs", "/src/main.rs"].iter().find_map(|suffix| path.strip_suffix(suffix));
        if let Some(folder) = root {
            let kind = if path.ends_with("lib.rs") { "lib" } else { "bin" };
            house.packages.push(Package {
                name: format!("heddle-{}", folder.rsplit('/').next().unwrap_or(folder)),
                folder: folder.to_owned(),
                targets: vec![Target { kind: kind.to_owned(), root: (*path).to_owned() }],
                dependencies: Vec::new(),
            });
        }
    }
    house
}
