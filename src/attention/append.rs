//! Writing caches: tensors in other storage types, and new tokens into a cache.

use super::tensor::Shape;
use super::{PageLists, Tensor, TensorMut, same_extent};
use crate::append::{self, Scales, Target};
use crate::dtype::Dtype;
use crate::error::names::{K, Names, UNSIGNED, V, names, number};
use crate::error::{Error, Refusal};
use crate::kernel;
use crate::problem::slots::Slots;
use crate::problem::{Batch, Position};
use crate::quantize::{Quantize, Round};
use crate::view::{Array, Layout, View};

const SRC: Names = names!("src");
const DST: Names = names!("dst");
const NEW_K: Names = names!("new_k");
const NEW_V: Names = names!("new_v");

/// Writes a tensor of f32, f16 or bf16 in another storage type, of the same sizes: numbers rounded
/// to nearest even, blocks bit for bit as ggml's reference functions make them, integers with
/// scales, which are found and written unless they are given ([`TensorMut::quantised`],
/// [`TensorMut::scales_given`]). All instruction sets give the same bits.
///
/// ```
/// use flash_attention::{DataMut, Tensor, TensorMut, quantize};
/// let x = [0.5; 32];
/// let mut blocks = [0; 18];
/// let dst = TensorMut::head_first(DataMut::Q4_0(&mut blocks), [1, 1, 1, 32]);
/// quantize(Tensor::head_first(&x, [1, 1, 1, 32]), dst)?;
/// # Ok::<(), flash_attention::Refusal>(())
/// ```
///
/// # Errors
/// [`Error::Shape`], [`Error::Dtype`], [`Error::Stride`], [`Error::Overflow`],
/// [`Error::ZeroExtent`], [`Error::QuantScale`], [`Error::Isa`]; then nothing has been written.
pub fn quantize(src: Tensor, dst: TensorMut) -> Result<(), Refusal> {
    write(src, None, dst)
}

/// [`quantize`] to 8-bit integers whose scales are found, of numbers from which the same vector is
/// subtracted for all tokens of a head: `smooth` is `[heads][dim]`. Softmax does not change by
/// that, so the means of keys over their tokens, which cost most of the integers' range, can be
/// left out ("smoothing K" of SageAttention, arXiv:2410.02367). Nothing has to be added afterwards,
/// but to a log-sum-exp: scale · query · smooth. Not with softcap or sinks, which do not shift with
/// scores.
///
/// ```
/// use flash_attention::{DataMut, Tensor, TensorMut, quantize_smoothed};
/// let keys = [100.0, -7.0, 101.0, -8.0]; // two tokens of two channels
/// let (mut integers, mut scales) = ([0; 4], [0.0; 2]);
/// let dst = TensorMut::head_first(DataMut::I8(&mut integers), [1, 1, 2, 2]);
/// quantize_smoothed(
///     Tensor::head_first(&keys, [1, 1, 2, 2]),
///     &[100.5, -7.5],
///     dst.scale_per_token(&mut scales),
/// )?;
/// assert_eq!(integers, [-127, 127, 127, -127]);
/// # Ok::<(), flash_attention::Refusal>(())
/// ```
///
/// # Errors
/// Those of [`quantize`]; [`Error::Dtype`] also where `dst` is not of 8-bit integers with scales
/// that are found, [`Error::Shape`] where `smooth` has another length.
pub fn quantize_smoothed(src: Tensor, smooth: &[f32], dst: TensorMut) -> Result<(), Refusal> {
    write(src, Some(smooth), dst)
}

fn write(src: Tensor, smooth: Option<&[f32]>, mut dst: TensorMut) -> Result<(), Refusal> {
    same_sizes(&SRC, &src.shape, &dst.shape)?;
    let from = src.raw_view(&SRC)?;
    let (view, scales) = dst.view_and_scales(&DST)?;
    let &Layout { dtype, extent, dim, .. } = view.layout();
    let smooth = match smooth {
        None => None,
        Some(_) if dtype != Dtype::I8 || !matches!(scales, Some(Scales::Own(_))) => {
            let but = "what is smoothed becomes 8-bit integers, whose scales are found";
            return Err(Refusal::about(Error::Dtype, DST.tensor, but));
        }
        Some(smooth) => {
            let wanted = extent[1].saturating_mul(dim);
            super::equal("smooth", smooth.len(), "not heads x dim", wanted)?;
            // All tokens of a head share one row.
            let stride = [0, dim.saturating_mul(size_of::<f32>()), 0];
            Some(View::of(smooth, Layout { dtype: Dtype::F32, extent, dim, stride, stride_dim: 0 })?)
        }
    };
    let kernel = kernel::best()?;
    match scales {
        Some(Scales::Own(quant)) if dtype == Dtype::U8 && quant.zero.is_none() => {
            return Err(Refusal::about(Error::Null, DST.quant_zero, UNSIGNED));
        }
        Some(Scales::Own(quant)) => kernel.quantize(&mut Quantize::new(from, view, smooth, quant)?)?,
        Some(Scales::Given(quant)) => {
            quant.check(view.layout()).map_err(|error| DST.refuse_scales(error))?;
            kernel.round(&Round::by_scales(from, view, quant, [0; 3])?)?;
        }
        None => kernel.round(&Round::new(from, view)?)?,
    }
    Ok(())
}

/// Writes the keys and values of new tokens into a cache, dense, ragged or paged, in the types that
/// it has. New tokens are what the [`Attention`](super::Attention) that follows has as queries, and
/// go where these stand among the keys: by default they are the last of
/// [`kv_lens`](Append::kv_lens), which count them.
///
/// ```
/// use flash_attention::{Append, DataMut, Tensor, TensorMut};
/// // A cache of 8 tokens in bf16, of which 3 are in use, the last two of them new.
/// let (mut k, mut v) = (vec![0u16; 8 * 4], vec![0u16; 8 * 4]);
/// let new = [1.5; 2 * 4];
/// Append::new(
///     TensorMut::head_first(DataMut::Bf16(&mut k), [1, 1, 8, 4]),
///     Tensor::head_first(&new, [1, 1, 2, 4]),
///     TensorMut::head_first(DataMut::Bf16(&mut v), [1, 1, 8, 4]),
///     Tensor::head_first(&new, [1, 1, 2, 4]),
/// )
/// .kv_lens(&[3])
/// .run()?;
/// assert!(k[..4] == [0; 4] && k[4..12] == [0x3fc0; 8] && k[12..] == [0; 20]);
/// # Ok::<(), flash_attention::Refusal>(())
/// ```
#[derive(Debug)]
#[must_use = "nothing is written before run()"]
pub struct Append<'a> {
    k: (TensorMut<'a>, Tensor<'a>),
    v: Option<(TensorMut<'a>, Tensor<'a>)>,
    position: Position,
    positions: Option<&'a [i32]>,
    kv_lens: Option<&'a [i32]>,
    cu_len_q: Option<&'a [i32]>,
    cu_len_kv: Option<&'a [i32]>,
    pages: Option<PageLists<'a>>,
}

impl<'a> Append<'a> {
    /// Takes the cache, k and v as [`Attention`](super::Attention) has them, and new rows
    /// `[batch][heads_kv][new][dim]` of f32, f16 or bf16.
    pub fn new(k: TensorMut<'a>, new_k: Tensor<'a>, v: TensorMut<'a>, new_v: Tensor<'a>) -> Append<'a> {
        Append { v: Some((v, new_v)), ..Append::keys(k, new_k) }
    }

    /// Of keys alone: where v is a view of k (latent attention), or another thread writes v.
    pub fn keys(k: TensorMut<'a>, new_k: Tensor<'a>) -> Append<'a> {
        Append {
            k: (k, new_k),
            v: None,
            position: Position::End,
            positions: None,
            kv_lens: None,
            cu_len_q: None,
            cu_len_kv: None,
            pages: None,
        }
    }

    /// Where the first new token of each sequence goes.
    pub fn q_pos(mut self, position: i64) -> Self {
        self.position = Position::At(position);
        self
    }

    /// Where the first new token of each sequence goes, `[batch]`.
    pub fn q_positions(mut self, positions: &'a [i32]) -> Self {
        self.positions = Some(positions);
        self
    }

    /// Keys of each sequence that are in use, the new ones among them.
    pub fn kv_lens(mut self, kv_lens: &'a [i32]) -> Self {
        self.kv_lens = Some(kv_lens);
        self
    }

    /// Ragged new tokens, `[batch + 1]`: those of all sequences behind one another.
    pub fn cu_len_q(mut self, cu_len_q: &'a [i32]) -> Self {
        self.cu_len_q = Some(cu_len_q);
        self
    }

    /// A ragged cache, `[batch + 1]`; see [`Attention::cu_len_kv`](super::Attention::cu_len_kv).
    pub fn cu_len_kv(mut self, cu_len_kv: &'a [i32]) -> Self {
        self.cu_len_kv = Some(cu_len_kv);
        self
    }

    /// A paged cache; see [`Attention::pages`](super::Attention::pages). A page that is written
    /// must be in one sequence's row, once.
    pub fn pages(mut self, table: &'a [i32], len_kv: usize) -> Self {
        self.pages = Some(PageLists::rows(table, len_kv));
        self
    }

    /// A paged cache with lists of different lengths; see
    /// [`Attention::page_lists`](super::Attention::page_lists).
    pub fn page_lists(mut self, table: &'a [i32], starts: &'a [i32], len_kv: usize) -> Self {
        self.pages = Some(PageLists { starts: Some(starts), ..PageLists::rows(table, len_kv) });
        self
    }

    /// Writes the new tokens. Allocates nothing, computes on the calling thread.
    ///
    /// # Errors
    /// Those of [`quantize`], and [`Error::Lengths`], [`Error::Page`]: a token has no place among
    /// the keys in use, or lists lead out of the tensors. Then nothing has been written.
    pub fn run(&mut self) -> Result<(), Refusal> {
        let (cache, new) = (self.k.0.shape, self.k.1.shape);
        if let Some((v, new_v)) = &self.v {
            same_extent(&V, &v.shape, "not that of k", &cache)?;
            same_extent(&NEW_V, &new_v.shape, "not that of new_k", &new)?;
        }
        let sequences = self.cu_len_q.map_or(new.extent[0], |starts| starts.len().saturating_sub(1));
        let heads = cache.extent[1];
        if let Some(pages) = self.pages {
            pages.agree(sequences, heads)?;
        }
        let pages = self.pages.map(|lists| lists.pages(sequences, heads));
        let batch = Batch {
            starts_q: self.cu_len_q.map(Array::of),
            starts_kv: self.cu_len_kv.map(Array::of),
            kv_lens: self.kv_lens.map(Array::of),
            positions: self.positions.map(Array::of),
            pages,
            ..Batch::default()
        };
        let slots = Slots::new(batch, new.extent, cache.extent, self.position)?;
        let k = target([&K, &NEW_K], &mut self.k)?;
        let v = match &mut self.v {
            None => None,
            Some(v) => Some(target([&V, &NEW_V], v)?),
        };
        Ok(append::Append::new(slots, [Some(k), v])?.run(kernel::best()?)?)
    }
}

/// The cache and its new rows, whose heads and elements agree.
fn target<'t>(
    [of_cache, of_new]: [&Names; 2],
    (cache, new): &'t mut (TensorMut<'_>, Tensor<'_>),
) -> Result<Target<'t>, Refusal> {
    let (is, wanted) = (new.shape, cache.shape);
    super::equal(of_new.heads, is.extent[1], "not that of the cache", wanted.extent[1])?;
    super::equal(of_new.dim, is.dim, "not that of the cache", wanted.dim)?;
    if is.dim == 0 || is.extent[1] == 0 {
        return Err(
            Refusal::of(of_new.dim, number(is.dim)).but(Error::ZeroExtent, "no elements, or no heads")
        );
    }
    let new = new.raw_view(of_new)?;
    let (cache, scales) = cache.view_and_scales(of_cache)?;
    if cache.layout().dtype == Dtype::Bool8 {
        return Err(Error::Dtype.into());
    }
    Ok(Target { names: [of_cache.tensor, of_new.tensor], new, cache, scales })
}

fn same_sizes(names: &Names, is: &Shape, wanted: &Shape) -> Result<(), Refusal> {
    same_extent(names, is, "not that of dst", wanted)?;
    super::equal(names.dim, is.dim, "not that of dst", wanted.dim)
}
