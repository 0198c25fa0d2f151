//! What holds for every comment: its width, and that a doc comment stands alone.

use std::fs;
use std::path::{Path, PathBuf};

/// Columns of a line with a comment of its own, at most. Tables cannot be broken, nor addresses.
const WIDTH: usize = 100;

/// Beginnings of doc comments that lean on a neighbour, which rustdoc shows elsewhere or not at
/// all.
const LEANING: &[&str] = &[
    "The same,",
    "The same.",
    "The same of",
    "As there",
    "As above",
    "See there",
    "See the trait",
    "Likewise",
];

/// Rust files below `folder`.
fn sources(folder: &str) -> Vec<PathBuf> {
    fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|end| end == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut found);
    found
}

/// The text of a line that is nothing but a comment.
fn comment(line: &str) -> Option<&str> {
    let text = line.trim_start().strip_prefix("//")?;
    Some(text.trim_start_matches(['/', '!']).trim_start())
}

#[test]
fn comments_are_not_wider_than_a_page() {
    let mut wide = Vec::new();
    for path in ["src", "tests", "benches", "fixed", "tools", "examples"].into_iter().flat_map(sources) {
        let text = fs::read_to_string(&path).expect("a source file");
        for (n, line) in text.lines().enumerate() {
            let breaks = comment(line).is_some_and(|text| !text.starts_with('|') && !text.contains("http"));
            if breaks && line.chars().count() > WIDTH {
                wide.push(format!("{}:{}", path.display(), n + 1));
            }
        }
    }
    assert!(wide.is_empty(), "more than {WIDTH} columns: {wide:#?}");
}

#[test]
fn doc_comments_stand_alone() {
    let mut leaning = Vec::new();
    for path in sources("src") {
        let text = fs::read_to_string(&path).expect("a source file");
        let lines: Vec<_> = text.lines().collect();
        for (n, line) in lines.iter().enumerate() {
            let is_doc = |line: &str| line.trim_start().starts_with("///");
            let begins = is_doc(line) && (n == 0 || !is_doc(lines[n - 1]));
            let text = comment(line).unwrap_or_default();
            if begins && LEANING.iter().any(|start| text.starts_with(start)) {
                leaning.push(format!("{}:{}: {text}", path.display(), n + 1));
            }
        }
    }
    assert!(leaning.is_empty(), "doc comments that do not stand alone: {leaning:#?}");
}
