//! Conversion of stored rows to f32 in scratch memory: a block of keys or a few queries at a time,
//! never a whole tensor. Rows of f32 are copied.

use std::ops::Range;

use super::gather;
use super::rows::Source;
use crate::dtype::f16::F16;
use crate::dtype::i8::I8;
use crate::dtype::q15::Q15;
use crate::dtype::{Dtype, Stored, with_qkv_type};
use crate::simd::{Body, Isa};
use crate::view::{Array, Dequant, Quant};

/// Bytes of a row of `dim` f32: an odd number of cache lines, so that the rows of a register tile
/// never compete for the same sets of L1.
#[inline(always)]
pub(crate) fn row_bytes(dim: usize) -> usize {
    // Saturates where no machine has the memory: the plan then finds no room.
    (dim.div_ceil(16) | 1).saturating_mul(64)
}

/// Writes `n` rows of `dim` elements as f32, [`row_bytes`] apart. Kept out of line, so that the
/// code exists once for each instruction set and not in each kernel.
///
/// # Safety
/// `source` has `n` rows of `dim` elements; `to` has room for as many rows.
#[inline(never)]
pub(crate) unsafe fn convert<S: Isa>(s: S, source: Source, n: usize, dim: usize, to: *mut u8) {
    if source.view.layout().is_strided() || source.dtype() != source.dtype().read_as() {
        // SAFETY: the caller's rows, and room for them.
        return unsafe { convert_gathered(s.core(), source, n, dim, to) };
    }
    s.core().enter(Convert { source, n, dim, to });
}

/// [`convert`] of rows whose elements lie apart, or are read as another type. Each is gathered
/// where its last f32 go, which are not written before the elements there have been read.
///
/// # Safety
/// As [`convert`].
#[inline(never)]
unsafe fn convert_gathered<S: Isa>(s: S, source: Source, n: usize, dim: usize, to: *mut u8) {
    let behind = 4 * dim - source.dtype().read_as().row_bytes(dim).unwrap_or(0);
    for i in 0..n {
        let (source, to) = (source.skip(i), to.wrapping_add(i * row_bytes(dim)));
        let stored = to.wrapping_add(behind);
        // SAFETY: one of the rows, and room for it as f32, of which the stored elements take the
        // end (caller).
        unsafe {
            gather::gather_row(source, dim, stored);
            let view = &source.view.gathered(source.at[2], stored, 0);
            convert(s, Source { view, ..source }, 1, dim, to);
        }
    }
}

/// The arguments of [`convert`], which alone makes one and vouches for its pointers.
struct Convert<'a> {
    source: Source<'a>,
    n: usize,
    dim: usize,
    to: *mut u8,
}

impl Body for Convert<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        // SAFETY: `convert` made this and vouches for source and scratch; rows are stored as T
        // (I9), and as I8, Q15, or F16 that was of 8 bits, if they have scales, as views make sure.
        unsafe {
            match (self.source.view.quant(), self.source.dtype()) {
                (None, dtype) => with_qkv_type!(dtype, T => self.rows::<S, T>(s)),
                (Some(quant), Dtype::F16) => self.quantised::<S, F16>(s, quant),
                (Some(quant), Dtype::Q15) => self.quantised::<S, Q15>(s, quant),
                (Some(quant), _) => self.quantised::<S, I8>(s, quant),
            }
        }
    }
}

/// Elements of a row whose scales and zeros are laid out side by side at a time.
const GATHERED: usize = 256;

/// Scales, or zeros, of these elements.
struct Gathered([f32; GATHERED]);

impl Gathered {
    /// All the same. Kept out of line, as [`gather`] is.
    #[inline(never)]
    fn of(x: f32) -> Gathered {
        Gathered([x; GATHERED])
    }
}

/// Elements of a group from which on it is filled by a loop of its own.
const FILLED: usize = 16;

impl Convert<'_> {
    /// [`convert`] of rows that are stored as `T`, and have no scales.
    ///
    /// # Safety
    /// Source and scratch are as [`convert`] asks; the rows are stored as `T`.
    #[inline(always)]
    unsafe fn rows<S: Isa, T: Stored>(&self, s: S) {
        let from = self.source.rows();
        for i in 0..self.n {
            // SAFETY: one of the `n` rows of `dim` elements, and room for it (caller).
            unsafe { T::convert_row(s, from.skip(i).base, self.dim, self.row(i)) };
        }
    }

    /// Where row `i` goes.
    #[inline(always)]
    fn row(&self, i: usize) -> *mut f32 {
        self.to.wrapping_add(i * row_bytes(self.dim)).cast::<f32>()
    }

    /// [`convert`] of elements with scales.
    ///
    /// # Safety
    /// Source and scratch are as [`convert`] asks; the rows are stored as `T`.
    #[inline(always)]
    unsafe fn quantised<S: Isa, T: Stored>(&self, s: S, quant: &Dequant) {
        let (dim, group) = (self.dim, quant.group[1]);
        let at = |i| quant.at(self.source.skip(i).at);
        // SAFETY: elements below `dim` of rows below `n` (caller); the arrays have as many numbers
        // as are converted with them at a time.
        unsafe {
            if quant.stride[3] == 0 || group >= dim {
                for i in 0..self.n {
                    let of_row = quant.of(at(i), 0).map(|x| s.splat(x));
                    self.elements::<S, T>(s, i, 0..dim, |_| of_row);
                }
                return;
            }
            if group.is_multiple_of(S::LANES) {
                for i in 0..self.n {
                    let mut at = at(i);
                    for first in (0..dim).step_by(group) {
                        let of_group = quant.of(at, 0).map(|x| s.splat(x));
                        self.elements::<S, T>(s, i, first..dim.min(first + group), |_| of_group);
                        at += quant.stride[3];
                    }
                }
                return;
            }
            let (mut scales, mut zeros) = (Gathered::of(quant.factor), Gathered::of(-quant.less));
            let (scales, zeros) = (&mut scales.0, &mut zeros.0);
            for first in (0..dim).step_by(GATHERED) {
                let elements = first..dim.min(first + GATHERED);
                let mut gathered = None;
                for i in 0..self.n {
                    let at = at(i);
                    if gathered != Some(at) {
                        gather(quant, quant.scale, [quant.factor, 0.0], at, &elements, scales);
                        gather(quant, quant.zero, [1.0, quant.less], at, &elements, zeros);
                        gathered = Some(at);
                    }
                    let (scales, zeros) = (scales.as_ptr(), zeros.as_ptr());
                    self.elements::<S, T>(s, i, elements.clone(), |d| {
                        [s.load(scales.add(d - first)), s.load(zeros.add(d - first))]
                    });
                }
            }
        }
    }

    /// Some elements of row `i`; `values` gives scales and zeros of a vector of them.
    ///
    /// # Safety
    /// As [`Convert::quantised`].
    #[inline(always)]
    unsafe fn elements<S: Isa, T: Stored>(
        &self,
        s: S,
        i: usize,
        elements: Range<usize>,
        values: impl Fn(usize) -> [S::F32; 2],
    ) {
        let (row, to) = (self.source.rows().skip(i).base, self.row(i));
        let whole = elements.end - elements.len() % S::LANES;
        // SAFETY: elements of the row, and room for them (caller).
        unsafe {
            for d in (elements.start..whole).step_by(S::LANES) {
                let [scale, zero] = values(d);
                s.store(to.wrapping_add(d), s.mul(s.sub(T::load(s, row, d), zero), scale));
            }
            if whole < elements.end {
                let [scale, zero] = values(whole);
                let n = elements.end - whole;
                let x = s.mul(s.sub(T::load_partial(s, row, whole, n), zero), scale);
                s.store_partial(to.wrapping_add(whole), n, x);
            }
        }
    }
}

/// Writes each of `values` `GROUP` times.
///
/// # Safety
/// There is a value for each group, the last one included, which may be smaller.
#[inline(always)]
unsafe fn spread<const GROUP: usize>(values: *const f32, to: &mut [f32]) {
    let (groups, rest) = to.as_chunks_mut::<GROUP>();
    // SAFETY: a value for each group (caller).
    unsafe {
        rest.fill(if rest.is_empty() { 0.0 } else { values.wrapping_add(groups.len()).read_unaligned() });
        for (i, group) in groups.iter_mut().enumerate() {
            *group = [values.wrapping_add(i).read_unaligned(); GROUP];
        }
    }
}

/// Writes the scales, or the zeros, of some elements of the row whose first ones are at `at`, all
/// of them times `factor` and minus `less`. Nothing where there is no list: the array has what that
/// means.
#[inline(never)]
fn gather(
    quant: &Quant,
    list: Option<Array<f32>>,
    [factor, less]: [f32; 2],
    at: usize,
    elements: &Range<usize>,
    to: &mut [f32; GATHERED],
) {
    let Some(list) = list else { return };
    gather_list(quant, list, at, elements, to);
    if [factor, less] != [1.0, 0.0] {
        to.iter_mut().for_each(|x| *x = *x * factor - less);
    }
}

/// [`gather`] of a list as it is. Kept out of line: LLVM lowers its loops to memcpy and memset,
/// whose calls would spill the registers of the loops around it.
#[inline(never)]
fn gather_list(
    quant: &Quant,
    list: Array<f32>,
    at: usize,
    elements: &Range<usize>,
    to: &mut [f32; GATHERED],
) {
    let (group, stride) = (quant.group[1], quant.stride[3]);
    let to = &mut to[..elements.len()];
    // Groups of these sizes begin where the elements do, as `GATHERED` is a multiple of them, and a
    // loop that knows the size becomes vector code.
    if stride == 1 {
        let values = list.values(at + elements.start / group, elements.len().div_ceil(group));
        // SAFETY: one value for each group, the last of which may have fewer elements.
        unsafe {
            match group {
                1 => return spread::<1>(values, to),
                2 => return spread::<2>(values, to),
                4 => return spread::<4>(values, to),
                8 => return spread::<8>(values, to),
                _ => {}
            }
        }
    }
    // The first group may have begun before these elements.
    let mut at = at + elements.start / group * stride;
    let mut here = group - elements.start % group;
    if group < FILLED {
        let mut x = list.get(at);
        for to in to {
            if here == 0 {
                at += stride;
                (x, here) = (list.get(at), group);
            }
            here -= 1;
            *to = x;
        }
        return;
    }
    let mut rest = to;
    while !rest.is_empty() {
        let (now, later) = rest.split_at_mut(here.min(rest.len()));
        now.fill(list.get(at));
        (rest, at, here) = (later, at + stride, group);
    }
}
