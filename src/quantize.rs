//! Quantisation to integers, and to 8-bit floating-point numbers, whose scales are found; [`Round`]
//! makes numbers of the other types. A cell is the elements that share a scale, and perhaps a zero
//! point.
//!
//! Two passes over a cell: its minimum and maximum, then the elements. Every step is an operation
//! that all instruction sets round alike (no fused multiply-add, no reciprocal), so that they all
//! write the same bits.

mod round;

use std::ops::Range;

use crate::dtype::{Dtype, Stored, bf16::Bf16, f8, f16::F16, f32::F32, q15};
use crate::error::Error;
use crate::simd::{Body, Isa, MAX_LANES};
use crate::view::{Layout, QuantMut, View, ViewMut, overlap};
pub use round::Round;

/// A tensor to be quantised and where its elements and scales go; consistent by construction.
#[derive(Debug)]
pub struct Quantize<'a> {
    src: View<'a>,
    dst: ViewMut<'a>,
    smooth: Option<View<'a>>,
    quant: QuantMut<'a>,
}

impl<'a> Quantize<'a> {
    /// Checks the tensors. `smooth`, which is f32, is subtracted from `src` before it is quantised.
    pub fn new(
        src: View<'a>,
        dst: ViewMut<'a>,
        smooth: Option<View<'a>>,
        quant: QuantMut<'a>,
    ) -> Result<Quantize<'a>, Error> {
        let (from, to) = (src.layout(), dst.layout());
        let has_zeros = quant.zero.is_some();
        if !from.dtype.is_float() || !to.dtype.takes_scales() || (has_zeros && !to.dtype.takes_zeros()) {
            return Err(Error::Dtype);
        }
        // Nothing else could stand for numbers below 0.
        if to.dtype == Dtype::U8 && !has_zeros {
            return Err(Error::Null);
        }
        if (from.extent, from.dim) != (to.extent, to.dim) {
            return Err(Error::Shape);
        }
        if let Some(smooth) = smooth.as_ref().map(View::layout)
            && (smooth.dtype, smooth.extent, smooth.dim) != (Dtype::F32, from.extent, from.dim)
        {
            return Err(Error::Shape);
        }
        if from.is_strided() || smooth.is_some_and(|smooth| smooth.layout().is_strided()) {
            return Err(Error::Stride);
        }
        quant.check(to)?;
        let [scale, zero] = quant.addresses();
        let all = [dst.addresses(), scale, zero, src.addresses(), smooth.map_or(0..0, |x| x.addresses())];
        // Inputs may be the same memory.
        for (i, output) in all.iter().enumerate().take(3) {
            if all[i + 1..].iter().any(|other| overlap(output, other)) {
                return Err(Error::Overlap);
            }
        }
        Ok(Quantize { src, dst, smooth, quant })
    }
}

/// Batch entries, heads, tokens, elements of a row.
type Span = [Range<usize>; 4];

/// Minimum and maximum of a cell, or of each lane. `has_nonfinite` is NaN if a number is not
/// finite, else 0.
struct Bounds<V> {
    min: V,
    max: V,
    has_nonfinite: V,
}

/// How the numbers of a cell become integers: x / scale + zero, from `low` to `high`.
struct Step<V> {
    scale: V,
    zero: V,
    low: V,
    high: V,
}

impl Step<f32> {
    /// All elements become the same integer.
    #[inline(always)]
    fn flat(scale: f32, integer: f32) -> Step<f32> {
        Step { scale, zero: 0.0, low: integer, high: integer }
    }

    /// From -`limit` to `limit`.
    #[inline(always)]
    fn symmetric(of: &Bounds<f32>, limit: f32) -> Step<f32> {
        let most = if of.max > -of.min { of.max } else { -of.min };
        let scale = most / limit;
        if of.has_nonfinite.is_nan() {
            Step::flat(f32::NAN, 0.0)
        } else if scale < f32::MIN_POSITIVE {
            // Too few bits are left of such a scale to divide by it.
            Step::flat(0.0, 0.0)
        } else {
            Step { scale, zero: 0.0, low: -limit, high: limit }
        }
    }

    /// 256 integers from `low` on.
    #[inline(always)]
    fn affine(of: &Bounds<f32>, low: f32) -> Step<f32> {
        let range = of.max - of.min;
        // Halves do not overflow.
        let scale = if range < f32::INFINITY { range / 255.0 } else { (of.max * 0.5 - of.min * 0.5) / 127.5 };
        if of.has_nonfinite.is_nan() {
            Step::flat(f32::NAN, 0.0)
        } else if scale < f32::MIN_POSITIVE {
            // One number, times 1. The sum makes -0 what all instruction sets find.
            Step::flat(of.min + 0.0, 1.0)
        } else {
            // An integer, so that rounding it costs nothing more than rounding each element does.
            let zero = (low - of.min / scale).round_ties_even();
            Step { scale, zero, low, high: low + 255.0 }
        }
    }
}

/// The number of each lane.
static LANE: [f32; MAX_LANES] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

impl Body for &mut Quantize<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        // SAFETY: I4: `s` was detected. I9: `new` takes no other types than these.
        unsafe {
            match self.src.layout().dtype {
                Dtype::F16 => self.cells::<S, F16>(s),
                Dtype::Bf16 => self.cells::<S, Bf16>(s),
                // Types that `new` refuses are named, so that a new one is not taken for f32.
                Dtype::F32
                | Dtype::I8
                | Dtype::Bool8
                | Dtype::Q8_0
                | Dtype::Q4_0
                | Dtype::Q4_1
                | Dtype::Q5_0
                | Dtype::Q5_1
                | Dtype::Iq4Nl
                | Dtype::F8E4M3
                | Dtype::F8E5M2
                | Dtype::U8
                | Dtype::Q15 => self.cells::<S, F32>(s),
            }
        }
    }
}

impl Quantize<'_> {
    /// Quantises all cells, whose numbers are stored as `T`.
    ///
    /// # Safety
    /// `T` is the storage type of `src`.
    #[inline(always)]
    unsafe fn cells<S: Isa, T: Stored>(&mut self, s: S) {
        let layout = *self.src.layout();
        let Layout { extent: [batch, heads, tokens], dim, .. } = layout;
        if dim == 0 || layout.extent.contains(&0) {
            return;
        }
        let stride = self.quant.stride;
        let cell = self.quant.cell(&layout);
        // Groups that are narrower than a vector are quantised together, as many as fit into one.
        let narrow = stride[3] != 0 && cell[3] < S::LANES;
        let width = if narrow { (S::LANES / cell[3] * cell[3]).min(dim) } else { cell[3] };
        let step = width / cell[3] * stride[3];
        for (i, b) in (0..batch).step_by(cell[0]).enumerate() {
            let place = i * stride[0];
            for (i, h) in (0..heads).step_by(cell[1]).enumerate() {
                let place = place + i * stride[1];
                for (i, t) in (0..tokens).step_by(cell[2]).enumerate() {
                    let place = place + i * stride[2];
                    for (i, d) in (0..dim).step_by(width).enumerate() {
                        let place = place + i * step;
                        let span = [
                            b..batch.min(b + cell[0]),
                            h..heads.min(h + cell[1]),
                            t..tokens.min(t + cell[2]),
                            d..dim.min(d + width),
                        ];
                        // SAFETY: I2: the span is clipped to the extents of the views. I9: `T` is
                        // their type.
                        unsafe {
                            let bounds = self.bounds::<S, T>(s, &span);
                            let step = if narrow {
                                self.lanes(s, bounds, span[3].len(), place)
                            } else {
                                self.whole(s, bounds, place)
                            };
                            self.write::<S, T>(s, &span, &step);
                        }
                    }
                }
            }
        }
    }

    /// Minimum and maximum of the elements of a span. Lane i has those of channels i, i + LANES,
    /// ...
    ///
    /// # Safety
    /// The span lies within the views; `T` is the storage type of `src`.
    #[inline(always)]
    unsafe fn bounds<S: Isa, T: Stored>(&self, s: S, span: &Span) -> Bounds<S::F32> {
        let [most, least] = [s.splat(f32::INFINITY), s.splat(f32::NEG_INFINITY)];
        let mut all = Bounds { min: most, max: least, has_nonfinite: s.splat(0.0) };
        let [batch, heads, tokens, dims] = span;
        for b in batch.clone() {
            for h in heads.clone() {
                for t in tokens.clone() {
                    for d in dims.clone().step_by(S::LANES) {
                        let n = S::LANES.min(dims.end - d);
                        // SAFETY: I2, I7: `n` elements of this span, which lies within the views.
                        let x = unsafe { self.load::<S, T>(s, [b, h, t], d, n) };
                        let (mut low, mut high) = (x, x);
                        if n < S::LANES {
                            // SAFETY: I7: `LANE` is as long as any vector.
                            let used = s.gt(s.splat(n as f32), unsafe { s.load(LANE.as_ptr()) });
                            low = s.select(used, x, most);
                            high = s.select(used, x, least);
                        }
                        all.min = s.min(low, all.min);
                        all.max = s.max(high, all.max);
                        all.has_nonfinite = s.add(all.has_nonfinite, s.mul(x, s.splat(0.0)));
                    }
                }
            }
        }
        all
    }

    /// The step of a cell that all lanes belong to.
    #[inline(always)]
    fn whole<S: Isa>(&mut self, s: S, of: Bounds<S::F32>, place: usize) -> Step<S::F32> {
        // A NaN in any lane decides alone.
        let [min, max] = [-s.horizontal_max(s.sub(s.splat(0.0), of.min)), s.horizontal_max(of.max)];
        let step = self.cell(&Bounds { min, max, has_nonfinite: s.horizontal_sum(of.has_nonfinite) }, place);
        let Step { scale, zero, low, high } = step;
        Step { scale: s.splat(scale), zero: s.splat(zero), low: s.splat(low), high: s.splat(high) }
    }

    /// The steps of narrow groups, which lie side by side in the first `n` lanes.
    #[inline(always)]
    fn lanes<S: Isa>(&mut self, s: S, of: Bounds<S::F32>, n: usize, place: usize) -> Step<S::F32> {
        let mut lanes =
            Bounds { min: [0.0; MAX_LANES], max: [0.0; MAX_LANES], has_nonfinite: [0.0; MAX_LANES] };
        // SAFETY: I7: the arrays are as long as any vector.
        unsafe {
            s.store(lanes.min.as_mut_ptr(), of.min);
            s.store(lanes.max.as_mut_ptr(), of.max);
            s.store(lanes.has_nonfinite.as_mut_ptr(), of.has_nonfinite);
            let step = self.groups(&lanes, n, place);
            Step {
                scale: s.load(step.scale.as_ptr()),
                zero: s.load(step.zero.as_ptr()),
                low: s.load(step.low.as_ptr()),
                high: s.load(step.high.as_ptr()),
            }
        }
    }

    /// The steps of narrow groups, from bounds in an array. Out of line, as it uses no vectors: one
    /// copy serves all instruction sets.
    #[inline(never)]
    fn groups(&mut self, of: &Bounds<[f32; MAX_LANES]>, n: usize, place: usize) -> Step<[f32; MAX_LANES]> {
        let mut steps = Step {
            scale: [1.0; MAX_LANES],
            zero: [0.0; MAX_LANES],
            low: [0.0; MAX_LANES],
            high: [0.0; MAX_LANES],
        };
        let group = self.quant.group[1];
        for first in (0..n).step_by(group) {
            let lanes = first..n.min(first + group);
            let mut bounds = Bounds { min: f32::INFINITY, max: f32::NEG_INFINITY, has_nonfinite: 0.0 };
            for i in lanes.clone() {
                bounds.min = bounds.min.min(of.min[i]);
                bounds.max = bounds.max.max(of.max[i]);
                bounds.has_nonfinite += of.has_nonfinite[i];
            }
            let step = self.cell(&bounds, place + first / group * self.quant.stride[3]);
            steps.scale[lanes.clone()].fill(step.scale);
            steps.zero[lanes.clone()].fill(step.zero);
            steps.low[lanes.clone()].fill(step.low);
            steps.high[lanes].fill(step.high);
        }
        steps
    }

    /// The step of one cell, whose scale and zero are written to `place`.
    #[inline(always)]
    fn cell(&mut self, of: &Bounds<f32>, place: usize) -> Step<f32> {
        let dtype = self.dst.layout().dtype;
        let step = if self.quant.zero.is_some() {
            Step::affine(of, if dtype == Dtype::U8 { 0.0 } else { -128.0 })
        } else {
            let largest = match dtype {
                Dtype::Q15 => q15::LARGEST,
                _ if dtype.is_f8() => f8::largest(dtype),
                _ => 127.0,
            };
            Step::symmetric(of, largest)
        };
        // A step is that between integers. Of numbers next to the largest f32 the scale of Q15
        // would be infinite; of NaN it is NaN.
        let scale = match dtype {
            Dtype::Q15 if step.scale > f32::MAX / q15::ONE => f32::MAX,
            Dtype::Q15 => step.scale * q15::ONE,
            _ => step.scale,
        };
        self.quant.scale.set(place, scale);
        if let Some(zero) = &mut self.quant.zero {
            zero.set(place, step.zero);
        }
        step
    }

    /// Writes the elements of a span.
    ///
    /// # Safety
    /// The span lies within the views; `T` is the storage type of `src`.
    #[inline(always)]
    unsafe fn write<S: Isa, T: Stored>(&self, s: S, span: &Span, step: &Step<S::F32>) {
        let [batch, heads, tokens, dims] = span;
        for b in batch.clone() {
            for h in heads.clone() {
                for t in tokens.clone() {
                    let (to, size) = (self.dst.row(b, h, t), self.dst.layout().dtype.block_bytes());
                    for d in dims.clone().step_by(S::LANES) {
                        let n = S::LANES.min(dims.end - d);
                        // SAFETY: I2, I7: `n` elements of this span, which lies within the views.
                        // I3: `self` is the only one that writes `dst`.
                        unsafe {
                            let x = self.load::<S, T>(s, [b, h, t], d, n);
                            let x = s.add(s.div(x, step.scale), step.zero);
                            // In cells with a NaN, low and high are equal: NaN becomes that
                            // integer.
                            let x = s.min(s.max(x, step.low), step.high);
                            let to = to.wrapping_add(d * size);
                            if self.dst.layout().dtype != Dtype::I8 {
                                let mut values = [0.0; MAX_LANES];
                                s.store(values.as_mut_ptr(), x);
                                self.write_others(to, n, &values);
                            } else if n == S::LANES {
                                s.store_i8(to.cast(), x);
                            } else {
                                let mut bytes = [0; MAX_LANES];
                                s.store_i8(bytes.as_mut_ptr(), x);
                                write_first(to.cast(), n, &bytes);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Writes `n` elements of another type than I8. Kept out of line: one copy serves all
    /// instruction sets.
    ///
    /// # Safety
    /// `to` has room for `n` elements.
    #[inline(never)]
    unsafe fn write_others(&self, to: *mut u8, n: usize, values: &[f32; MAX_LANES]) {
        let bytes = match self.dst.layout().dtype {
            Dtype::Q15 => {
                let integers = values.map(|x| x.round_ties_even() as i16);
                // SAFETY: I7: room for `n` elements (caller).
                return unsafe { write_first(to.cast(), n, &integers) };
            }
            Dtype::U8 => values.map(|x| x.round_ties_even() as u8),
            dtype => f8::round(dtype, values),
        };
        // SAFETY: I7: room for `n` bytes (caller).
        unsafe { write_first(to, n, &bytes) };
    }

    /// `n` elements (at most a vector) from `d` on, smoothed; other lanes are 0.
    ///
    /// # Safety
    /// They lie within the views; `T` is the storage type of `src`.
    #[inline(always)]
    unsafe fn load<S: Isa, T: Stored>(&self, s: S, [b, h, t]: [usize; 3], d: usize, n: usize) -> S::F32 {
        // SAFETY: I2, I7: `n` elements of a row of the views.
        unsafe {
            let x = T::load_rest(s, self.src.row(b, h, t), d, d + n);
            match &self.smooth {
                None => x,
                Some(smooth) => s.sub(x, F32::load_rest(s, smooth.row(b, h, t), d, d + n)),
            }
        }
    }
}

/// Writes `n` integers. Kept out of line: LLVM lowers this loop to memcpy, and the call would spill
/// the registers of the kernel.
///
/// # Safety
/// `to` has room for `n` of them.
#[inline(never)]
unsafe fn write_first<T: Copy>(to: *mut T, n: usize, integers: &[T; MAX_LANES]) {
    for (i, &x) in integers.iter().enumerate().take(n) {
        // SAFETY: I7: i < n, and there is room for n integers.
        unsafe { to.wrapping_add(i).write_unaligned(x) };
    }
}
