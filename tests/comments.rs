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

/// Languages whose comments begin with two slashes, or are blocks.
const SLASHES: &[&str] = &["rs", "c", "h", "hpp", "cpp", "go", "zig"];

/// Languages whose comments begin with a number sign.
const NUMBER_SIGNS: &[&str] = &["sh", "py", "cmake", "toml"];

/// Folders of the project with sources.
const FOLDERS: &[&str] = &[
    "src",
    "tests",
    "benches",
    "tools",
    "examples",
    "include",
    "c_tests",
    "examples_c",
    "bindings",
    "integrations",
    "packaging",
    "cmake",
    "scripts",
    "fixed",
    "fuzz",
];

/// Folders that builds make.
const BUILT: &[&str] = &["target", "build", "corpus", "artifacts", "__pycache__"];

/// The language of a file, by what its name ends with.
fn language(path: &Path) -> &str {
    path.extension().and_then(|end| end.to_str()).unwrap_or_default()
}

/// Files of `languages` below `folder`.
fn sources(folder: &str, languages: &[&str]) -> Vec<PathBuf> {
    fn collect(folder: &Path, languages: &[&str], found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a folder of sources") {
            let entry = entry.expect("an entry");
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            if path.is_dir() {
                if !name.starts_with('.') && !BUILT.contains(&name.as_ref()) {
                    collect(&path, languages, found);
                }
            } else if languages.contains(&language(&path)) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), languages, &mut found);
    found
}

/// The text of a line that is nothing but a comment, with its indentation.
fn comment<'a>(line: &'a str, language: &str) -> Option<&'a str> {
    let line = line.trim_start();
    if NUMBER_SIGNS.contains(&language) {
        return line.strip_prefix('#');
    }
    let begins = ["///", "//!", "//", "/**", "/*"].into_iter().find_map(|mark| line.strip_prefix(mark));
    // A line within a block; in Rust, that is code.
    let within = || line.strip_prefix('*').filter(|text| text.starts_with(' ') && language != "rs");
    begins.or_else(within)
}

/// Whether a wide comment could be broken: tables, addresses and headings could not.
fn breaks(text: &str) -> bool {
    !(text.trim_start().starts_with('|') || text.contains("http") || text.contains("----"))
}

#[test]
fn comments_are_not_wider_than_a_page() {
    let mut wide = Vec::new();
    let languages = [SLASHES, NUMBER_SIGNS].concat();
    for path in FOLDERS.iter().flat_map(|folder| sources(folder, &languages)) {
        let text = fs::read_to_string(&path).expect("a source file");
        for (n, line) in text.lines().enumerate() {
            if line.chars().count() > WIDTH && comment(line, language(&path)).is_some_and(breaks) {
                wide.push(format!("{}:{}", path.display(), n + 1));
            }
        }
    }
    assert!(wide.is_empty(), "more than {WIDTH} columns: {wide:#?}");
}

#[test]
fn comments_are_known() {
    assert_eq!(comment("    /// A sentence.", "rs"), Some(" A sentence."));
    assert_eq!(comment("    *value = 1;", "rs"), None);
    assert_eq!(comment(" * A sentence.", "c"), Some(" A sentence."));
    assert_eq!(comment("\t# A sentence.", "sh"), Some(" A sentence."));
    assert_eq!(comment("x = 1  # A sentence.", "py"), None);
    assert!(breaks(" A sentence.") && breaks("   --option   what it does") && !breaks(" | a | b |"));
}

#[test]
fn doc_comments_stand_alone() {
    let mut leaning = Vec::new();
    for path in sources("src", &["rs"]) {
        let text = fs::read_to_string(&path).expect("a source file");
        let lines: Vec<_> = text.lines().collect();
        for (n, line) in lines.iter().enumerate() {
            let is_doc = |line: &str| line.trim_start().starts_with("///");
            let begins = is_doc(line) && (n == 0 || !is_doc(lines[n - 1]));
            let text = comment(line, "rs").unwrap_or_default().trim_start();
            if begins && LEANING.iter().any(|start| text.starts_with(start)) {
                leaning.push(format!("{}:{}: {text}", path.display(), n + 1));
            }
        }
    }
    assert!(leaning.is_empty(), "doc comments that do not stand alone: {leaning:#?}");
}
