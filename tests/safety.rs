//! docs/safety.md: every unsafe block of the sources with its invariant, and what would catch its violation. The list
//! is made from the sources (`FA_BLESS=1 cargo test --test safety` writes it), so that neither can change alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

const MARK: &str = "<!-- From here on made from the sources: FA_BLESS=1 cargo test --test safety -->\n";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Source files, by their path from the root.
fn sources() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders: Vec<PathBuf> = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a source folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root()).expect("in the root").to_string_lossy().into_owned();
                let text = fs::read_to_string(&path).expect("a source file");
                // Tests are not what is released.
                let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
                found.insert(name, text);
            }
        }
    }
    found
}

/// What of a file is unsafe: places, each with the words that go with it.
#[derive(Debug, Default)]
struct Unsafe {
    blocks: Vec<(String, String)>,
    functions: Vec<(String, String)>,
    impls: Vec<(String, String)>,
}

/// The comment above line `i`, attributes skipped, from the line on that has `marker`.
fn words_above(lines: &[&str], i: usize, marker: &str) -> String {
    let mut words: Vec<&str> = Vec::new();
    for line in lines[..i].iter().rev().map(|line| line.trim()) {
        if let Some(text) = line.strip_prefix("///").or_else(|| line.strip_prefix("//")) {
            let text = text.trim();
            if let Some(rest) = text.strip_prefix(marker) {
                words.push(rest.trim());
                break;
            }
            words.push(text);
        } else if !line.starts_with("#[") && !words.is_empty() {
            // Comments of statements that begin above, as in `let x =`, go with them.
            words.clear();
            break;
        }
    }
    words.reverse();
    words.retain(|word| !word.is_empty());
    words.join(" ")
}

/// The comment of a block: above it, or above the statement that it is in.
fn words_of_block(lines: &[&str], i: usize) -> String {
    (0..8)
        .map(|up| words_above(lines, i - up.min(i), "SAFETY:"))
        .find(|words| !words.is_empty())
        .unwrap_or_default()
}

fn name_after(line: &str, word: &str) -> Option<String> {
    let rest = line.split_once(word)?.1;
    let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

fn unsafe_in(text: &str) -> Unsafe {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Unsafe::default();
    let mut function = String::from("the file");
    for (i, line) in lines.iter().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        if let Some(name) = name_after(code, "fn ") {
            function = name;
        }
        for _ in 0..code.matches("unsafe {").count() {
            found.blocks.push((function.clone(), words_of_block(&lines, i)));
        }
        if code.contains("unsafe fn ") || (code.contains("unsafe extern \"C\" fn ") && !code.contains("fn("))
        {
            let words = words_above(&lines, i, "# Safety");
            let words = if words.is_empty() { "the contract in the header".to_owned() } else { words };
            found.functions.push((function.clone(), words));
        }
        if code.contains("unsafe impl") {
            let what = code.trim().trim_end_matches(['{', '}', ' ']).trim_start_matches("unsafe ").to_owned();
            found.impls.push((what, words_above(&lines, i, "SAFETY:")));
        }
    }
    found
}

/// The part of the document that is made.
fn list(sources: &BTreeMap<String, String>) -> String {
    let mut list = String::new();
    let mut total = [0; 3];
    for (path, text) in sources {
        let Unsafe { blocks, functions, impls } = unsafe_in(text);
        let counts = [blocks.len(), functions.len(), impls.len()];
        if counts == [0; 3] {
            continue;
        }
        total.iter_mut().zip(counts).for_each(|(sum, n)| *sum += n);
        let [b, f, i] = counts;
        writeln!(list, "\n### {path}: {b} blocks, {f} functions, {i} impls\n").expect("a string");
        for (kind, places) in [("block in", blocks), ("function", functions), ("", impls)] {
            for (place, words) in places {
                assert!(!words.is_empty(), "{path}: {kind} {place} does not say why it is sound");
                let kind = if kind.is_empty() { String::new() } else { format!("{kind} ") };
                writeln!(list, "- {kind}`{place}`: {words}").expect("a string");
            }
        }
    }
    let [b, f, i] = total;
    format!("\nTogether {b} blocks, {f} functions, {i} impls.\n{list}")
}

#[test]
fn the_list_is_that_of_the_sources() {
    let path = root().join("docs/safety.md");
    let document = fs::read_to_string(&path).expect("docs/safety.md");
    let (words, committed) = document.split_once(MARK).expect("the mark");
    let made = list(&sources());
    if std::env::var_os("FA_BLESS").is_some() {
        fs::write(&path, format!("{words}{MARK}{made}")).expect("docs/safety.md is writable");
        return;
    }
    let differs = committed.lines().zip(made.lines()).find(|(a, b)| a != b);
    assert_eq!(committed, made, "FA_BLESS=1 writes it, but read what has changed: {differs:?}");
}

/// The table above the list: each file that has unsafe code, the invariants that it relies on, the tests that would
/// catch a violation.
#[test]
fn every_file_has_its_invariants_and_tests() {
    let document = fs::read_to_string(root().join("docs/safety.md")).expect("docs/safety.md");
    let (words, _) = document.split_once(MARK).expect("the mark");
    let defined: BTreeSet<String> = words
        .lines()
        .filter_map(|line| line.strip_prefix("| I")?.split(' ').next())
        .map(|n| format!("I{n}"))
        .collect();
    assert!(defined.len() >= 5, "{defined:?}");
    let mut listed = BTreeSet::new();
    let mut used = BTreeSet::new();
    for line in words.lines().filter(|line| line.starts_with("| src/")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [files, invariants, tests] = cells[..] else { panic!("{line}") };
        for file in files.split(", ") {
            assert!(root().join(file).exists() && listed.insert(file.to_owned()), "{file}");
        }
        for invariant in invariants.split(", ") {
            assert!(defined.contains(invariant), "{files}: {invariant} is not defined");
            used.insert(invariant.to_owned());
        }
        for test in tests.split(", ") {
            assert!(root().join(test).exists(), "{files}: {test} does not exist");
        }
    }
    let wanted: BTreeSet<String> = sources()
        .into_iter()
        .filter(|(_, text)| {
            let found = unsafe_in(text);
            found.blocks.len() + found.functions.len() + found.impls.len() > 0
        })
        .map(|(path, _)| path)
        .collect();
    assert_eq!(listed, wanted);
    assert_eq!(used, defined);
}

/// Nothing but [`flash_attention::work::query_tiles`] gives the address of an output row to write to, so that the check there is
/// of every write.
#[test]
fn output_rows_have_one_source() {
    for (path, text) in sources() {
        let code = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
        let asks = text.lines().map(code).any(|line| line.contains(".o().row(") || line.contains("lse.row("));
        assert!(!asks || path == "src/part.rs", "{path} takes the address of an output row by itself");
    }
}
