//! Reasons for which the library refuses a call, and the words that go with them.

pub(crate) mod names;

use std::ffi::CStr;
use std::fmt;

/// The table of reasons: variant of [`Error`], status of the C interface with its number, and one
/// sentence in English. Everything that lists reasons is made from it, by the macro whose name it
/// is given. Numbers are part of the binary interface: none is changed or used again.
macro_rules! with_reasons {
    ($make:ident) => {
        $make! {
            /// A pointer is null although data is needed behind it.
            Null = 1, FA_ERR_NULL, c"a pointer is NULL where data is needed";
            /// An extent that must be at least 1 is 0.
            ZeroExtent = 2, FA_ERR_ZERO_EXTENT, c"a size that must be at least 1 is 0";
            /// Extents or strides describe more bytes than an address space holds, or more of what
            /// is summed up than an integer holds.
            Overflow = 3, FA_ERR_OVERFLOW,
                c"the sizes describe more bytes than an address space holds, or sums than 64 bits";
            /// The softmax scale is NaN, infinite, or too large to be folded into f32.
            SoftmaxScale = 4, FA_ERR_SOFTMAX_SCALE, c"softmax_scale is NaN, infinite or too large";
            /// A quantisation scale is NaN or infinite.
            QuantScale = 5, FA_ERR_QUANT_SCALE, c"a quantisation scale is NaN, infinite or too large";
            /// A reserved field is not 0.
            Reserved = 6, FA_ERR_RESERVED, c"a reserved field is not 0";
            /// The output overlaps an input.
            Overlap = 7, FA_ERR_OVERLAP, c"the output shares memory with an input";
            /// No kernel takes these storage types.
            Dtype = 8, FA_ERR_DTYPE, c"unknown or unsupported data type";
            /// An instruction set was named that this build does not know, or is demanded that the
            /// process has not.
            Isa = 9, FA_ERR_ISA,
                c"unknown instruction set (fa_limit_isa or FA_MAX_ISA), or none to enable (fa_enable_amx)";
            /// Scratch memory could not be allocated.
            Memory = 10, FA_ERR_MEMORY, c"scratch memory could not be allocated";
            /// The library broke one of its own rules.
            Internal = 11, FA_ERR_INTERNAL, c"internal error in flash_attention; please report it";
            /// Tensors disagree about an extent that they share.
            Shape = 12, FA_ERR_SHAPE, c"sizes are negative or disagree";
            /// A stride is no multiple of the element size, or rows of the output overlap.
            Stride = 13, FA_ERR_STRIDE,
                c"unusable stride: negative, no multiple of the element size, or rows of an output would overlap";
            /// The lengths of sequences are negative, decrease where they are sums, or go beyond
            /// the tensors.
            Lengths = 14, FA_ERR_LENGTHS, c"sequence lengths are negative, decreasing or too large";
            /// The size of a structure from C is not one that was ever valid.
            StructSize = 15, FA_ERR_STRUCT_SIZE,
                c"struct_size is not that of a known version, or fields of a later version are set";
            /// The caller's scratch memory is too small.
            Workspace = 17, FA_ERR_WORKSPACE, c"the workspace is NULL or too small";
            /// A part of the work that does not exist, or more threads than there may be.
            Part = 18, FA_ERR_PART, c"part is not below n_parts";
            /// A window that is no number of keys.
            Window = 19, FA_ERR_WINDOW, c"a window is negative";
            /// A softcap that is negative, infinite or NaN.
            Softcap = 20, FA_ERR_SOFTCAP, c"softcap is negative, infinite or NaN";
            /// A page that does not exist.
            Page = 21, FA_ERR_PAGE, c"a page in use does not exist";
        }
    };
}
pub(crate) use with_reasons;

macro_rules! error {
    ($($(#[$doc:meta])* $Reason:ident = $code:literal, $status:ident, $words:literal;)*) => {
        /// Why a call was refused. Nothing has been written to any output when one is returned,
        /// except [`Error::Internal`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Error {
            $($(#[$doc])* $Reason,)*
        }

        impl Error {
            /// One sentence in English, which C gets, too.
            pub(crate) const fn words(self) -> &'static CStr {
                match self {
                    $(Error::$Reason => $words,)*
                }
            }
        }
    };
}
with_reasons!(error);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words().to_str().map_err(|_| fmt::Error)?)
    }
}

impl std::error::Error for Error {}

/// An [`Error`] for programs, with a sentence for people: what was refused, its value, and the
/// limit that it breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The error.
    pub error: Error,
    detail: Option<Detail>,
}

/// What the sentence is about: one value, or a tensor with all its sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Detail {
    Fact(Fact),
    Tensor(TensorFact),
}

/// A sentence about one value: "`what[index] = is: but = limit`". Index, value and limit may be
/// missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fact {
    what: &'static str,
    index: Option<usize>,
    is: Option<Value>,
    but: &'static str,
    limit: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    Integer(i64),
    /// The bits of an f32, so that a NaN equals itself.
    Real(u32),
}

/// A sentence about a tensor as a whole, with its sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TensorFact {
    /// Name of the tensor.
    pub(crate) what: &'static str,
    /// What is wrong.
    pub(crate) but: &'static str,
    /// Batch entries, heads, rows.
    pub(crate) extent: [usize; 3],
    /// Elements of a row.
    pub(crate) dim: usize,
    /// Bytes from one batch entry, head, row to the next.
    pub(crate) stride: [usize; 3],
}

impl Refusal {
    /// Begins a refusal: the name of an integer and its value. [`Fact::but`] says why it is
    /// refused.
    pub(crate) fn of(what: &'static str, is: i64) -> Fact {
        Fact { what, index: None, is: Some(Value::Integer(is)), but: "", limit: None }
    }

    /// Begins a refusal of a real number; see [`Refusal::of`].
    pub(crate) fn of_real(what: &'static str, is: f32) -> Fact {
        Fact { is: Some(Value::Real(is.to_bits())), ..Refusal::of(what, 0) }
    }

    /// Begins a refusal of something that is no number; see [`Refusal::of`].
    pub(crate) fn of_thing(what: &'static str) -> Fact {
        Fact { is: None, ..Refusal::of(what, 0) }
    }

    /// Refuses something that is no number, and says what is wrong with it.
    pub(crate) fn about(error: Error, what: &'static str, but: &'static str) -> Refusal {
        Refusal::of_thing(what).but(error, but)
    }

    /// Refuses a tensor.
    pub(crate) fn about_tensor(error: Error, fact: TensorFact) -> Refusal {
        Refusal { error, detail: Some(Detail::Tensor(fact)) }
    }
}

impl Fact {
    /// Says that the value is element `index` of a list.
    pub(crate) fn at(self, index: usize) -> Fact {
        Fact { index: Some(index), ..self }
    }

    /// Says what the value should be, or is not.
    pub(crate) fn but(self, error: Error, but: &'static str) -> Refusal {
        Refusal { error, detail: Some(Detail::Fact(Fact { but, ..self })) }
    }

    /// Says what the value is not, compared with `limit`, whose name ends `but`.
    pub(crate) fn against(self, error: Error, but: &'static str, limit: i64) -> Refusal {
        Fact { limit: Some(limit), ..self }.but(error, but)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        Refusal { error, detail: None }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        refusal.error
    }
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.detail {
            None => self.error.fmt(f),
            Some(Detail::Fact(fact)) => fact.fmt(f),
            Some(Detail::Tensor(fact)) => fact.fmt(f),
        }
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fact { what, index, is, but, limit } = self;
        write!(f, "{what}")?;
        if let Some(index) = index {
            write!(f, "[{index}]")?;
        }
        match is {
            None => {}
            Some(Value::Integer(is)) => write!(f, " = {is}")?,
            Some(Value::Real(bits)) => write!(f, " = {:e}", f32::from_bits(*bits))?,
        }
        write!(f, ": {but}")?;
        if let Some(limit) = limit {
            write!(f, " = {limit}")?;
        }
        Ok(())
    }
}

impl fmt::Display for TensorFact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TensorFact { what, but, extent: [entries, heads, rows], dim, stride } = self;
        write!(
            f,
            "{what}: {but}: {entries} x {heads} x {rows} rows of {dim} elements, strides {stride:?} bytes"
        )
    }
}
