//! `cargo xtask tidy`: the invariants of ARCHITECTURE.md, checked. They are absences, so a text search finds a breach.

mod faults;
mod rules;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

/// One file of the tree.
#[derive(Debug, Clone)]
pub(crate) struct File {
    /// From the root of the workspace, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
}

/// Every file the rules look at.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tree {
    pub(crate) files: Vec<File>,
}

impl Tree {
    /// Reads the workspace, leaving out what is built.
    fn read(root: &Path) -> Result<Self> {
        let mut tree = Self::default();
        let mut directories = vec![PathBuf::new()];
        while let Some(directory) = directories.pop() {
            let listing = root.join(&directory);
            let entries = std::fs::read_dir(&listing)
                .with_context(|| format!("list {}", listing.display()))?;
            for entry in entries {
                let entry = entry?;
                let path = directory.join(entry.file_name());
                let name = entry.file_name().to_string_lossy().into_owned();
                if entry.file_type()?.is_dir() {
                    if name != "target" && name != ".git" {
                        directories.push(path);
                    }
                } else if [".rs", ".md", ".want"].iter().any(|end| name.ends_with(end)) {
                    let text = std::fs::read_to_string(entry.path())
                        .with_context(|| format!("read {}", path.display()))?;
                    tree.files.push(File { path: path.to_string_lossy().into_owned(), text });
                }
            }
        }
        tree.files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(tree)
    }

    /// The Rust files, each with its path.
    pub(crate) fn rust(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|file| file.path.ends_with(".rs"))
    }

    /// The file at `path`.
    pub(crate) fn get(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|file| file.path == path)
    }
}

pub(crate) fn main() -> Result<ExitCode> {
    check()?;
    Ok(ExitCode::SUCCESS)
}

/// Checks the workspace.
pub(crate) fn check() -> Result<()> {
    let tree = Tree::read(&crate::root())?;
    let mut breaches = rules::breaches(&tree);
    breaches.extend(faults::breaches(&tree));
    for breach in &breaches {
        eprintln!("tidy: {breach}");
    }
    if !breaches.is_empty() {
        bail!("{} invariants are broken; ARCHITECTURE.md says why each is there", breaches.len());
    }
    println!("> tidy: {} files, no invariant broken", tree.files.len());
    Ok(())
}
