//! `cargo xtask api`: lists the public items of `lion`, so that a change of the interface is seen in review.
//!
//! The listing is read from the pages that `cargo doc` writes: stable Rust has no other output with what is
//! re-exported resolved. Hidden items and blanket implementations are left out.

use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The listing, from the root of the repository.
const LISTING: &str = "docs/api.txt";

/// The arguments of cargo: those of the check "docs", so that the dependencies are not built twice.
pub(crate) const DOC: &str = "doc --workspace --no-deps";

const HEADER: &str = "\
# The public items of the crate `lion` with the features `bincode`, `cuda`, `interop` and `serde`, on x86_64 Linux.
# `cargo xtask api` writes this file; `cargo xtask check` compares it.
";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Compares docs/api.txt with the sources, and writes nothing.
    #[arg(long)]
    check: bool,
}

/// Returns whether the listing is up to date, and prints what differs.
pub(crate) fn check() -> Result<bool> {
    run(&Args { check: true })
}

/// Writes the listing, or compares it and returns whether it is up to date.
pub(crate) fn run(args: &Args) -> Result<bool> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        println!("SKIPPED {LISTING}: it is that of x86_64 Linux");
        return Ok(true);
    }
    let root = crate::check::root()?;
    let pages = document(root)?;
    let now = listing(&pages)?;
    let path = root.join(LISTING);
    if !args.check {
        fs::write(&path, now).with_context(|| format!("cannot write {LISTING}"))?;
        return Ok(true);
    }
    let then = fs::read_to_string(&path).with_context(|| format!("cannot read {LISTING}"))?;
    let changes = difference(&then, &now);
    for change in &changes {
        println!("{change}");
    }
    if !changes.is_empty() {
        println!(
            "{LISTING} differs from the public items of lion; `cargo xtask api` writes it again"
        );
    }
    Ok(changes.is_empty())
}

/// Runs rustdoc and returns the folder with the pages of `lion`.
fn document(root: &Path) -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let pages = root.join(target).join("doc").join("lion");
    // rustdoc does not delete the pages of items that are gone.
    if pages.exists() {
        fs::remove_dir_all(&pages)?;
    }
    let status = crate::check::cargo()
        .args(DOC.split(' '))
        .arg("--quiet")
        .current_dir(root)
        .status()
        .context("cannot run cargo doc")?;
    if !status.success() {
        bail!("cargo {DOC} failed ({status})");
    }
    Ok(pages)
}

fn listing(pages: &Path) -> Result<String> {
    let mut items = BTreeMap::new();
    visit(pages, "lion", &mut items)?;
    if items.is_empty() {
        bail!("{} has no page of an item", pages.display());
    }
    let mut text = HEADER.to_owned();
    for (path, item) in &items {
        text += &format!("\n{path}\n{item}");
    }
    Ok(text)
}

/// Adds the items of a module and of those below it, by path.
fn visit(folder: &Path, module: &str, items: &mut BTreeMap<String, String>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if path.is_dir() {
            visit(&path, &format!("{module}::{name}"), items)?;
            continue;
        }
        let Some(name) = name.strip_suffix(".html") else {
            continue;
        };
        let page = fs::read_to_string(&path)?;
        if name == "index" {
            let exports = exports(&page);
            if !exports.is_empty() {
                items.insert(format!("mod {module}"), exports);
            }
        } else if let Some((kind, name)) = name.split_once('.')
            && let Some(item) = item(kind, name, &page)
        {
            items.insert(format!("{kind} {module}::{name}"), item);
        }
    }
    Ok(())
}

/// The re-exports of a module that have no separate page.
fn exports(page: &str) -> String {
    sections(page, "id=\"reexport.", "<code>", "</code>")
        .map(|(_, code)| format!("    {}\n", one_line(code)))
        .collect()
}

/// The declaration of an item, its methods and constants, and its implementations of traits.
fn item(kind: &str, name: &str, page: &str) -> Option<String> {
    // Pages of private modules only lead on to the public ones.
    let (_, rest) = page.split_once("<pre class=\"rust item-decl\"><code>")?;
    let (declaration, rest) = rest.split_once("</code></pre>")?;
    let mut text = String::new();
    for line in plain(declaration).lines().filter(|l| !l.trim().is_empty()) {
        text += &format!("    {line}\n");
    }
    // Types of the crate `half`.
    if matches!(name, "bf16" | "f16") {
        return Some(text);
    }
    let own = match rest.find("id=\"blanket-implementations\"") {
        Some(end) => &rest[..end],
        None => rest,
    };
    let mut members = BTreeSet::new();
    // The declaration of a trait has its members.
    if kind != "trait" {
        for id in ["method.", "associatedconstant.", "associatedtype."] {
            let start = format!("<section id=\"{id}");
            for (tag, code) in sections(own, &start, "class=\"code-header\">", "</h4>") {
                if !tag.contains("trait-impl") {
                    members.insert(one_line(code));
                }
            }
        }
    }
    for (_, code) in sections(
        own,
        "<section id=\"impl-",
        "class=\"code-header\">",
        "</h3>",
    ) {
        // `impl Type` heads the type's own methods. What the compiler implements differs between toolchains.
        let code = one_line(code);
        let automatic = ["Freeze", "RefUnwindSafe", "StructuralPartialEq", "Unpin"];
        let automatic = automatic.iter().chain(&["UnsafeUnpin", "UnwindSafe"]);
        let skipped = automatic.clone().any(|name| {
            code.contains(&format!(" {name} for ")) || code.contains(&format!(" !{name} for "))
        });
        if code.contains(" for ") && !skipped {
            members.insert(code);
        }
    }
    text.extend(members.iter().map(|member| format!("    {member}\n")));
    Some(text)
}

/// For each place where `start` is: the tag that begins there, and what follows between `open` and `close`.
fn sections<'a>(
    page: &'a str,
    start: &'a str,
    open: &'a str,
    close: &'a str,
) -> impl Iterator<Item = (&'a str, &'a str)> {
    page.match_indices(start).filter_map(move |(at, _)| {
        let (tag, _) = page[at..].split_once('>')?;
        let (_, code) = page[at..].split_once(open)?;
        Some((tag, code.split_once(close)?.0))
    })
}

fn one_line(code: &str) -> String {
    let text = plain(code);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The text of a piece of a page, without tags.
fn plain(code: &str) -> String {
    let code = code
        .replace("<div class=\"where\">", "\n")
        .replace("</div>", "\n");
    let mut text = String::new();
    let mut rest = code.as_str();
    while let Some((before, after)) = rest.split_once('<') {
        text += before;
        // "Show 13 variants" is for the reader of the page.
        let after = match after.strip_prefix("summary") {
            Some(summary) => summary.split_once("</summary").map_or("", |(_, end)| end),
            None => after,
        };
        rest = after.split_once('>').map_or("", |(_, rest)| rest);
    }
    text += rest;
    text.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&#39;", "'")
        .replace("&nbsp;", " ")
        .replace("&amp;", "&")
}

/// The lines that only one of two listings has, each with the item that it belongs to.
fn difference(then: &str, now: &str) -> Vec<String> {
    let lines = |text: &str| {
        let mut item = String::new();
        let mut lines = BTreeSet::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if !line.starts_with(' ') {
                item = line.to_owned();
            }
            lines.insert((item.clone(), line.trim().to_owned()));
        }
        lines
    };
    let (then, now) = (lines(then), lines(now));
    let removed = then.difference(&now).map(|line| ("-", line));
    let added = now.difference(&then).map(|line| ("+", line));
    removed
        .chain(added)
        .map(|(sign, (item, line))| format!("{sign} {item}: {line}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{difference, exports, item};

    const PAGE: &str = "<h1>Enum</h1><pre class=\"rust item-decl\"><code>\
        <div class=\"code-attribute\">#[non_exhaustive]</div>pub enum Mode {\n    \
        Fast(<a href=\"x\">Vec</a>&lt;u8&gt;),\n}</code></pre>\
        <section id=\"method.run\" class=\"method\"><span>1.0</span><h4 class=\"code-header\">pub fn \
        <a>run</a>(&amp;self)<div class=\"where\">where\n    T: Copy,</div></h4></section>\
        <section id=\"impl-Clone-for-Mode\" class=\"impl\"><h3 class=\"code-header\">impl Clone for Mode</h3>\
        <section id=\"method.clone\" class=\"method trait-impl\"><h4 class=\"code-header\">fn clone()</h4>\
        <section id=\"impl-Freeze-for-Mode\"><h3 class=\"code-header\">impl Freeze for Mode</h3>\
        <h2 id=\"blanket-implementations\"></h2>\
        <section id=\"impl-Any-for-T\"><h3 class=\"code-header\">impl Any for T</h3>";

    #[test]
    fn an_item_has_its_declaration_its_methods_and_its_traits() {
        let expected = "    #[non_exhaustive]\n    pub enum Mode {\n        Fast(Vec<u8>),\n    }\n    \
            impl Clone for Mode\n    pub fn run(&self) where T: Copy,\n";
        assert_eq!(item("enum", "Mode", PAGE).unwrap(), expected);
        assert!(item("enum", "Mode", "<p>Redirecting</p>").is_none());
        let page = "<dt id=\"reexport.cust\"><code>pub use lion_cuda::<a>cust</a>;</code></dt>";
        assert_eq!(exports(page), "    pub use lion_cuda::cust;\n");
    }

    #[test]
    fn a_new_variant_and_a_removed_item_are_reported() {
        let then = "enum lion::Mode\n    Fast,\n\nfn lion::old\n    pub fn old()\n";
        let now = "enum lion::Mode\n    Fast,\n    Slow,\n";
        let expected = [
            "- fn lion::old: fn lion::old",
            "- fn lion::old: pub fn old()",
            "+ enum lion::Mode: Slow,",
        ];
        assert_eq!(difference(then, now), expected);
        assert!(difference(then, then).is_empty());
    }
}
