//! Everything the library can refuse, one variant a reason.

use std::ffi::CStr;
use std::fmt;

/// Why a problem was refused. Nothing has been written to any output when one is returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
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
    /// The caller's scratch memory is too small.
    Workspace,
    /// A share of the work that does not exist.
    QueryTile,
    /// A window that is no number of keys.
    Window,
    /// A page that does not exist.
    Page,
    /// A softcap that is negative, infinite or NaN.
    Softcap,
    /// An instruction set was named that this build does not know.
    Isa,
    /// Scratch memory could not be allocated.
    Memory,
    /// The library broke one of its own rules.
    Internal,
}

impl Error {
    /// One sentence in English, which C gets, too.
    pub(crate) const fn words(self) -> &'static CStr {
        match self {
            Error::Null => c"a pointer is NULL where data is needed",
            Error::ZeroExtent => c"a size that must be at least 1 is 0",
            Error::Overflow => c"the sizes describe more bytes than an address space holds",
            Error::SoftmaxScale => c"softmax_scale is NaN, infinite or too large",
            Error::QuantScale => c"a quantisation scale is NaN, infinite or too large",
            Error::Reserved => c"a reserved field is not 0",
            Error::Overlap => c"the output shares memory with an input",
            Error::Dtype => c"unknown or unsupported data type",
            Error::Isa => c"unknown instruction set (fa_limit_isa or FA_MAX_ISA)",
            Error::Memory => c"scratch memory could not be allocated",
            Error::Internal => c"internal error in flash_attention; please report it",
            Error::Shape => c"sizes are negative or disagree",
            Error::Stride => {
                c"unusable stride: negative, no multiple of the element size, or rows of an output would overlap"
            }
            Error::Lengths => c"sequence lengths are negative, decreasing or too large",
            Error::StructSize => {
                c"struct_size is not that of a known version, or fields of a later version are set"
            }
            Error::Workspace => c"the workspace is NULL or too small",
            Error::QueryTile => c"part is not below n_parts",
            Error::Window => c"a window is negative",
            Error::Softcap => c"softcap is negative, infinite or NaN",
            Error::Page => c"a page in use does not exist",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words().to_str().map_err(|_| fmt::Error)?)
    }
}

impl std::error::Error for Error {}

/// An [`Error`] with the numbers behind it, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The error.
    pub error: Error,
    detail: Option<Detail>,
}

/// What a sentence is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Detail {
    Fact(Fact),
    Tensor(TensorFact),
}

/// "`what[index] = is: but = limit`", as far as there is each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fact {
    what: &'static str,
    index: Option<usize>,
    is: Option<Value>,
    but: &'static str,
    limit: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    Integer(i64),
    /// The bits of an f32: NaN is the same as itself here.
    Real(u32),
}

/// What is wrong with a tensor as a whole, and its sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorFact {
    /// Its name.
    pub what: &'static str,
    /// What is wrong.
    pub but: &'static str,
    /// Entries, heads, rows.
    pub extent: [usize; 3],
    /// Elements of a row.
    pub dim: usize,
    /// Bytes between them.
    pub stride: [usize; 3],
}

impl Refusal {
    /// The beginning of one: what is refused, and its value; [`Fact::but`] says why.
    pub fn of(what: &'static str, is: i64) -> Fact {
        Fact { what, index: None, is: Some(Value::Integer(is)), but: "", limit: None }
    }

    /// The same of a real number.
    pub fn of_real(what: &'static str, is: f32) -> Fact {
        Fact { is: Some(Value::Real(is.to_bits())), ..Refusal::of(what, 0) }
    }

    /// The same of something that is no number.
    pub fn of_thing(what: &'static str) -> Fact {
        Fact { is: None, ..Refusal::of(what, 0) }
    }

    /// One about such a thing, and what is wrong with it.
    pub fn about(error: Error, what: &'static str, but: &'static str) -> Refusal {
        Refusal::of_thing(what).but(error, but)
    }

    /// One about a tensor.
    pub fn about_tensor(error: Error, fact: TensorFact) -> Refusal {
        Refusal { error, detail: Some(Detail::Tensor(fact)) }
    }
}

impl Fact {
    /// The value is the one with this number.
    pub fn at(self, index: usize) -> Fact {
        Fact { index: Some(index), ..self }
    }

    /// What the value should be, or is not.
    pub fn but(self, error: Error, but: &'static str) -> Refusal {
        Refusal { error, detail: Some(Detail::Fact(Fact { but, ..self })) }
    }

    /// The same, as compared to another value, whose name ends `but`.
    pub fn against(self, error: Error, but: &'static str, limit: i64) -> Refusal {
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
