//! Which library this is, and which instruction set it uses.

use crate::error::{Error, Refusal};
use crate::kernel;

/// The version of the library, such as "0.2.0".
pub fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// The instruction set that calls use from now on: the best one that the machine has and that
/// [`limit_isa`] or the environment variable `FA_MAX_ISA` allows, such as "avx512vnni", "avx2",
/// "neon" or "scalar". [`Attention::plan`](super::Attention::plan) says which one a problem gets:
/// the fastest one for it, which need not be the best one.
///
/// ```
/// println!("flash_attention {} with {}", flash_attention::version(), flash_attention::isa()?);
/// # Ok::<(), flash_attention::Refusal>(())
/// ```
///
/// # Errors
/// [`Error::Isa`]: `FA_MAX_ISA` names an instruction set that this build does not know.
pub fn isa() -> Result<&'static str, Refusal> {
    // Names are ASCII.
    Ok(kernel::best()?.isa().to_str().map_err(|_| Error::Internal)?)
}

/// Caps the instruction set of all calls in the process that start after this one returns; `None`
/// takes the cap back, and `FA_MAX_ISA` applies again. For tests, and to compare machines. Where
/// the machine lacks the named one, the next best one is used. One that is named is used even where
/// another would be faster.
///
/// # Errors
/// [`Error::Isa`]: no instruction set that this build knows has that name; then nothing changes.
pub fn limit_isa(name: Option<&str>) -> Result<(), Refusal> {
    kernel::limit_isa(name.map(str::as_bytes))
        .map_err(|error| Refusal::about(error, "limit_isa", "no instruction set that this build knows"))
}
