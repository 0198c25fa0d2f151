//! The headers in the dialects of C and C++ that they are for, by the C and C++ compilers of this
//! machine, every warning an error.

#![cfg(all(target_os = "linux", target_env = "gnu"))]

use std::env::consts::ARCH;
use std::fs;
use std::path::Path;
use std::process::Command;

const C: &str = "\
#include <flash_attention.h>

fa_status f(fa_config *cfg, fa_attention *a);

fa_status f(fa_config *cfg, fa_attention *a) {
    return fa_config_auto(cfg, 64) == FA_OK ? fa_attention_init(a, sizeof *a) : FA_ERR_INTERNAL;
}
";

const CPP: &str = "\
#include <flash_attention.hpp>

fa_status f(flash_attention::Attention &a, flash_attention::Workspace &ws);

fa_status f(flash_attention::Attention &a, flash_attention::Workspace &ws) { return a.run(ws); }
";

/// Compiles a file of this text; an error is what the compiler says.
fn compile(dialect: &str, text: &str) -> Result<(), cc::Error> {
    let is_cpp = dialect.starts_with("c++");
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{dialect}-{:?}", std::thread::current().id()));
    fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join(if is_cpp { "f.cpp" } else { "f.c" });
    fs::write(&file, text).expect("the file was written");
    let target = format!("{ARCH}-unknown-linux-gnu");
    cc::Build::new()
        .cargo_metadata(false)
        .cargo_warnings(false)
        .target(&target)
        .host(&target)
        .opt_level(0)
        .out_dir(&folder)
        .include(Path::new(env!("CARGO_MANIFEST_DIR")).join("include"))
        .cpp(is_cpp)
        .std(dialect)
        .flag("-pedantic")
        .flag("-Wshadow")
        .flag("-Wconversion")
        .extra_warnings(true)
        .warnings_into_errors(true)
        .file(&file)
        .try_compile("f")
}

fn is_there(variable: &str, otherwise: &str) -> bool {
    let compiler = std::env::var(variable).unwrap_or(otherwise.to_owned());
    let is_there = Command::new(&compiler).arg("--version").output().is_ok();
    if !is_there {
        println!("left out: there is no {compiler}");
    }
    is_there
}

#[test]
fn the_header_is_c99_and_c11() {
    if !is_there("CC", "cc") {
        return;
    }
    for dialect in ["c99", "c11"] {
        compile(dialect, C).unwrap_or_else(|error| panic!("{dialect}: {error}"));
    }
    // What only a later standard has is not let through.
    let later = format!("{C}\nstruct unnamed {{ struct {{ int x; }}; }};\n");
    assert!(compile("c99", &later).is_err() && compile("c11", &later).is_ok());
}

#[test]
fn both_headers_are_cpp17_and_cpp20() {
    if !is_there("CXX", "c++") {
        return;
    }
    for dialect in ["c++17", "c++20"] {
        for text in [C, CPP] {
            compile(dialect, text).unwrap_or_else(|error| panic!("{dialect}: {error}\n{text}"));
        }
    }
    let later = format!("{CPP}\ntemplate <class T> concept any = true;\n");
    assert!(compile("c++17", &later).is_err() && compile("c++20", &later).is_ok());
}
