//! The house rules that a reader relies on: who may import whom, and where `unsafe` may stand.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each module and what it may import: one staircase from the boundaries, C's and Rust's, down,
/// without a circle.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    (
        "capi",
        &[
            "prepared",
            "append",
            "fixed",
            "sparse",
            // The tests of panics in the midst of work.
            "plan",
            "kernel",
            "attend",
            "quantize",
            "problem",
            "dtype",
            "view",
            "simd",
            "machine",
            "pool",
            "workspace",
            "error",
        ],
    ),
    (
        "attention",
        &[
            "prepared",
            "append",
            "sparse",
            "kernel",
            "attend",
            "quantize",
            "problem",
            "dtype",
            "view",
            "machine",
            "pool",
            "workspace",
            "error",
        ],
    ),
    ("fixed", &[]),
    ("sparse", &["view", "error"]),
    ("append", &["kernel", "quantize", "problem", "dtype", "view", "error"]),
    ("prepared", &["schedule", "plan", "kernel", "problem", "machine", "pool", "workspace", "error"]),
    ("schedule", &["plan", "prefill", "decode", "work", "problem", "pool", "workspace", "error"]),
    ("plan", &["kernel", "work", "problem", "dtype", "machine", "tuning", "workspace", "error"]),
    (
        "kernel",
        &[
            "prefill",
            "decode",
            "quantize",
            "work",
            "problem",
            "compute",
            "dtype",
            "simd",
            "machine",
            "workspace",
            "error",
        ],
    ),
    ("compute", &["prefill", "decode", "attend", "problem", "dtype", "view", "simd"]),
    ("decode", &["attend", "work", "problem", "dtype", "view", "simd", "tuning", "workspace"]),
    ("prefill", &["attend", "work", "problem", "dtype", "view", "simd", "tuning", "workspace"]),
    ("attend", &["problem", "dtype", "view", "simd", "tuning"]),
    ("quantize", &["view", "dtype", "simd", "error"]),
    ("work", &["attend", "problem", "tuning", "workspace"]),
    ("reference", &["problem", "dtype"]),
    ("problem", &["dtype", "view", "error"]),
    ("view", &["dtype", "error"]),
    ("dtype", &["simd"]),
    ("simd", &["machine"]),
    ("pool", &["machine"]),
    ("workspace", &["error"]),
    ("machine", &["tuning"]),
    ("tuning", &[]),
    ("error", &[]),
];

/// The only modules that may contain `unsafe`: the C boundary, views, SIMD and kernels, scratch,
/// what hands tasks to other threads, and calls of the system.
const MAY_BE_UNSAFE: &[&str] = &[
    "capi",
    "view",
    "simd",
    "dtype",
    "compute",
    "attend",
    "prefill",
    "decode",
    "quantize",
    "kernel",
    "workspace",
    "pool",
    "machine",
];

fn sources() -> Vec<(PathBuf, String)> {
    fn collect(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(folder).expect("a source folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let text = fs::read_to_string(&path).expect("a source file");
                found.push((path, text));
            }
        }
    }
    let mut found = Vec::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found
}

/// `src/attend/mask.rs` and `src/attend.rs` are both `attend`.
fn module(path: &Path) -> String {
    let inside = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).expect("in src");
    let first = inside.iter().next().expect("a name").to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// The code of a line: without comments, which may mention anything.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

/// Modules that a file imports, its own tests left out.
fn imports(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    for line in text.lines().map(code) {
        for path in line.split("crate::").skip(1) {
            let name: String = path.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            assert!(!name.is_empty(), "a grouped import hides what it takes: {line}");
            found.insert(name);
        }
    }
    found
}

#[test]
fn imports_form_one_staircase() {
    let allowed: BTreeMap<_, _> = MAY_IMPORT.iter().map(|(m, list)| (*m, *list)).collect();
    let mut used = BTreeSet::new();
    for (path, text) in sources() {
        let from = module(&path);
        if from == "lib" {
            continue;
        }
        let list = allowed.get(from.as_str()).unwrap_or_else(|| panic!("{from} is not in the table"));
        for to in imports(&text) {
            assert!(to == from || list.contains(&to.as_str()), "{} imports {to}", path.display());
            used.insert((from.clone(), to));
        }
    }
    // What is no longer needed is no longer allowed.
    for (from, list) in MAY_IMPORT {
        for to in *list {
            assert!(used.contains(&((*from).to_owned(), (*to).to_owned())), "{from} does not import {to}");
        }
    }
    // No circle: walking down from any module never comes back to it.
    for (start, _) in MAY_IMPORT {
        let mut below: Vec<&str> = allowed[start].to_vec();
        let mut seen = BTreeSet::new();
        while let Some(m) = below.pop() {
            assert_ne!(m, *start, "{start} imports itself in a circle");
            if seen.insert(m) {
                below.extend(allowed[m]);
            }
        }
    }
}

#[test]
fn unsafe_code_stays_where_it_belongs() {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).expect("lib.rs");
    for (m, _) in MAY_IMPORT {
        let forbidden = lib.contains(&format!("#[forbid(unsafe_code)]\npub mod {m};"));
        assert_ne!(forbidden, MAY_BE_UNSAFE.contains(m), "{m}: lib.rs and the list here disagree");
    }
}

#[test]
fn extern_c_functions_are_in_capi_only() {
    for (path, text) in sources() {
        let exports =
            text.lines().map(code).any(|line| line.contains("extern \"C\" fn") || line.contains("no_mangle"));
        assert!(!exports || module(&path) == "capi", "{} exports to C", path.display());
        let imports =
            text.lines().map(code).any(|line| line.contains("unsafe extern") && line.ends_with("\" {"));
        let is_of_a_system = path.parent().is_some_and(|folder| folder.ends_with("src/machine"));
        assert!(!imports || is_of_a_system, "{} calls the system", path.display());
    }
}

/// A token is proof of an instruction set only while nothing but detection makes one.
#[test]
fn intrinsics_stay_in_simd() {
    for (path, text) in sources() {
        let uses = text.lines().map(code).any(|line| line.contains("_mm"));
        assert!(!uses || module(&path) == "simd", "{} uses intrinsics", path.display());
    }
}
