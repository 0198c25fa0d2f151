//! Structures that begin with their size, so that later versions can append fields.

use crate::error::{Error, Refusal};

/// Bytes that a structure will not exceed this version's by, whatever is appended.
const ROOM_TO_GROW: usize = 4096;

/// Refuses a size that no version of the structure `T` has. Larger ones than this version's are
/// those of later versions; a wild number must not lead us through memory. `name` is what callers
/// know the size by.
pub(super) fn check_size<T>(name: &'static str, size: usize) -> Result<(), Refusal> {
    let known = size_of::<T>();
    let fact = Refusal::of(name, i64::try_from(size).unwrap_or(i64::MAX));
    match size {
        _ if size < known => Err(fact.against(Error::StructSize, "less than this version's", known as i64)),
        _ if size > known + ROOM_TO_GROW => Err(fact.but(Error::StructSize, "not of any version")),
        _ => Ok(()),
    }
}

/// What the size of most structures is called in refusals.
pub(super) const STRUCT_SIZE: &str = "struct_size";

/// Copies a structure that begins with its size, which `name` names. Fields that this version does
/// not know must be 0.
///
/// # Safety
/// `from` is readable for as many bytes as its first field says. Any bits are a value of `T`.
pub(super) unsafe fn read_sized<T: Copy>(name: &'static str, from: *const T) -> Result<T, Refusal> {
    // SAFETY: I1: every version has this field; no alignment is assumed.
    let size = unsafe { from.cast::<usize>().read_unaligned() };
    check_size::<T>(name, size)?;
    for i in size_of::<T>()..size {
        // SAFETY: I1: the caller vouches for `size` bytes.
        if unsafe { from.cast::<u8>().wrapping_add(i).read() } != 0 {
            let fact = Refusal::of(name, size as i64);
            return Err(fact.but(Error::StructSize, "fields of a later version are set"));
        }
    }
    // SAFETY: I1, I9: `check_size` saw that `size` covers a `T`, of which any bits are a value.
    Ok(unsafe { from.read_unaligned() })
}

/// Fills a structure of the caller's that begins with its size. What a later version of it has
/// beyond ours becomes 0. `new` is given the size, which stays as it is.
///
/// # Safety
/// `to` is writable for as many bytes as its first field says.
pub(super) unsafe fn write_sized<T: Copy>(
    name: &'static str,
    to: *mut T,
    new: impl FnOnce(usize) -> T,
) -> Result<(), Refusal> {
    // SAFETY: I1: every version has this field; no alignment is assumed.
    let size = unsafe { to.cast::<usize>().read_unaligned() };
    check_size::<T>(name, size)?;
    // SAFETY: I1: the caller vouches for `size` bytes, which cover a `T`; no alignment is assumed.
    unsafe {
        to.cast::<u8>().write_bytes(0, size);
        to.write_unaligned(new(size));
    }
    Ok(())
}
