//! `fa_quantize`, `fa_quantize_i8`.

use std::ptr;

use super::describe::{self, Places, about, extent};
use super::guard;
use super::status::fa_status;
use super::tensor::{fa_dtype, fa_tensor};
use crate::dtype::Dtype;
use crate::error::names::{Names, UNSIGNED, names};
use crate::error::{Error, Refusal};
use crate::kernel;
use crate::quantize::{Quantize, Round};
use crate::view::{ArrayMut, Layout, QuantMut, View, ViewMut};

/// Converts a tensor to any storage type that fa_attention takes as Q, K or V: a whole tensor at
/// once, or the new tokens of a cache (for which there is also fa_cache_append).
///
/// - FA_DTYPE_F32, _F16, _BF16: each number is rounded to nearest even. A number that is too large
///   becomes an infinity (f16: from 65520 on), one that is too small becomes 0 with its sign;
///   subnormal numbers of the type are kept. A NaN stays a NaN with its sign, and may become quiet.
/// - FA_DTYPE_Q15 without quant: each number times 32,768 is rounded to nearest even. What is too
///   large, infinities included, becomes 32767 or -32768, and NaN becomes 0.
/// - FA_DTYPE_Q8_0, _Q4_0, _Q4_1, _Q5_0, _Q5_1, _IQ4_NL: the blocks that ggml's reference functions
///   write, bit for bit (as quantize_row_q8_0_ref, without fused multiply-adds). ggml does not
///   expect NaN and infinities; a block with one gets a scale of NaN and 0 in everything else, so
///   that attention gives NaN wherever the block is visible. A scale (or minimum) beyond the range
///   of binary16 is infinite, as in ggml. Codes saturate where a scale is too small to divide by
///   it.
/// - FA_DTYPE_F8_E4M3, _F8_E5M2 without quant: each number is rounded to nearest even. A number
///   that is too large, infinities included, becomes the largest number; subnormal numbers of the
///   type are kept. A NaN stays a NaN with its sign.
/// - FA_DTYPE_I8: as fa_quantize_i8 without smooth, with the same rules and statuses.
/// - FA_DTYPE_U8, whose quant must have zeros (else FA_ERR_NULL): as FA_DTYPE_I8 with zeros, but
///   zero = -min x / scale, and stored is 0 to 255.
/// - FA_DTYPE_F8_E4M3, _F8_E5M2 with a quant, which must not have zeros (else FA_ERR_DTYPE): as
///   FA_DTYPE_I8 without zeros, but scale = max |x| / 448 or max |x| / 57344, and stored is x /
///   scale rounded as above.
/// - FA_DTYPE_Q15 with a quant without zeros: as FA_DTYPE_I8 without zeros, but scale is 32768
///   times max |x| / 32767 (FLT_MAX, where that is infinite), and stored is x divided by max |x| /
///   32767. Scale and stored are 0 where max |x| / 32767 would be less than FLT_MIN.
///
/// @param src     [batch][heads][tokens][dim], FA_DTYPE_F32, _F16 or _BF16
/// @param batch, heads, tokens  at least 0; if one is 0, nothing happens
/// @param dim     at least 1; a multiple of 32 for types in blocks
/// @param dst     the same sizes; its rows must not overlap. OUTPUTS are its elements, and those of
///                quant, which FA_DTYPE_I8 and _U8 need, and _Q15, _F8_E4M3 and _F8_E5M2 may have;
///                for other types quant is NULL
/// @return FA_OK; FA_ERR_NULL; FA_ERR_SHAPE (a size is negative, or dim is not made of whole
///         blocks); FA_ERR_ZERO_EXTENT (dim is 0); FA_ERR_DTYPE (also if src has a quant);
///         FA_ERR_STRIDE (negative, not a multiple of the element size, a stride_dim, or rows of
///         dst overlap); FA_ERR_OVERFLOW; FA_ERR_ISA; FA_ERR_OVERLAP (dst shares memory with src;
///         all bytes from the first to the last one of a tensor belong to it). On errors nothing
///         has been written. Bytes between the rows of dst are never written.
///
/// Not promised: which bits a NaN has. All instruction sets give the same bits, also those of NaN.
///
/// Computes on the calling thread and allocates nothing. Thread-safe: several threads may each
/// write a part.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fa_quantize(
    src: *const fa_tensor,
    batch: i64,
    heads: i64,
    tokens: i64,
    dim: i64,
    dst: *const fa_tensor,
) -> fa_status {
    guard(|| {
        if src.is_null() || dst.is_null() {
            return Err(Error::Null);
        }
        // SAFETY: I1: not NULL, so both are tensors; no alignment is assumed.
        let (src, dst) = unsafe { (src.read_unaligned(), dst.read_unaligned()) };
        let sizes = [batch, heads, tokens, dim];
        let is_integer =
            [fa_dtype::FA_DTYPE_I8, fa_dtype::FA_DTYPE_U8].iter().any(|&dtype| dtype as i32 == dst.dtype);
        if is_integer || !dst.quant.is_null() {
            // SAFETY: I1: tensors and scales are as documented.
            let mut what = unsafe { read(&src, sizes, ptr::null(), &dst, Dtype::takes_scales)? };
            return kernel::best()?.quantize(&mut what);
        }
        let [from, to] = layouts(&src, sizes, &dst)?.map(present);
        // SAFETY: I1: tensors of these layouts, the second an output.
        let what = unsafe {
            let src = View::new(src.data.cast(), from).map_err(about(SRC.tensor, &from))?;
            Round::new(src, ViewMut::new(dst.data.cast(), to).map_err(about(DST.tensor, &to))?)?
        };
        kernel::best()?.round(&what)
    })
}

/// Quantises a tensor to 8-bit integers, and finds their scales (and zeros), for fa_attention to
/// take as Q, K or V: a whole tensor at once, or the new tokens of a cache.
///
/// A cell is all elements that share a scale. dst->quant says which: the whole tensor if all its
/// strides are 0, else each batch entry (or page), head, group_tokens tokens, group_dims channels,
/// or any combination. Different cells must have different scales in memory.
///
/// Without zeros (dst->quant->zero is NULL), for the numbers x of a cell: scale = max |x| / 127;
/// stored = x / scale, rounded to nearest even, -127 to 127. With zeros: scale = (max x - min x) /
/// 255; zero = -128 - min x / scale, rounded to an integer (of any size: 0 need not be among the
/// numbers); stored = x / scale + zero, rounded to nearest even, -128 to 127. In both cases
/// (stored - zero) * scale differs from x by at most scale / 2, and by what rounding to float costs
/// numbers as large as the largest of the cell.
///
/// Special cells. All numbers equal: with zeros they are reproduced exactly (zero = 0, stored = 1,
/// scale is the number). A scale that would be less than FLT_MIN: without zeros, scale and stored
/// are 0; with zeros, the whole cell becomes its smallest number. A NaN or an infinity (after
/// smoothing): the scale is NaN, zero and stored are 0, so that attention gives NaN wherever the
/// cell is visible. Other cells are not affected, and the call returns FA_OK. (If the whole tensor
/// shares that scale, fa_attention_run refuses it later: FA_ERR_QUANT_SCALE.)
///
/// Smoothing: keys often have channels far from 0, by the same number for all tokens, which cost
/// most of the integers' range. Softmax does not change if one vector is subtracted from all keys
/// of a head, as all scores of a query then change by the same number. So subtract the mean of each
/// channel over the tokens, for K only ("smoothing K" of SageAttention, arXiv:2410.02367). Nothing
/// has to be added afterwards, except to a log-sum-exp: scale times query times smooth. All keys
/// that a query sees must have had the same vector subtracted. Do not smooth with softcap or sinks,
/// which do not shift with the scores.
///
/// @param src     [batch][heads][tokens][dim], FA_DTYPE_F32, _F16 or _BF16 (which become float
///                exactly)
/// @param batch, heads, tokens  at least 0; if one is 0, nothing happens
/// @param dim     at least 1
/// @param smooth  NULL, or [heads][dim], dense: subtracted from each element first, rounded once
/// @param dst     the same sizes, FA_DTYPE_I8, with quant; its rows must not overlap. OUTPUTS are
///                its elements, quant->scale (needed) and quant->zero (or NULL), although fa_quant
///                says const
/// @return FA_OK; FA_ERR_NULL; FA_ERR_SHAPE (a size is negative); FA_ERR_ZERO_EXTENT (dim, or a
///         group that matters, is 0); FA_ERR_DTYPE (also if src has a quant); FA_ERR_STRIDE
///         (negative, not a multiple of the element size, a stride_dim, rows of dst overlap, or two
///         cells have the same place); FA_ERR_OVERFLOW; FA_ERR_ISA; FA_ERR_OVERLAP (dst, scales or
///         zeros share memory with each other, src or smooth; as in fa_attention, all bytes from
///         the first to the last one of a tensor or an array belong to it)
///
/// Cells have different places if each stride of quant is larger than the largest offset that the
/// smaller strides reach together. This is demanded. Strides of axes with one cell do not matter.
///
/// Not promised: that numbers within a step of FLT_MAX do not become infinite when the integers
/// become numbers again; the sign of 0; equal bits in different versions. All instruction sets give
/// the same bits.
///
/// Computes on the calling thread and allocates nothing. Thread-safe: several threads may each
/// quantise a part.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fa_quantize_i8(
    src: *const fa_tensor,
    batch: i64,
    heads: i64,
    tokens: i64,
    dim: i64,
    smooth: *const f32,
    dst: *const fa_tensor,
) -> fa_status {
    guard(|| {
        if src.is_null() || dst.is_null() {
            return Err(Error::Null);
        }
        // SAFETY: I1: not NULL, so both are tensors; no alignment is assumed.
        let (src, dst) = unsafe { (src.read_unaligned(), dst.read_unaligned()) };
        // SAFETY: I1: tensors, scales and `smooth` are as documented.
        let mut what =
            unsafe { read(&src, [batch, heads, tokens, dim], smooth, &dst, |dtype| dtype == Dtype::I8)? };
        kernel::best()?.quantize(&mut what)
    })
}

const SRC: Names = names!("src");
const DST: Names = names!("dst");

/// The layouts of two tensors of these sizes.
fn layouts(src: &fa_tensor, sizes: [i64; 4], dst: &fa_tensor) -> Result<[Layout; 2], Refusal> {
    let rows = [extent("batch", sizes[0], 0)?, extent("heads", sizes[1], 0)?, extent("tokens", sizes[2], 0)?];
    let dim = extent("dim", sizes[3], 1)?;
    Ok([describe::layout(&SRC, src, rows, dim)?, describe::layout(&DST, dst, rows, dim)?])
}

/// Without rows nothing happens, however far apart they would be.
fn present(layout: Layout) -> Layout {
    if layout.extent.contains(&0) { Layout { extent: [0; 3], ..layout } } else { layout }
}

/// Reads the arguments of [`fa_quantize_i8`], or those of [`fa_quantize`] with scales.
///
/// # Safety
/// The pointers lead to what the documentation of [`fa_quantize_i8`] says, for as long as the
/// result lives.
unsafe fn read<'a>(
    src: &fa_tensor,
    sizes: [i64; 4],
    smooth: *const f32,
    dst: &fa_tensor,
    is_taken: impl Fn(Dtype) -> bool,
) -> Result<Quantize<'a>, Refusal> {
    if dst.quant.is_null() {
        return Err(Error::Null.into());
    }
    let [from, to] = layouts(src, sizes, dst)?;
    let Layout { extent: rows, dim, .. } = to;
    if !is_taken(to.dtype) {
        return Err(Error::Dtype.into());
    }
    // All tokens of a head share one row.
    let stride = [0, dim.checked_mul(4).ok_or(Error::Overflow)?, 0];
    let smoothing = Layout { dtype: Dtype::F32, extent: rows, dim, stride, stride_dim: 0 };
    // SAFETY: I1: not NULL, so it is an fa_quant; no alignment is assumed.
    let quant = unsafe { dst.quant.read_unaligned() };
    DST.check_zeros(!quant.zero.is_null(), to.dtype.takes_zeros())?;
    if to.dtype == Dtype::U8 && quant.zero.is_null() {
        return Err(Refusal::about(Error::Null, DST.quant_zero, UNSIGNED));
    }
    let Places { stride, group, len } = describe::places(&DST, &quant, &to)?;
    if quant.scale.is_null() && len > 0 {
        return Err(Error::Null.into());
    }
    let [from, to, smoothing] = [from, to, smoothing].map(present);
    // SAFETY: I1: tensors of these layouts, and as many scales and zeros, which are outputs.
    unsafe {
        let src = View::new(src.data.cast(), from).map_err(about(SRC.tensor, &from))?;
        let dst = ViewMut::new(dst.data.cast(), to).map_err(about(DST.tensor, &to))?;
        let smooth = match smooth.is_null() {
            true => None,
            false => Some(View::new(smooth.cast(), smoothing)?),
        };
        let zero = (!quant.zero.is_null()).then(|| ArrayMut::new(quant.zero.cast_mut(), len));
        let quant = QuantMut { scale: ArrayMut::new(quant.scale.cast_mut(), len), zero, stride, group };
        Ok(Quantize::new(src, dst, smooth, quant)?)
    }
}
