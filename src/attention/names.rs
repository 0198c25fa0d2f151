//! What refusals call the tensors and their sizes: the words of the C interface.

use crate::error::{Error, Refusal};

pub(super) struct Names {
    pub(super) tensor: &'static str,
    pub(super) batch: &'static str,
    pub(super) heads: &'static str,
    pub(super) tokens: &'static str,
    pub(super) dim: &'static str,
    pub(super) stride: &'static str,
    quant: &'static str,
}

macro_rules! names {
    ($name:literal) => {
        Names {
            tensor: $name,
            batch: concat!($name, ".batch"),
            heads: concat!($name, ".heads"),
            tokens: concat!($name, ".tokens"),
            dim: concat!($name, ".dim"),
            stride: concat!($name, ".stride"),
            quant: concat!($name, ".quant"),
        }
    };
}

pub(super) const Q: Names = names!("q");
pub(super) const K: Names = names!("k");
pub(super) const V: Names = names!("v");
pub(super) const O: Names = names!("o");
pub(super) const LSE: Names = names!("lse");
pub(super) const MASK: Names = names!("mask");

impl Names {
    /// What is wrong with this tensor.
    pub(super) fn refusal(&self, error: Error) -> Refusal {
        match error {
            Error::Shape => {
                Refusal::about(error, self.tensor, "its slice is shorter than shape and strides say")
            }
            Error::Stride => Refusal::about(error, self.tensor, "strides let rows overlap each other"),
            Error::Overflow => Refusal::about(error, self.tensor, "more bytes than an address space holds"),
            _ => error.into(),
        }
    }

    /// What is wrong with its scales.
    pub(super) fn quant_refusal(&self, error: Error) -> Refusal {
        match error {
            Error::Shape => Refusal::about(error, self.quant, "fewer values than the tensor needs"),
            Error::QuantScale => {
                Refusal::about(error, self.quant, "a value shared by the whole tensor is NaN or infinite")
            }
            _ => error.into(),
        }
    }
}

/// A size in a refusal; what is larger than any is told as the largest.
pub(super) fn number(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
