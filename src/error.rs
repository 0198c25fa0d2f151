//! Everything the library can refuse, one variant a reason.

use std::fmt;

/// Why a problem was refused. Nothing has been written to any output when one is returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// A pointer is null although data is needed behind it.
    Null,
    /// An extent that must be at least 1 is 0.
    ZeroExtent,
    /// Extents or strides describe more bytes than an address space holds.
    Overflow,
    /// Tensors disagree about an extent that they share.
    Shape,
    /// The lengths of sequences are negative, decrease where they are sums, or go beyond the tensors.
    Lengths,
    /// A stride is no multiple of the element size, or rows of the output overlap.
    Stride,
    /// The softmax scale is NaN, infinite, or too large to be folded into f32.
    SoftmaxScale,
    /// A quantisation scale is NaN or infinite.
    QuantScale,
    /// A reserved field is not 0.
    Reserved,
    /// The output overlaps an input.
    Overlap,
    /// No kernel takes these storage types.
    Dtype,
    /// The size of a structure from C is not one that was ever valid.
    StructSize,
    /// Legal, but not in this version.
    Unsupported,
    /// The caller's scratch memory is too small.
    Workspace,
    /// A share of the work that does not exist.
    Part,
    /// A window that is no number of keys.
    Window,
    /// An instruction set was named that this build does not know.
    Isa,
    /// Scratch memory could not be allocated.
    Memory,
    /// The library broke one of its own rules.
    Internal,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for Error {}
