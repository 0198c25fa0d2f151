//! Link arguments of the shared library; nothing is generated or probed here.

use std::env::var;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let (major, minor) = (var("CARGO_PKG_VERSION_MAJOR"), var("CARGO_PKG_VERSION_MINOR"));
    let (Ok(major), Ok(minor)) = (major, minor) else { return };
    // Before 1.0 a minor version may break the ABI, so it is part of the name.
    let abi = if major == "0" { format!("0.{minor}") } else { major };
    match var("CARGO_CFG_TARGET_OS").as_deref() {
        Ok("linux" | "android" | "freebsd" | "netbsd" | "openbsd" | "dragonfly") => {
            println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libflash_attention.so.{abi}");
            // Pool threads and thread-local storage outlive dlclose; unmapping their code would
            // crash the process at thread exit.
            println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
        }
        Ok("macos") => {
            println!("cargo:rustc-cdylib-link-arg=-Wl,-install_name,@rpath/libflash_attention.{abi}.dylib");
        }
        _ => {}
    }
}
