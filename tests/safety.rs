//! docs/safety.md against the sources: each place that is unsafe says why it is sound, and each
//! module that has such places stands in the table of the invariants that it relies on, with the
//! tests that would see a violation.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Source files without their tests, by their path from the root.
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
                let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
                found.insert(name, text);
            }
        }
    }
    found
}

/// `src/attend/mask.rs` and `src/attend.rs` are both `attend`.
fn module(path: &str) -> &str {
    path.trim_start_matches("src/").split(['/', '.']).next().unwrap_or_default()
}

fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

/// Whether the comment above line `i`, attributes skipped, has `marker` and words behind it.
fn says(lines: &[&str], i: usize, marker: &str) -> bool {
    let mut words = 0;
    for line in lines[..i].iter().rev().map(|line| line.trim()) {
        if let Some(text) = line.strip_prefix("///").or_else(|| line.strip_prefix("//")) {
            if let Some(rest) = text.trim().strip_prefix(marker) {
                return words + rest.trim().len() > 0;
            }
            words += text.trim().len();
        } else if !line.starts_with("#[") && words > 0 {
            return false;
        }
    }
    false
}

/// Lines that begin something unsafe, and whether each says why it is sound. What a function
/// demands is said once: by the trait, for a method of one, and by the header, for a function for
/// C.
fn unsafe_places(text: &str) -> Vec<(usize, bool)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    // The line that ends the implementation of a trait that we are in.
    let mut end: Option<String> = None;
    for (i, line) in lines.iter().map(|line| code(line)).enumerate() {
        let inner = line.trim_start();
        if inner.trim_start_matches("unsafe ").starts_with("impl") && line.contains(" for ") {
            end = Some(format!("{}}}", &line[..line.len() - inner.len()]));
        } else if end.as_deref() == Some(line.trim_end()) {
            end = None;
        }
        if line.contains("unsafe {") {
            // Above it, or above the statement that it is in.
            found.push((i, (0..8).any(|up| says(&lines, i - up.min(i), "SAFETY:"))));
        }
        if line.contains("unsafe fn ") {
            found.push((i, end.is_some() || says(&lines, i, "# Safety")));
        }
        if line.contains("unsafe extern \"C\" fn ") && !line.contains("fn(") {
            found.push((i, true));
        }
        if line.contains("unsafe impl") {
            found.push((i, says(&lines, i, "SAFETY:")));
        }
    }
    found
}

#[test]
fn what_is_unsafe_says_why_it_is_sound() {
    let mut places = 0;
    for (path, text) in sources() {
        for (line, is_explained) in unsafe_places(&text) {
            assert!(is_explained, "{path}:{}: nothing says why this is sound", line + 1);
            places += 1;
        }
    }
    // It finds what it is meant to find.
    assert!(places > 300, "{places}");
    let found =
        unsafe_places("let x = 1;\n// SAFETY: it is.\nlet y =\n    unsafe { f() };\n\nunsafe fn f() {}\n");
    assert_eq!(found, [(3, true), (5, false)]);
}

#[test]
fn every_module_has_its_invariants_and_tests() {
    let document = fs::read_to_string(root().join("docs/safety.md")).expect("docs/safety.md");
    let defined: BTreeSet<String> = document
        .lines()
        .filter_map(|line| line.strip_prefix("| I")?.split(' ').next())
        .map(|n| format!("I{n}"))
        .collect();
    assert!(defined.len() >= 5, "{defined:?}");
    let (_, table) = document.split_once("| module |").expect("the table of modules");
    let mut listed = BTreeSet::new();
    let mut used = BTreeSet::new();
    for line in table.lines().skip(2).take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [module, invariants, tests] = cells[..] else { panic!("{line}") };
        assert!(listed.insert(module.to_owned()), "{module} stands there twice");
        for invariant in invariants.split(", ") {
            assert!(defined.contains(invariant), "{module}: {invariant} is not defined");
            used.insert(invariant.to_owned());
        }
        for test in tests.split(", ") {
            assert!(root().join(test).exists(), "{module}: {test} does not exist");
        }
    }
    let wanted: BTreeSet<String> = sources()
        .into_iter()
        .filter(|(_, text)| !unsafe_places(text).is_empty())
        .map(|(path, _)| module(&path).to_owned())
        .collect();
    assert_eq!(listed, wanted);
    assert_eq!(used, defined);
}

/// Nothing but [`flash_attention::work::query_tiles`] gives the address of an output row to write
/// to, so that the check there is of every write.
#[test]
fn output_rows_have_one_source() {
    for (path, text) in sources() {
        let asks = text.lines().map(code).any(|line| line.contains(".o().row(") || line.contains("lse.row("));
        assert!(
            !asks || path == "src/work/query_tiles.rs",
            "{path} takes the address of an output row by itself"
        );
    }
}
