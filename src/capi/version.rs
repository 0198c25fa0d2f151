//! Which library this is.

/// Version of the library, to be printed. To find out whether a library fits a program, compare
/// fa_abi_version.
///
/// @return (major << 16) | (minor << 8) | patch
///
/// Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn fa_version() -> u32 {
    PARTS[0] << 16 | PARTS[1] << 8 | PARTS[2]
}

const PARTS: [u32; 3] = [
    number(env!("CARGO_PKG_VERSION_MAJOR")),
    number(env!("CARGO_PKG_VERSION_MINOR")),
    number(env!("CARGO_PKG_VERSION_PATCH")),
];

const fn number(text: &str) -> u32 {
    match u32::from_str_radix(text, 10) {
        Ok(n) if n < 256 => n,
        _ => panic!("a part of the version does not fit its byte"),
    }
}

/// Version of the binary interface. It grows by one with each release that a program built against
/// an older header cannot use. Functions and status codes that are only added do not change it. A
/// program that loads the library at run time should compare it with FA_ABI_VERSION.
///
/// @return FA_ABI_VERSION as the library was built with it
///
/// Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn fa_abi_version() -> u32 {
    FA_ABI_VERSION
}

/// The binary interface that this header describes; see fa_abi_version.
pub const FA_ABI_VERSION: u32 = 2;
