//! Names of tensors and their fields in refusals, and what may be wrong with a tensor: the same
//! words for C and for Rust.

use super::{Error, Refusal};

/// What the fields of a tensor are called. Each boundary uses those that its callers know.
pub(crate) struct Names {
    pub(crate) tensor: &'static str,
    /// How much memory it has.
    pub(crate) bytes: &'static str,
    pub(crate) batch: &'static str,
    pub(crate) heads: &'static str,
    pub(crate) tokens: &'static str,
    pub(crate) dim: &'static str,
    pub(crate) dtype: &'static str,
    pub(crate) stride: &'static str,
    pub(crate) stride_dim: &'static str,
    /// Whether the elements of its rows may lie apart.
    pub(crate) takes_stride_dim: bool,
    pub(crate) quant: &'static str,
    pub(crate) quant_stride: &'static str,
    pub(crate) quant_zero: &'static str,
    pub(crate) group_tokens: &'static str,
    pub(crate) group_dims: &'static str,
}

/// The [`Names`] of a tensor.
macro_rules! names {
    ($name:literal) => {
        $crate::error::names::Names {
            tensor: $name,
            bytes: concat!($name, "_bytes"),
            batch: concat!($name, ".batch"),
            heads: concat!($name, ".heads"),
            tokens: concat!($name, ".tokens"),
            dim: concat!($name, ".dim"),
            dtype: concat!($name, ".dtype"),
            stride: concat!($name, ".stride"),
            stride_dim: concat!($name, ".stride_dim"),
            takes_stride_dim: false,
            quant: concat!($name, ".quant"),
            quant_stride: concat!($name, ".quant.stride"),
            quant_zero: concat!($name, ".quant.zero"),
            group_tokens: concat!($name, ".quant.group_tokens"),
            group_dims: concat!($name, ".quant.group_dims"),
        }
    };
}
pub(crate) use names;

pub(crate) const Q: Names = names!("q");
pub(crate) const K: Names = Names { takes_stride_dim: true, ..names!("k") };
pub(crate) const V: Names = Names { takes_stride_dim: true, ..names!("v") };
pub(crate) const O: Names = names!("o");
pub(crate) const LSE: Names = names!("lse");
pub(crate) const MASK: Names = names!("mask");
pub(crate) const WEIGHTS: Names = names!("weights");

/// More bytes than a pointer can step over.
pub(crate) const TOO_LARGE: &str = "more bytes than an address space holds";

/// Why unsigned integers are not quantised without zero points.
pub(crate) const UNSIGNED: &str = "unsigned integers need zero points, to stand for numbers below 0";

impl Names {
    /// The bytes between elements of a row, where `given` bytes are; 0 if they lie behind one
    /// another. Elements come in blocks of `block`, which have `size` bytes.
    pub(crate) fn stride_dim(
        &self,
        given: i64,
        [block, size]: [usize; 2],
        dim: usize,
    ) -> Result<usize, Refusal> {
        let fact = Refusal::of(self.stride_dim, given);
        let element = size as i64;
        match usize::try_from(given) {
            Ok(0) => Ok(0),
            Err(_) => Err(fact.but(Error::Stride, "negative, or more than an address space holds")),
            Ok(_) if block != 1 => Err(fact.but(Error::Stride, "rows of blocks are contiguous, must be 0")),
            Ok(stride) if stride == size => Ok(0),
            Ok(_) if !self.takes_stride_dim => {
                let but = "only k and v of an attention may have elements that lie apart, must be 0 or";
                Err(fact.against(Error::Stride, but, element))
            }
            Ok(stride) if !stride.is_multiple_of(size) => {
                Err(fact.against(Error::Stride, "not a multiple of the element size", element))
            }
            // The stride of an axis of one element does not count.
            Ok(_) if dim <= 1 => Ok(0),
            Ok(stride) => Ok(stride),
        }
    }

    /// Refuses zero points that there are, if the type of the tensor has none.
    pub(crate) fn check_zeros(&self, has_zeros: bool, takes_zeros: bool) -> Result<(), Refusal> {
        if !has_zeros || takes_zeros {
            return Ok(());
        }
        let but = "set, but this type has no zero points";
        Err(Refusal::about(Error::Dtype, self.quant_zero, but))
    }

    /// Refuses the scales of this tensor.
    pub(crate) fn refuse_scales(&self, error: Error) -> Refusal {
        match error {
            Error::Shape => Refusal::about(error, self.quant, "fewer values than the tensor needs"),
            Error::QuantScale => {
                Refusal::about(error, self.quant, "a value shared by the whole tensor is NaN or infinite")
            }
            _ => error.into(),
        }
    }
}

/// What is wrong with a tensor of which no view can be made; `None` where the error says it all.
pub(crate) fn flaw(error: Error) -> Option<&'static str> {
    match error {
        Error::Null => Some("NULL, but there are elements"),
        Error::Shape => Some("its slice is shorter than shape and strides say"),
        Error::Stride => Some("strides let rows overlap each other"),
        Error::Overflow => Some(TOO_LARGE),
        _ => None,
    }
}

/// A size in a refusal. What is larger than any integer there is told as the largest.
pub(crate) fn number(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
