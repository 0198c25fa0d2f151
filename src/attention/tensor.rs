//! Slices with a shape: what a Rust caller hands over.

use crate::append::Scales;
use crate::dtype::Dtype;
use crate::error::names::{Names, flaw, number};
use crate::error::{Error, Refusal};
use crate::view::{Array, ArrayMut, Layout, Quant, QuantMut, View, ViewMut};

/// Elements of an input and their storage type. Slices, arrays and vectors of `f32`, `i8` and
/// `bool` convert into it. 16-bit floats are given by their bits, as Rust has no types for them.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Data<'a> {
    /// IEEE 754 binary32.
    F32(&'a [f32]),
    /// The bits of IEEE 754 binary16.
    F16(&'a [u16]),
    /// The bits of bfloat16, the upper half of a binary32.
    Bf16(&'a [u16]),
    /// 8-bit integers. With scales ([`Tensor::scale`] and others) they stand for real numbers.
    I8(&'a [i8]),
    /// Blocks of 32 elements in 34 bytes, as in ggml. Shapes and strides count elements, and must
    /// be whole blocks.
    Q8_0(&'a [u8]),
    /// Blocks of ggml with 4 bits an element, as `Q8_0`: 32 elements in 18 bytes.
    Q4_0(&'a [u8]),
    /// As `Q4_0`, with a minimum: 32 elements in 20 bytes.
    Q4_1(&'a [u8]),
    /// Blocks of ggml with 5 bits an element: 32 elements in 22 bytes.
    Q5_0(&'a [u8]),
    /// As `Q5_0`, with a minimum: 32 elements in 24 bytes.
    Q5_1(&'a [u8]),
    /// Blocks of ggml with 4 bits an element that stand for 16 numbers: 32 elements in 18 bytes.
    Iq4Nl(&'a [u8]),
    /// The bits of 8-bit floating-point numbers, E4M3 without infinities ("FN"). They may have
    /// scales.
    F8E4M3(&'a [u8]),
    /// The bits of 8-bit floating-point numbers, E5M2: the upper half of a binary16. They may have
    /// scales.
    F8E5M2(&'a [u8]),
    /// Unsigned 8-bit integers, which stand for real numbers as those of `I8` do.
    U8(&'a [u8]),
    /// Fractions: signed integers that stand for themselves divided by 32,768. They may have
    /// scales.
    Q15(&'a [i16]),
    /// Masks only: true = attend.
    Bool(&'a [bool]),
}

/// Elements of an output and their storage type. Slices, arrays and vectors of `f32` convert into
/// it.
#[derive(Debug)]
#[non_exhaustive]
pub enum DataMut<'a> {
    /// IEEE 754 binary32.
    F32(&'a mut [f32]),
    /// The bits of IEEE 754 binary16.
    F16(&'a mut [u16]),
    /// The bits of bfloat16.
    Bf16(&'a mut [u16]),
    /// See [`Data::Q15`]. Rounded to nearest even; what is too large becomes the largest number or
    /// the least one, and NaN becomes 0.
    Q15(&'a mut [i16]),
    /// 8-bit integers; caches only, as all below: see [`quantize`](crate::quantize()) and
    /// [`Append`](crate::Append).
    I8(&'a mut [i8]),
    /// Blocks of ggml; see [`Data::Q8_0`].
    Q8_0(&'a mut [u8]),
    /// See [`Data::Q4_0`].
    Q4_0(&'a mut [u8]),
    /// See [`Data::Q4_1`].
    Q4_1(&'a mut [u8]),
    /// See [`Data::Q5_0`].
    Q5_0(&'a mut [u8]),
    /// See [`Data::Q5_1`].
    Q5_1(&'a mut [u8]),
    /// See [`Data::Iq4Nl`].
    Iq4Nl(&'a mut [u8]),
    /// See [`Data::F8E4M3`].
    F8E4M3(&'a mut [u8]),
    /// See [`Data::F8E5M2`].
    F8E5M2(&'a mut [u8]),
    /// See [`Data::U8`].
    U8(&'a mut [u8]),
}

macro_rules! from_slices {
    ($($T:ty => $Variant:ident),*) => {$(
        impl<'a> From<&'a [$T]> for Data<'a> {
            fn from(data: &'a [$T]) -> Data<'a> {
                Data::$Variant(data)
            }
        }
        impl<'a> From<&'a Vec<$T>> for Data<'a> {
            fn from(data: &'a Vec<$T>) -> Data<'a> {
                Data::$Variant(data)
            }
        }
        impl<'a, const N: usize> From<&'a [$T; N]> for Data<'a> {
            fn from(data: &'a [$T; N]) -> Data<'a> {
                Data::$Variant(data)
            }
        }
    )*};
}

from_slices!(f32 => F32, i8 => I8, bool => Bool);

impl<'a> From<&'a mut [f32]> for DataMut<'a> {
    fn from(data: &'a mut [f32]) -> DataMut<'a> {
        DataMut::F32(data)
    }
}
impl<'a> From<&'a mut Vec<f32>> for DataMut<'a> {
    fn from(data: &'a mut Vec<f32>) -> DataMut<'a> {
        DataMut::F32(data)
    }
}
impl<'a, const N: usize> From<&'a mut [f32; N]> for DataMut<'a> {
    fn from(data: &'a mut [f32; N]) -> DataMut<'a> {
        DataMut::F32(data)
    }
}

impl<'a> Data<'a> {
    fn dtype(self) -> Dtype {
        match self {
            Data::F32(_) => Dtype::F32,
            Data::F16(_) => Dtype::F16,
            Data::Bf16(_) => Dtype::Bf16,
            Data::I8(_) => Dtype::I8,
            Data::Q8_0(_) => Dtype::Q8_0,
            Data::Q4_0(_) => Dtype::Q4_0,
            Data::Q4_1(_) => Dtype::Q4_1,
            Data::Q5_0(_) => Dtype::Q5_0,
            Data::Q5_1(_) => Dtype::Q5_1,
            Data::Iq4Nl(_) => Dtype::Iq4Nl,
            Data::F8E4M3(_) => Dtype::F8E4M3,
            Data::F8E5M2(_) => Dtype::F8E5M2,
            Data::U8(_) => Dtype::U8,
            Data::Q15(_) => Dtype::Q15,
            Data::Bool(_) => Dtype::Bool8,
        }
    }

    fn view(self, layout: Layout) -> Result<View<'a>, Error> {
        match self {
            Data::F32(data) => View::of(data, layout),
            Data::F16(data) | Data::Bf16(data) => View::of(data, layout),
            Data::I8(data) => View::of(data, layout),
            Data::Q8_0(data)
            | Data::Q4_0(data)
            | Data::Q4_1(data)
            | Data::Q5_0(data)
            | Data::Q5_1(data)
            | Data::Iq4Nl(data)
            | Data::F8E4M3(data)
            | Data::F8E5M2(data)
            | Data::U8(data) => View::of(data, layout),
            Data::Q15(data) => View::of(data, layout),
            Data::Bool(data) => View::of(data, layout),
        }
    }
}

impl DataMut<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            DataMut::F32(_) => Dtype::F32,
            DataMut::F16(_) => Dtype::F16,
            DataMut::Bf16(_) => Dtype::Bf16,
            DataMut::I8(_) => Dtype::I8,
            DataMut::Q8_0(_) => Dtype::Q8_0,
            DataMut::Q4_0(_) => Dtype::Q4_0,
            DataMut::Q4_1(_) => Dtype::Q4_1,
            DataMut::Q5_0(_) => Dtype::Q5_0,
            DataMut::Q5_1(_) => Dtype::Q5_1,
            DataMut::Iq4Nl(_) => Dtype::Iq4Nl,
            DataMut::F8E4M3(_) => Dtype::F8E4M3,
            DataMut::F8E5M2(_) => Dtype::F8E5M2,
            DataMut::U8(_) => Dtype::U8,
            DataMut::Q15(_) => Dtype::Q15,
        }
    }

    fn view(&mut self, layout: Layout) -> Result<ViewMut<'_>, Error> {
        match self {
            DataMut::F32(data) => ViewMut::of(data, layout),
            DataMut::F16(data) | DataMut::Bf16(data) => ViewMut::of(data, layout),
            DataMut::I8(data) => ViewMut::of(data, layout),
            DataMut::Q8_0(data)
            | DataMut::Q4_0(data)
            | DataMut::Q4_1(data)
            | DataMut::Q5_0(data)
            | DataMut::Q5_1(data)
            | DataMut::Iq4Nl(data)
            | DataMut::F8E4M3(data)
            | DataMut::F8E5M2(data)
            | DataMut::U8(data) => ViewMut::of(data, layout),
            DataMut::Q15(data) => ViewMut::of(data, layout),
        }
    }
}

/// Turns an error of a view into a refusal of the tensor.
fn refuse(names: &Names, error: Error) -> Refusal {
    flaw(error).map_or(error.into(), |but| Refusal::about(error, names.tensor, but))
}

/// Sizes and strides of a tensor, in elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Batch entries, heads, tokens.
    pub(super) extent: [usize; 3],
    pub(super) dim: usize,
    pub(super) stride: [usize; 3],
    /// From one element of a row to the next; 0 is 1.
    stride_dim: usize,
}

impl Shape {
    // Strides that no memory has saturate: they are refused, or do not matter as the axis has one
    // element.
    fn head_first([batch, heads, tokens, dim]: [usize; 4]) -> Shape {
        let head = tokens.saturating_mul(dim);
        let stride = [heads.saturating_mul(head), head, dim];
        Shape { extent: [batch, heads, tokens], dim, stride, stride_dim: 1 }
    }

    fn token_first([batch, tokens, heads, dim]: [usize; 4]) -> Shape {
        let token = heads.saturating_mul(dim);
        let stride = [tokens.saturating_mul(token), dim, token];
        Shape { extent: [batch, heads, tokens], dim, stride, stride_dim: 1 }
    }

    fn transposed([batch, heads, dim, tokens]: [usize; 4]) -> Shape {
        let head = tokens.saturating_mul(dim);
        let stride = [heads.saturating_mul(head), head, 1];
        Shape { extent: [batch, heads, tokens], dim, stride, stride_dim: tokens }
    }

    fn layout(&self, names: &Names, dtype: Dtype) -> Result<Layout, Refusal> {
        let block = dtype.block();
        let whole_blocks = |what, n: usize, error| {
            let fact = Refusal::of(what, number(n));
            match n.is_multiple_of(block) {
                true => Ok(n / block),
                false => Err(fact.against(error, "not a multiple of the elements of a block", block as i64)),
            }
        };
        whole_blocks(names.dim, self.dim, Error::Shape)?;
        let mut stride = [0; 3];
        // The stride of an axis of one element does not count.
        for axis in (0..3).filter(|&axis| self.extent[axis] > 1) {
            let given = self.stride[axis];
            stride[axis] = whole_blocks(names.stride, given, Error::Stride)
                .map(|blocks| blocks.checked_mul(dtype.block_bytes()))?
                .ok_or_else(|| refuse(names, Error::Overflow))?;
        }
        // Without an element it does not count.
        let is_empty = self.dim == 0 || self.extent.contains(&0);
        let apart = if is_empty || self.stride_dim == 1 { 0 } else { self.stride_dim };
        let stride_dim = names
            .stride_dim(number(apart), [block, 1], self.dim)?
            .checked_mul(dtype.block_bytes())
            .ok_or_else(|| refuse(names, Error::Overflow))?;
        Ok(Layout { dtype, extent: self.extent, dim: self.dim, stride, stride_dim })
    }
}

/// An input `[batch][head][token][dim]` in a slice. All axes have strides; that of the elements of
/// a row (dim) is 1, but K and V may have another one. Whether a tensor fits its slice, and other
/// tensors, is seen when a call is made.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Tensor<'a> {
    data: Data<'a>,
    pub(super) shape: Shape,
    quant: Option<Quant<'a>>,
}

impl<'a> Tensor<'a> {
    /// Dense `[batch][head][token][dim]`.
    pub fn head_first(data: impl Into<Data<'a>>, batch_heads_tokens_dim: [usize; 4]) -> Tensor<'a> {
        Tensor { data: data.into(), shape: Shape::head_first(batch_heads_tokens_dim), quant: None }
    }

    /// Dense `[batch][token][head][dim]`, as the projections of a model make it.
    pub fn token_first(data: impl Into<Data<'a>>, batch_tokens_heads_dim: [usize; 4]) -> Tensor<'a> {
        Tensor { data: data.into(), shape: Shape::token_first(batch_tokens_heads_dim), quant: None }
    }

    /// Dense `[batch][head][dim][token]`, for K and V only: a transposed cache. Rows are gathered
    /// in scratch memory, a block of keys at a time, and results have the same bits.
    ///
    /// ```
    /// # use flash_attention::{Attention, Pool, Tensor, TensorMut, Workspace};
    /// let (q, k) = ([1.0, 2.0], [0.5, 1.0, 2.0, -1.0, 0.0, 1.0]);
    /// // Three tokens of two elements: (1, 4), (2, 5), (3, 6).
    /// let v_transposed = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    /// let mut out = [0.0; 2];
    /// let mut attention = Attention::new(
    ///     Tensor::head_first(&q, [1, 1, 1, 2]),
    ///     Tensor::head_first(&k, [1, 1, 3, 2]),
    ///     Tensor::transposed(&v_transposed, [1, 1, 2, 3]),
    ///     TensorMut::head_first(&mut out, [1, 1, 1, 2]),
    /// );
    /// let (mut workspace, pool) = (Workspace::default(), Pool::default());
    /// attention.reserve(&mut workspace, &pool)?;
    /// attention.run(&mut workspace, &pool)?;
    /// assert!((out[1] - out[0] - 3.0).abs() < 1e-5);
    /// # Ok::<(), flash_attention::Refusal>(())
    /// ```
    pub fn transposed(data: impl Into<Data<'a>>, batch_heads_dim_tokens: [usize; 4]) -> Tensor<'a> {
        Tensor { data: data.into(), shape: Shape::transposed(batch_heads_dim_tokens), quant: None }
    }

    /// Sets the strides, in ELEMENTS, from one batch entry, head, token to the next. 0 repeats the
    /// same data; the stride of an axis of one element does not matter. The tensor begins with the
    /// first element of the slice.
    pub fn strides(mut self, of_batch: usize, of_heads: usize, of_tokens: usize) -> Tensor<'a> {
        self.shape.stride = [of_batch, of_heads, of_tokens];
        self
    }

    /// Sets the stride, in ELEMENTS, from one element of a row to the next; 0 is 1. Others than 1
    /// are for K and V that are not in blocks, and [`Error::Stride`] elsewhere.
    pub fn stride_dim(mut self, of_elements: usize) -> Tensor<'a> {
        self.shape.stride_dim = of_elements;
        self
    }

    /// Quantised with one scale: elements are the stored integers times `scale`.
    pub fn scale(self, scale: &'a f32) -> Tensor<'a> {
        self.quantised(Quant::per_tensor(scale))
    }

    /// Quantised with a scale for each head: `[batch][head]`.
    pub fn scale_per_head(self, scales: &'a [f32]) -> Tensor<'a> {
        let [_, heads, _] = self.shape.extent;
        self.quantised(Quant {
            scale: Some(Array::of(scales)),
            zero: None,
            stride: [heads, 1, 0, 0],
            group: [1; 2],
        })
    }

    /// Quantised with a scale for each token: `[batch][head][token]`.
    pub fn scale_per_token(self, scales: &'a [f32]) -> Tensor<'a> {
        let [_, heads, tokens] = self.shape.extent;
        let stride = [heads.saturating_mul(tokens), tokens, 1, 0];
        self.quantised(Quant { scale: Some(Array::of(scales)), zero: None, stride, group: [1; 2] })
    }

    /// Quantised with scales and zero points of any granularity.
    pub fn quantised(mut self, how: Quant<'a>) -> Tensor<'a> {
        self.quant = Some(how);
        self
    }

    pub(super) fn dtype(&self) -> Dtype {
        self.data.dtype()
    }

    pub(super) fn view(self, names: &Names) -> Result<View<'a>, Refusal> {
        let view = self.raw_view(names)?;
        match self.quant {
            None => Ok(view),
            Some(quant) => view.quantised(quant).map_err(|error| names.refuse_scales(error)),
        }
    }

    /// A view of the stored integers, without scales and zeros.
    pub(super) fn raw_view(self, names: &Names) -> Result<View<'a>, Refusal> {
        let dtype = self.data.dtype();
        if self.quant.is_some() && !dtype.takes_scales() {
            let but = "has scales, but the numbers are not quantised";
            return Err(Refusal::about(Error::Dtype, names.tensor, but));
        }
        names.check_zeros(self.quant.is_some_and(|quant| quant.zero.is_some()), dtype.takes_zeros())?;
        let layout = self.shape.layout(names, dtype)?;
        self.data.view(layout).map_err(|error| refuse(names, error))
    }

    /// Expands axes of one element to the `wanted` extent, by repeating the element.
    pub(super) fn broadcast(mut self, wanted: [usize; 3]) -> Tensor<'a> {
        for (axis, wanted) in wanted.into_iter().enumerate() {
            if self.shape.extent[axis] == 1 {
                (self.shape.extent[axis], self.shape.stride[axis]) = (wanted, 0);
            }
        }
        self
    }
}

/// An output `[batch][head][token][dim]` in a slice; see [`Tensor`]. Its rows must not overlap.
/// Elements of the slice that are no row's are not touched.
#[derive(Debug)]
#[must_use]
pub struct TensorMut<'a> {
    data: DataMut<'a>,
    pub(super) shape: Shape,
    scales: Option<Scales<'a>>,
}

impl<'a> TensorMut<'a> {
    /// Dense `[batch][head][token][dim]`.
    pub fn head_first(data: impl Into<DataMut<'a>>, batch_heads_tokens_dim: [usize; 4]) -> TensorMut<'a> {
        TensorMut { data: data.into(), shape: Shape::head_first(batch_heads_tokens_dim), scales: None }
    }

    /// Dense `[batch][token][head][dim]`.
    pub fn token_first(data: impl Into<DataMut<'a>>, batch_tokens_heads_dim: [usize; 4]) -> TensorMut<'a> {
        TensorMut { data: data.into(), shape: Shape::token_first(batch_tokens_heads_dim), scales: None }
    }

    /// Sets the strides, in ELEMENTS, from one batch entry, head, token to the next; see
    /// [`Tensor::strides`].
    pub fn strides(mut self, of_batch: usize, of_heads: usize, of_tokens: usize) -> TensorMut<'a> {
        self.shape.stride = [of_batch, of_heads, of_tokens];
        self
    }

    /// Elements with scales, and zero points, of any granularity that are found and written; in a
    /// cache that tokens are appended to, those of one token are no other's.
    pub fn quantised(mut self, how: QuantMut<'a>) -> TensorMut<'a> {
        self.scales = Some(Scales::Own(how));
        self
    }

    /// Elements with a scale for each token, `[batch][head][token]`, that is found and written.
    pub fn scale_per_token(self, scales: &'a mut [f32]) -> TensorMut<'a> {
        let [_, heads, tokens] = self.shape.extent;
        let stride = [heads.saturating_mul(tokens), tokens, 1, 0];
        self.quantised(QuantMut { scale: ArrayMut::of(scales), zero: None, stride, group: [1; 2] })
    }

    /// Elements whose scales and zero points are given: x becomes x / scale + zero, rounded.
    /// Outputs of an attention are of [`DataMut::Q15`] then.
    pub fn scales_given(mut self, how: Quant<'a>) -> TensorMut<'a> {
        self.scales = Some(Scales::Given(how));
        self
    }

    pub(super) fn view(&mut self, names: &Names) -> Result<ViewMut<'_>, Refusal> {
        let (view, scales) = self.view_and_scales(names)?;
        match scales {
            None => Ok(view),
            Some(Scales::Given(quant)) => view.quantised(quant).map_err(|error| names.refuse_scales(error)),
            Some(Scales::Own(_)) => {
                Err(Refusal::about(Error::Dtype, names.quant, "scales of an output are given, not found"))
            }
        }
    }

    pub(super) fn view_and_scales(
        &mut self,
        names: &Names,
    ) -> Result<(ViewMut<'_>, Option<Scales<'_>>), Refusal> {
        let dtype = self.data.dtype();
        if self.scales.is_some() && !dtype.takes_scales() {
            let but = "has scales, but the numbers are not quantised";
            return Err(Refusal::about(Error::Dtype, names.tensor, but));
        }
        let has_zeros = self.scales.as_ref().is_some_and(Scales::has_zeros);
        names.check_zeros(has_zeros, dtype.takes_zeros())?;
        let layout = self.shape.layout(names, dtype)?;
        let scales = self.scales.as_mut().map(|scales| match scales {
            Scales::Own(QuantMut { scale, zero, stride, group }) => Scales::Own(QuantMut {
                scale: scale.rest(0),
                zero: zero.as_mut().map(|zero| zero.rest(0)),
                stride: *stride,
                group: *group,
            }),
            Scales::Given(quant) => Scales::Given(*quant),
        });
        Ok((self.data.view(layout).map_err(|error| refuse(names, error))?, scales))
    }
}
