//! How stored integers become numbers: scales and zero points of any granularity.

use std::ops::{Deref, Range};

use super::{Array, ArrayMut, Layout, is_nested};
use crate::dtype::{Dtype, f8};
use crate::error::Error;

/// x = (stored - zero) · scale. Scale and zero of element d of row (b, h, t) are at
/// `b * stride[0] + h * stride[1] + t / group[0] * stride[2] + d / group[1] * stride[3]`.
#[derive(Clone, Copy, Debug)]
pub struct Quant<'a> {
    /// None: 1.
    pub scale: Option<Array<'a, f32>>,
    /// None: 0.
    pub zero: Option<Array<'a, f32>>,
    /// Values from one batch entry (or page), head, group of tokens, group of elements to the next.
    pub stride: [usize; 4],
    /// Tokens that share values, and elements of a row that do; at least 1.
    pub group: [usize; 2],
}

/// How finely scales and zeros divide a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleGranularity {
    /// All rows of a head share a scale, or more than a head does.
    PerHead,
    /// The elements of a row share a scale, but not all rows of a head do.
    PerToken,
    /// Scales change within a row, in the same way in all rows of a head.
    PerChannel,
    /// Scales change within a row and from row to row, or elements become f32 with their scales.
    Finer,
}

impl<'a> Quant<'a> {
    /// The granularity of the scales and zeros of a tensor. `entries`: rows of a head may lie in
    /// different batch entries, as with pages.
    pub(crate) fn granularity(&self, layout: &Layout, entries: bool) -> ScaleGranularity {
        // Elements that become f32 do so with their scales, whatever shares these.
        if layout.dtype.is_converted() {
            return ScaleGranularity::Finer;
        }
        // Whatever the number of tokens is: it is not to decide which kernel computes a sequence.
        let by_token = self.stride[2] != 0 || (entries && self.stride[0] != 0);
        let by_channel = self.stride[3] != 0 && self.group[1] < layout.dim;
        match (by_token, by_channel) {
            (false, false) => ScaleGranularity::PerHead,
            (true, false) => ScaleGranularity::PerToken,
            (false, true) => ScaleGranularity::PerChannel,
            (true, true) => ScaleGranularity::Finer,
        }
    }

    /// One scale for the whole tensor, no zero.
    pub fn per_tensor(scale: &'a f32) -> Quant<'a> {
        let scale = Some(Array::of(std::slice::from_ref(scale)));
        Quant { scale, zero: None, stride: [0; 4], group: [1; 2] }
    }

    /// How many values a tensor of this layout needs; 0 if it has no element.
    pub(crate) fn len(stride: [usize; 4], group: [usize; 2], layout: &Layout) -> Result<usize, Error> {
        let [batch, heads, tokens] = layout.extent;
        if layout.dim == 0 || layout.extent.contains(&0) {
            return Ok(0);
        }
        let last = [batch - 1, heads - 1, (tokens - 1) / group[0], (layout.dim - 1) / group[1]];
        let mut len = 1usize;
        for (last, stride) in last.into_iter().zip(stride) {
            let beyond = last.checked_mul(stride).and_then(|n| len.checked_add(n));
            len = beyond.filter(|&len| len <= isize::MAX as usize / 4).ok_or(Error::Overflow)?;
        }
        Ok(len)
    }

    /// Addresses of scales and zeros.
    pub(crate) fn addresses(&self) -> [Range<usize>; 2] {
        [self.scale, self.zero].map(|list| list.map_or(0..0, |list| list.addresses()))
    }

    /// Whether there is a value for each element, and none is unfit that all of them share. Others
    /// are data: one that is NaN makes its elements NaN.
    pub(crate) fn check(&self, layout: &Layout) -> Result<(), Error> {
        if self.group.contains(&0) {
            return Err(Error::ZeroExtent);
        }
        let len = Quant::len(self.stride, self.group, layout)?;
        for values in [self.scale, self.zero].into_iter().flatten() {
            if values.len() < len {
                return Err(Error::Shape);
            }
            if self.stride == [0; 4] && values.len() > 0 && !values.get(0).is_finite() {
                return Err(Error::QuantScale);
            }
        }
        Ok(())
    }

    /// Where the values of a row's first elements are.
    #[inline(always)]
    pub(crate) fn at(&self, [batch, head, token]: [usize; 3]) -> usize {
        let group = group(token, self.group[0], self.stride[2]);
        batch * self.stride[0] + head * self.stride[1] + group
    }

    /// Scale and zero of element `d` of the row whose first values are at `at`, as they are given.
    #[inline(always)]
    pub(crate) fn of(&self, at: usize, d: usize) -> [f32; 2] {
        let at = at + group(d, self.group[1], self.stride[3]);
        [self.scale.map_or(1.0, |scale| scale.get(at)), self.zero.map_or(0.0, |zero| zero.get(at))]
    }
}

/// How the elements of a view become numbers, as they are read ([`Dtype::read_as`]): unsigned
/// integers are 128 less then, and so are their zeros; E4M3 is divided by a factor, by which scales
/// are multiplied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dequant<'a> {
    given: Quant<'a>,
    /// What scales are multiplied by.
    pub(crate) factor: f32,
    /// What is subtracted from zeros.
    pub(crate) less: f32,
}

impl<'a> Dequant<'a> {
    /// Of elements of a type that takes scales.
    pub(crate) fn new(given: Quant<'a>, dtype: Dtype) -> Dequant<'a> {
        Dequant { given, factor: f8::factor(dtype), less: if dtype == Dtype::U8 { 128.0 } else { 0.0 } }
    }

    /// Of a tensor without scales; `None` if the elements are the numbers themselves.
    pub(crate) fn of_plain(dtype: Dtype) -> Option<Dequant<'a>> {
        let one = Quant { scale: None, zero: None, stride: [0; 4], group: [1; 2] };
        matches!(dtype, Dtype::U8 | Dtype::F8E4M3).then(|| Dequant::new(one, dtype))
    }

    /// Whether anything is subtracted from elements.
    pub(crate) fn has_zeros(&self) -> bool {
        self.zero.is_some() || self.less != 0.0
    }

    /// Scale and zero of element `d` of the row whose first values are at `at`.
    #[inline(always)]
    pub(crate) fn of(&self, at: usize, d: usize) -> [f32; 2] {
        let [scale, zero] = self.given.of(at, d);
        [scale * self.factor, zero - self.less]
    }
}

impl<'a> Deref for Dequant<'a> {
    type Target = Quant<'a>;

    #[inline(always)]
    fn deref(&self) -> &Quant<'a> {
        &self.given
    }
}

/// Scales and zeros to be written; [`Quant`] reads them.
#[derive(Debug)]
pub struct QuantMut<'a> {
    /// A value for each cell.
    pub scale: ArrayMut<'a>,
    /// None: all are 0.
    pub zero: Option<ArrayMut<'a>>,
    /// Values from one batch entry, head, group of tokens, group of elements to the next; see
    /// [`Quant`].
    pub stride: [usize; 4],
    /// Tokens, and elements of a row, that share values; see [`Quant`].
    pub group: [usize; 2],
}

impl QuantMut<'_> {
    /// Batch entries, heads, tokens and elements of a row that share a value: a whole cell.
    pub(crate) fn cell(&self, layout: &Layout) -> [usize; 4] {
        let [batch, heads, tokens] = layout.extent;
        let mut cell = [1, 1, self.group[0].min(tokens), self.group[1].min(layout.dim)];
        for (axis, all) in [batch, heads, tokens, layout.dim].into_iter().enumerate() {
            if self.stride[axis] == 0 {
                cell[axis] = all;
            }
        }
        cell
    }

    /// Whether there is a place for each cell, and none for two.
    pub(crate) fn check(&self, layout: &Layout) -> Result<(), Error> {
        if self.group.contains(&0) {
            return Err(Error::ZeroExtent);
        }
        let len = Quant::len(self.stride, self.group, layout)?;
        if self.scale.len() < len || self.zero.as_ref().is_some_and(|zero| zero.len() < len) {
            return Err(Error::Shape);
        }
        if len == 0 {
            return Ok(());
        }
        let [batch, heads, tokens] = layout.extent;
        let (all, cell) = ([batch, heads, tokens, layout.dim], self.cell(layout));
        let axes = [0, 1, 2, 3].map(|axis| (self.stride[axis], all[axis].div_ceil(cell[axis])));
        if is_nested(axes, 1) { Ok(()) } else { Err(Error::Stride) }
    }

    /// Addresses of scales and zeros.
    pub(crate) fn addresses(&self) -> [Range<usize>; 2] {
        [self.scale.addresses(), self.zero.as_ref().map_or(0..0, ArrayMut::addresses)]
    }
}

/// Where the values of element (or token) `i` are among those of its axis. Divides only where there
/// is something to tell apart, as rows are looked up one by one.
#[inline(always)]
fn group(i: usize, size: usize, stride: usize) -> usize {
    match (size, stride) {
        (_, 0) => 0,
        (1, _) => i * stride,
        _ => i / size * stride,
    }
}
