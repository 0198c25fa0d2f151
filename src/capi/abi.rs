//! Structures that begin with their size, so that later versions can append fields.

use crate::error::{Error, Refusal};

/// Bytes that a structure will not exceed this version's by, whatever is appended.
const ROOM_TO_GROW: usize = 4096;

/// Refuses a size that no version of the structure `T` has. Larger ones than this version's are
/// those of later versions; a wild number must not lead us through memory.
pub(super) fn check_size<T>(size: usize) -> Result<(), Refusal> {
    let known = size_of::<T>();
    let fact = Refusal::of("struct_size", i64::try_from(size).unwrap_or(i64::MAX));
    match size {
        _ if size < known => Err(fact.against(Error::StructSize, "less than this version's", known as i64)),
        _ if size > known + ROOM_TO_GROW => Err(fact.but(Error::StructSize, "not of any version")),
        _ => Ok(()),
    }
}

/// Copies a structure that begins with its size. Fields that this version does not know must be 0.
///
/// # Safety
/// `from` is readable for as many bytes as its first field says. Any bits are a value of `T`.
pub(super) unsafe fn read_sized<T: Copy>(from: *const T) -> Result<T, Refusal> {
    // SAFETY: I1: every version has this field; no alignment is assumed.
    let size = unsafe { from.cast::<usize>().read_unaligned() };
    check_size::<T>(size)?;
    for i in size_of::<T>()..size {
        // SAFETY: I1: the caller vouches for `size` bytes.
        if unsafe { from.cast::<u8>().wrapping_add(i).read() } != 0 {
            let fact = Refusal::of("struct_size", size as i64);
            return Err(fact.but(Error::StructSize, "fields of a later version are set"));
        }
    }
    // SAFETY: I1, I9: `check_size` saw that `size` covers a `T`, of which any bits are a value.
    Ok(unsafe { from.read_unaligned() })
}
