//! Says which instruction sets this run has tested. The tests of kernels go through all that
//! [`kernel::available`] lists, so the others of the table have not been tested on this machine.
//!
//! scripts/test.sh prints the line once more at its end.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[path = "common/emulate.rs"]
mod emulate;

use flash_attention::kernel;

/// The instruction sets whose instructions tests/emulated.rs emulates.
fn emulated() -> Vec<&'static str> {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    return emulate::emulated_isas();
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    return Vec::new();
}

/// The names of instruction sets, each once, in the order of the table.
fn names(is_available: bool) -> String {
    // Of a set that the machine has, some kernel may need more.
    let has = |name| kernel::available().any(|kernel| kernel.isa() == name);
    let kernels = kernel::all().filter(|kernel| has(kernel.isa()) == is_available);
    let mut names: Vec<_> = kernels.map(|kernel| kernel.isa().to_string_lossy()).collect();
    names.dedup();
    let emulated = emulated();
    names.retain(|name| !emulated.iter().any(|isa| isa == name));
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn main() {
    let ran = names(true);
    assert!(ran.ends_with("scalar"), "the portable kernel runs everywhere: {ran}");
    let left_out = if cfg!(fa_skip_avx512) { "; not in this build: avx512 and its levels" } else { "" };
    let emulated = match emulated() {
        isas if isas.is_empty() => String::new(),
        isas => format!("; emulated, in few cases: {}", isas.join(", ")),
    };
    println!("isas: ran {ran}{emulated}; not on this machine: {}{left_out}", names(false));
}
