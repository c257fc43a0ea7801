//! The examples whose names begin with a number: each runs by the command in its first comment, and prints what
//! the comment says.

use crate::check::{cargo, root};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// Runs them all, and returns whether each succeeded and printed what it should.
pub(crate) fn run() -> Result<bool> {
    let root = root()?;
    let mut passed = true;
    for path in numbered(&root.join("examples"))? {
        let source = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let command = command(&source)
            .with_context(|| format!("{} does not say how it is run", path.display()))?;
        println!("== example: cargo {command}");
        let output = cargo()
            .args(command.split(' '))
            .current_dir(root)
            .output()
            .context("cannot run cargo")?;
        let printed = String::from_utf8_lossy(&output.stdout);
        let wanted = expected(&source);
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            println!("{errors}{} failed ({})", path.display(), output.status);
            passed = false;
        } else if wanted.as_ref().is_some_and(|wanted| *wanted != printed) {
            let wanted = wanted.unwrap_or_default();
            println!("{} printed\n{printed}wanted\n{wanted}", path.display());
            passed = false;
        }
    }
    Ok(passed)
}

fn numbered(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(|c: char| c.is_ascii_digit()) && name.ends_with(".rs") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// The arguments of cargo in a comment that has them as `cargo run ...`.
fn command(source: &str) -> Option<&str> {
    let at = source.find("`cargo run ")? + "`cargo ".len();
    source[at..].split('`').next()
}

/// Returns the expected output of an example: the first block of `text` in its comment. Returns `None` if the output
/// depends on the machine.
fn expected(source: &str) -> Option<String> {
    let mut lines = source.lines();
    lines.find(|line| *line == "//! ```text")?;
    let block = lines.take_while(|line| *line != "//! ```");
    Some(
        block
            .map(|line| format!("{}\n", line.strip_prefix("//! ").unwrap_or("")))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_comment_has_the_command_and_the_output() {
        let source = "//! Steps.\n//!\n//! `cargo run --example 01` prints\n//!\n//! ```text\n//! a\n//!\n//! b\n//! ```\n";
        assert_eq!(command(source), Some("run --example 01"));
        assert_eq!(expected(source).as_deref(), Some("a\n\nb\n"));
        assert_eq!(expected("//! `cargo run` prints the device.\n"), None);
    }
}
