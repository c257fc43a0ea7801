//! `cargo xtask docs --check`: finds links in the documents that lead nowhere.
//!
//! It checks the links to files and headings of the repository, and the paths in backticks. Links to other
//! hosts are not followed.

use anyhow::{Context, Result};
use std::collections::HashMap;
use std::fs;
use std::path::Path;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Prints each dead link and fails if there is one. This is also what happens without the option.
    #[arg(long)]
    check: bool,
}

/// Checks all documents and returns whether no link is dead.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let Args { check: _ } = args;
    check()
}

pub(crate) fn check() -> Result<bool> {
    let dead = dead_links(crate::check::root()?)?;
    for link in &dead {
        println!("{link}");
    }
    Ok(dead.is_empty())
}

/// Returns a line of text per dead link in the documents at the root of a repository and in its docs/.
fn dead_links(root: &Path) -> Result<Vec<String>> {
    let mut documents = Vec::new();
    for folder in [root.to_owned(), root.join("docs")] {
        if !folder.exists() {
            continue;
        }
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "md") {
                documents.push(path);
            }
        }
    }
    documents.sort();
    let mut dead = Vec::new();
    for path in &documents {
        let text = read(path)?;
        for (number, line) in prose(&text) {
            let links =
                links(line).filter_map(|link| Some((link, link_error(path, link).transpose()?)));
            let paths = paths(line).filter_map(|link| Some((link, path_error(root, link)?)));
            for (link, error) in links.chain(paths.map(|(link, error)| (link, Ok(error)))) {
                let file = path.strip_prefix(root).unwrap_or(path).display();
                dead.push(format!("{file}:{number}: {link}: {}", error?));
            }
        }
    }
    Ok(dead)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The lines outside fenced code blocks, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    let numbered = text.lines().enumerate();
    numbered.filter_map(move |(i, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        (!fenced && !fence).then_some((i + 1, line))
    })
}

/// The targets of inline links, images and link definitions that stay in the repository.
fn links(line: &str) -> impl Iterator<Item = &str> {
    let inline = line
        .split("](")
        .skip(1)
        .filter_map(|rest| Some(rest.split_once(')')?.0));
    let defined = line
        .strip_prefix('[')
        .and_then(|rest| Some(rest.split_once("]: ")?.1));
    inline
        .chain(defined)
        .filter_map(|target| target.split_whitespace().next())
        .filter(|target| !target.contains(':'))
}

/// Why a link of a document is dead.
fn link_error(document: &Path, link: &str) -> Result<Option<&'static str>> {
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = match file {
        "" => document.to_owned(),
        _ => document.parent().unwrap_or(document).join(file),
    };
    if !target.exists() {
        return Ok(Some("there is no such file"));
    }
    let is_document = target
        .extension()
        .is_some_and(|extension| extension == "md");
    if anchor.is_empty() || !is_document {
        return Ok(None);
    }
    let found = anchors(&read(&target)?).iter().any(|name| name == anchor);
    Ok((!found).then_some("there is no such heading"))
}

/// The anchors of a document's headings, as GitHub makes them.
fn anchors(text: &str) -> Vec<String> {
    let mut seen = HashMap::new();
    let mut anchors = Vec::new();
    for (_, line) in prose(text) {
        let title = line.trim_start_matches('#');
        if title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        // A link in a title counts with its text only.
        let title: String = title
            .split("](")
            .enumerate()
            .map(|(i, part)| match i {
                0 => part,
                _ => part.split_once(')').map_or(part, |(_, rest)| rest),
            })
            .collect();
        let anchor: String = title
            .trim()
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect();
        let count = seen.entry(anchor.clone()).or_insert(0);
        anchors.push(match *count {
            0 => anchor,
            n => format!("{anchor}-{n}"),
        });
        *count += 1;
    }
    anchors
}

/// The spans in backticks that look like paths of this repository.
fn paths(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2).filter(|span| {
        let is_path = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
        let Some((folder, _)) = span.split_once('/') else {
            return false;
        };
        let ours = ["docs", "src", "tests", "xtask", "examples", "fuzz", ".ci"];
        span.chars().all(is_path) && (ours.contains(&folder) || folder.starts_with("lion-"))
    })
}

/// Why a path is dead.
fn path_error(root: &Path, path: &str) -> Option<&'static str> {
    (!root.join(path).exists()).then_some("there is no such path")
}

#[cfg(test)]
mod tests {
    use super::{anchors, dead_links};
    use std::fs;

    #[test]
    fn dead_links_are_found_with_their_lines() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(root.path().join(name), text).unwrap();
        fs::create_dir(root.path().join("docs")).unwrap();
        write(
            "docs/a.md",
            "# The `a` file\n[up](../README.md) [gone](b.md)\n",
        );
        write(
            "README.md",
            "[a](docs/a.md) and [heading](docs/a.md#the-a-file), [none](docs/a.md#b)\n\
             ```\n[in code](no.md)\n```\n\
             `docs/a.md`, `docs/b.md`, `lion-core/src/x.rs`, `cargo doc`, `a/b`\n\
             ![image](x.svg) [web](https://localhost/x) [here](#one)\n\
             [ref]: docs/c.md\n\
             # One\n",
        );
        let expected = [
            "README.md:1: docs/a.md#b: there is no such heading",
            "README.md:5: docs/b.md: there is no such path",
            "README.md:5: lion-core/src/x.rs: there is no such path",
            "README.md:6: x.svg: there is no such file",
            "README.md:7: docs/c.md: there is no such file",
            "docs/a.md:2: b.md: there is no such file",
        ];
        assert_eq!(dead_links(root.path()).unwrap(), expected);
    }

    #[test]
    fn headings_have_the_anchors_that_github_gives_them() {
        let text = "# One, two!\n## One two\n#no\n## A [link](x.md) here\n";
        let expected = ["one-two", "one-two-1", "a-link-here"];
        assert_eq!(anchors(text), expected);
    }
}
