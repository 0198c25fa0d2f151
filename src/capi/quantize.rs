//! `fa_quantize_i8`.

use super::describe::{self, Places, about, extent};
use super::guard;
use super::status::fa_status;
use super::tensor::fa_tensor;
use crate::dtype::Dtype;
use crate::error::names::{Names, names};
use crate::error::{Error, Refusal};
use crate::kernel;
use crate::quantize::Quantize;
use crate::view::{ArrayMut, Layout, QuantMut, View, ViewMut};

/// Quantises a tensor to 8-bit integers, and finds their scales (and zeros): what fa_attention then
/// takes as Q, K or V. A whole tensor at once, or the tokens that are new in a cache.
///
/// A cell is all elements that share a scale, as dst->quant says: the whole tensor if all its
/// strides are 0, else each batch entry (or page), head, group_tokens tokens, group_dims channels,
/// or any combination. Different cells must have different places.
///
/// Without zeros (dst->quant->zero is NULL), for the numbers x of a cell: scale = max |x| / 127,
/// stored = x / scale, rounded to nearest even, -127 to 127. With zeros: scale = (max x - min
/// x) / 255, zero = -128 - min x / scale, rounded to an integer (of any size: 0 need not be among
/// the numbers), stored = x / scale + zero, rounded to nearest even, -128 to 127. In both cases
/// (stored - zero) * scale is x to within scale / 2, and what rounding to float costs numbers as
/// large as the largest of the cell.
///
/// Cells of numbers that are all the same: with zeros they are reproduced exactly (zero = 0,
/// stored = 1, scale is the number). Cells whose scale would be less than FLT_MIN: without zeros,
/// scale and stored are 0; with zeros, all of the cell becomes its smallest number. A cell with a
/// NaN or an infinity (after smoothing): its scale is NaN, its zero and all stored are 0, so that
/// attention gives NaN wherever it is seen. No other cell notices, and the call returns FA_OK. (A
/// scale that is NaN and shared by a whole tensor is refused later, by fa_attention_run:
/// FA_ERR_QUANT_SCALE.)
///
/// Smoothing: keys often have channels far from 0, the same for all tokens, which cost most of the
/// integers' range. Softmax does not change when one vector is subtracted from all keys of a head,
/// as all scores of a query then change by the same: subtract the mean of each channel over the
/// tokens, for K only ("smoothing K" of SageAttention, arXiv:2410.02367). Nothing has to be added
/// afterwards, except to a log-sum-exp: scale times query times smooth. One vector must do for all
/// keys that a query sees; softcap and sinks, which are not shifted with the scores, forbid it.
///
/// @param src     [batch][heads][tokens][dim], FA_DTYPE_F32, _F16 or _BF16 (which become float
///                exactly)
/// @param batch, heads, tokens  at least 0; if one is 0, nothing happens
/// @param dim     at least 1
/// @param smooth  NULL, or [heads][dim], dense: subtracted from each element first, rounded once
/// @param dst     the same sizes, FA_DTYPE_I8, its rows apart from each other, with quant. OUTPUTS
///                are its elements, quant->scale (needed) and quant->zero (or NULL), although
///                fa_quant says const
/// @return FA_OK; FA_ERR_NULL; FA_ERR_SHAPE (a size is negative); FA_ERR_ZERO_EXTENT (dim, or a
///         group that matters, is 0); FA_ERR_DTYPE (also if src has a quant); FA_ERR_STRIDE
///         (negative, no multiple of the element size, a stride_dim, rows of dst overlap, or two
///         cells have the same place); FA_ERR_OVERFLOW; FA_ERR_ISA; FA_ERR_OVERLAP (dst, scales or
///         zeros share memory with each other, src or smooth; as in fa_attention, what lies between
///         the first and the last byte of a tensor or an array belongs to it)
///
/// For two cells to have different places it is enough, and demanded, that each stride of quant is
/// larger than the farthest that one gets by the smaller ones; strides of axes with one cell do not
/// matter.
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
        let mut what = unsafe { read(&src, [batch, heads, tokens, dim], smooth, &dst)? };
        kernel::best()?.quantize(&mut what)
    })
}

const SRC: Names = names!("src");
const DST: Names = names!("dst");

/// Reads the arguments of [`fa_quantize_i8`].
///
/// # Safety
/// The pointers lead to what the documentation of [`fa_quantize_i8`] says, for as long as the
/// result lives.
unsafe fn read<'a>(
    src: &fa_tensor,
    sizes: [i64; 4],
    smooth: *const f32,
    dst: &fa_tensor,
) -> Result<Quantize<'a>, Refusal> {
    if dst.quant.is_null() {
        return Err(Error::Null.into());
    }
    let sizes = [
        extent("batch", sizes[0], 0)?,
        extent("heads", sizes[1], 0)?,
        extent("tokens", sizes[2], 0)?,
        extent("dim", sizes[3], 1)?,
    ];
    let [batch, heads, tokens, dim] = sizes;
    let rows = [batch, heads, tokens];
    let from = describe::layout(&SRC, src, rows, dim)?;
    let to = describe::layout(&DST, dst, rows, dim)?;
    if to.dtype != Dtype::I8 {
        return Err(Error::Dtype.into());
    }
    // All tokens of a head share one row.
    let stride = [0, dim.checked_mul(4).ok_or(Error::Overflow)?, 0];
    let smoothing = Layout { dtype: Dtype::F32, extent: rows, dim, stride, stride_dim: 0 };
    // SAFETY: I1: not NULL, so it is an fa_quant; no alignment is assumed.
    let quant = unsafe { dst.quant.read_unaligned() };
    let Places { stride, group, len } = describe::places(&DST, &quant, &to)?;
    if quant.scale.is_null() && len > 0 {
        return Err(Error::Null.into());
    }
    // Without rows nothing happens, however far apart they would be.
    let present =
        |layout: Layout| if rows.contains(&0) { Layout { extent: [0; 3], ..layout } } else { layout };
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
