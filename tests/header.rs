//! `include/flash_attention.h` is what cbindgen makes of `src/capi`, and stays free of Rust words.
//!
//! To regenerate it: `FA_BLESS=1 cargo test --test header`

use std::fs;
use std::path::Path;

const HEADER: &str = "include/flash_attention.h";

fn generated() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml is valid");
    let bindings = cbindgen::generate_with_config(root, config).expect("src/capi can be read");
    let mut text = Vec::new();
    bindings.write(&mut text);
    String::from_utf8(text).expect("the header is UTF-8")
}

#[test]
fn the_committed_header_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(HEADER);
    let wanted = generated();
    if std::env::var_os("FA_BLESS").is_some() {
        fs::write(&path, &wanted).expect("the header can be written");
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == wanted, "{HEADER} has drifted: run FA_BLESS=1 cargo test --test header");
}

#[test]
fn the_header_declares_every_exported_function() {
    // Functions made by macros are exported but invisible to cbindgen.
    let mut sources = String::new();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/capi")).expect("src/capi") {
        sources += &fs::read_to_string(entry.expect("an entry").path()).expect("a source file");
    }
    let exported = sources.matches("#[unsafe(no_mangle)]").count();
    let header = generated();
    let declared = sources
        .lines()
        .filter_map(|line| line.split_once("extern \"C\" fn ")?.1.split('(').next())
        .filter(|name| header.contains(&format!("{name}(")))
        .count();
    assert!(exported > 0 && exported == declared, "{exported} exported, {declared} declared");
}

/// It is built and run with the other examples.
#[test]
fn the_first_example_is_a_program_that_is_run() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples_c/first.c");
    let program = fs::read_to_string(path).expect("the program can be read");
    let (_, program) = program.split_once("*/\n").expect("a comment, and the program");
    let shown: String =
        program.lines().map(|line| format!(" *     {line}").trim_end().to_owned() + "\n").collect();
    assert!(
        program.contains("int main(void)") && generated().contains(&shown),
        "not that of examples_c/first.c"
    );
}

#[test]
fn the_header_speaks_c() {
    let header = generated();
    for word in ["# Safety", "unsafe", "Rust", "usize", "slice", "&mut", "panic", "Option", "`", "[`"] {
        assert!(!header.contains(word), "the header contains {word:?}");
    }
}

#[test]
fn every_public_name_begins_with_fa() {
    let header = generated();
    let defines = header.lines().filter_map(|line| line.strip_prefix("#define "));
    for name in defines {
        assert!(name.starts_with("FA_") || name.starts_with("FLASH_ATTENTION_H"), "#define {name}");
    }
    for line in header.lines().filter(|line| line.starts_with("typedef ")) {
        let kinds = ["typedef enum fa_", "typedef struct fa_", "typedef void (*fa_"];
        assert!(kinds.iter().any(|kind| line.starts_with(kind)), "{line}");
    }
}
