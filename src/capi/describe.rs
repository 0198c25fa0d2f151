//! From `fa_attention` to a [`Problem`]: every field is looked at once, here.

use super::abi;
use super::attention::{FA_FAST, FA_MASK_TIMES_SLOPE, FA_NO_LIMIT, FA_POS_END, FA_PRECISE, fa_attention};
use super::tensor::{self, fa_quant, fa_tensor};
use crate::append::{Append, Scales, Target, is_of_tokens};
use crate::dtype::Dtype;
use crate::error::names::{self, K, LSE, MASK, Names, O, Q, TOO_LARGE, V, WEIGHTS, number};
use crate::error::{Error, Refusal, TensorFact};
use crate::problem::slots::Slots;
use crate::problem::{
    Accuracy, Batch, BlockMask, Blocks, Lists, Logits, Pages, Position, Problem, Semantics, Slopes, Spans,
    Tensors, Weights, Window, needed_slopes, needed_starts,
};
use crate::view::{Array, ArrayMut, Layout, Quant, QuantMut, View, ViewMut};

/// Reads a description: the problem that it describes, or what is wrong with it.
///
/// # Safety
/// The pointers lead to what the documentation of the fields says, for as long as the problem
/// lives: tensors and arrays that nobody writes to, and outputs of which nobody uses the rows that
/// are computed.
pub(super) unsafe fn problem<'a>(a: *const fa_attention) -> Result<Problem<'a>, Refusal> {
    if a.is_null() {
        return Err(Error::Null.into());
    }
    // SAFETY: I1: not NULL, so it is readable for `struct_size` bytes.
    let a = &unsafe { abi::read_sized(abi::STRUCT_SIZE, a)? };
    plain_fields(a)?;
    let batch = extent("batch", a.batch, 0)?;
    let heads_q = extent("heads_q", a.heads_q, 1)?;
    let heads_kv = extent("heads_kv", a.heads_kv, 1)?;
    let len_q = extent("len_q", a.len_q, 0)?;
    let len_kv = extent("len_kv", a.len_kv, 0)?;
    let dim_qk = extent("dim_qk", a.dim_qk, 1)?;
    let dim_v = extent("dim_v", a.dim_v, 1)?;

    // SAFETY: I1: lists are as long as documented.
    let (batches, [entries_q, rows_q], [entries_kv, rows_kv]) = unsafe { lists(a, batch, [len_q, len_kv])? };

    let q = layout(&Q, &a.q, [entries_q, heads_q, rows_q], dim_qk)?;
    let k = layout(&K, &a.k, [entries_kv, heads_kv, rows_kv], dim_qk)?;
    let v = layout(&V, &a.v, [entries_kv, heads_kv, rows_kv], dim_v)?;
    let o = layout(&O, &a.o, [entries_q, heads_q, rows_q], dim_v)?;
    if !o.dtype.is_stored() {
        let fact = Refusal::of(O.dtype, i64::from(a.o.dtype));
        return Err(fact.but(Error::Dtype, "outputs are FA_DTYPE_F32, _F16, _BF16 or _Q15"));
    }
    let mut lse = Layout { dtype: Dtype::F32, extent: o.extent, dim: 1, stride: [0; 3], stride_dim: 0 };
    if !a.lse.is_null() {
        lse.stride = strides("lse_stride", a.lse_stride, lse.extent, 1)?;
        for (axis, stride) in lse.stride.iter_mut().enumerate() {
            let fact = Refusal::of("lse_stride", a.lse_stride[axis]).at(axis);
            *stride = stride.checked_mul(4).ok_or_else(|| fact.but(Error::Overflow, TOO_LARGE))?;
        }
    }

    // SAFETY: I1: tensors, scales and lists are as large as the description says.
    let tensors = unsafe {
        Tensors {
            q: input(&Q, &a.q, q)?,
            k: input(&K, &a.k, k)?,
            v: input(&V, &a.v, v)?,
            o: output(&O, &a.o, o)?,
            lse: match a.lse.is_null() {
                true => None,
                false => Some(ViewMut::new(a.lse.cast(), lse).map_err(about("lse", &lse))?),
            },
            batch: batches,
            logits: logits(a, [batch, heads_q, len_q], len_kv)?,
            weights: if names_weights(a) { weights(a, [batch, heads_q, len_q], len_kv)? } else { None },
        }
    };
    let known = [a.q_bytes, a.k_bytes, a.v_bytes, a.o_bytes, a.mask_bytes, a.lse_bytes, a.weights_bytes];
    if known.iter().fold(0, |all, bytes| all | bytes) != 0 {
        memory(a, &tensors)?;
    }
    Problem::new(tensors, semantics(a, dim_qk)?)
}

/// How `batch` sequences lie in the tensors; entries and rows of Q, and those of K and V.
///
/// # Safety
/// The pointers of the description lead to what the header says of them; see [`problem`].
#[inline(always)]
unsafe fn lists<'a>(
    a: &fa_attention,
    batch: usize,
    [len_q, len_kv]: [usize; 2],
) -> Result<(Batch<'a>, [usize; 2], [usize; 2]), Refusal> {
    // SAFETY: I1: `cu_len_q`, `cu_len_kv`, `kv_lens`, `kv_starts`, `q_positions`, spans and the
    // page table are as long as documented.
    let batches = unsafe {
        Batch {
            starts_q: array("entries of cu_len_q", a.cu_len_q, batch, 1)?,
            starts_kv: array("entries of cu_len_kv", a.cu_len_kv, batch, 1)?,
            kv_lens: array("entries of kv_lens", a.kv_lens, batch, 0)?,
            kv_starts: array("entries of kv_starts", a.kv_starts, batch, 0)?,
            positions: array("entries of q_positions", a.q_positions, batch, 0)?,
            spans: spans(a, batch)?,
            pages: pages(a, batch, len_kv)?,
            most: [len_q, len_kv],
        }
    };
    let rows_q = packed("cu_len_q", batches.starts_q, "longer than len_q", len_q)?;
    let rows_kv = packed("cu_len_kv", batches.starts_kv, "longer than len_kv", len_kv)?;
    let entries = |rows: Option<usize>, len| rows.map_or([batch, len], |rows| [1, rows]);
    let kv = match batches.pages {
        Some(_) => [extent("num_pages", a.num_pages, 0)?, extent("page_size", a.page_size, 1)?],
        None => entries(rows_kv, len_kv),
    };
    Ok((batches, entries(rows_q, len_q), kv))
}

/// Reads a description and new rows of K and V: where these go, or what is wrong with it.
///
/// # Safety
/// The pointers lead to what the documentation of [`super::append::fa_cache_append`] says, for as
/// long as the result lives: tensors and lists that nobody writes to, and caches of which nobody
/// uses the rows that are written.
pub(super) unsafe fn append<'a>(
    a: *const fa_attention,
    new: [*const fa_tensor; 2],
) -> Result<Append<'a>, Refusal> {
    if a.is_null() {
        return Err(Error::Null.into());
    }
    // SAFETY: I1: not NULL, so it is readable for `struct_size` bytes.
    let a = &unsafe { abi::read_sized(abi::STRUCT_SIZE, a)? };
    plain_fields(a)?;
    let batch = extent("batch", a.batch, 0)?;
    let heads = extent("heads_kv", a.heads_kv, 1)?;
    let len_q = extent("len_q", a.len_q, 0)?;
    let len_kv = extent("len_kv", a.len_kv, 0)?;
    // SAFETY: I1: lists are as long as documented.
    let (batches, [entries, rows], [entries_kv, rows_kv]) = unsafe { lists(a, batch, [len_q, len_kv])? };
    let new_extent = [entries, heads, rows];
    let extent_kv = [entries_kv, heads, rows_kv];
    if batches.pages.is_some_and(|pages| pages.head_stride != 0) {
        let fact = Refusal::of("table_head_stride", a.table_head_stride);
        return Err(fact.but(Error::Shape, "all kv heads of a cache that is written have the same pages"));
    }
    let slots = Slots::new(batches, new_extent, extent_kv, position(a)?)?;
    let extents = [new_extent, extent_kv];
    // SAFETY: I1: NULL, or tensors as documented.
    let targets = unsafe {
        let k = target([&NEW_K, &K], new[0], (&a.k, a.k_bytes), extents, ("dim_qk", a.dim_qk))?;
        [k, target([&NEW_V, &V], new[1], (&a.v, a.v_bytes), extents, ("dim_v", a.dim_v))?]
    };
    Append::new(slots, targets)
}

/// New rows and the cache that they go into, whose extents these are; `None` if `new` is NULL. Out
/// of line, as keys and values need the same.
///
/// # Safety
/// `new` is NULL or a tensor as documented, and so is the cache, which is an output; see
/// [`append`].
#[inline(never)]
unsafe fn target<'a>(
    [of_new, of_cache]: [&'static Names; 2],
    new: *const fa_tensor,
    (cache, bytes): (&fa_tensor, i64),
    [new_extent, extent_kv]: [[usize; 3]; 2],
    (of_dim, dim): (&'static str, i64),
) -> Result<Option<Target<'a>>, Refusal> {
    if new.is_null() {
        return Ok(None);
    }
    // SAFETY: I1: not NULL, so it is a tensor; no alignment is assumed.
    let new = unsafe { new.read_unaligned() };
    let dim = extent(of_dim, dim, 1)?;
    let from = layout(of_new, &new, new_extent, dim)?;
    let to = layout(of_cache, cache, extent_kv, dim)?;
    within(of_cache, bytes, &to)?;
    if to.is_strided() {
        let fact = Refusal::of(of_cache.stride_dim, i64::from(cache.stride_dim));
        return Err(fact.but(Error::Stride, "rows of a cache that is written are contiguous, must be 0"));
    }
    // SAFETY: I1: tensors of these layouts, the second an output; `quant` is NULL, or as
    // documented.
    let (new, view, scales) = unsafe {
        let new = View::new(new.data.cast(), from).map_err(about(of_new.tensor, &from))?;
        let view = ViewMut::new(cache.data.cast(), to).map_err(about(of_cache.tensor, &to))?;
        (new, view, scales(of_cache, cache, &to)?)
    };
    Ok(Some(Target { names: [of_cache.tensor, of_new.tensor], new, cache: view, scales }))
}

const NEW_K: Names = names::names!("new_k");
const NEW_V: Names = names::names!("new_v");

/// Scales and zeros of a cache of this layout, if it has some. Those that a token shares with no
/// other are written.
///
/// # Safety
/// `quant` of the tensor is NULL, or leads to what the header says.
unsafe fn scales<'a>(
    names: &Names,
    cache: &fa_tensor,
    layout: &Layout,
) -> Result<Option<Scales<'a>>, Refusal> {
    if cache.quant.is_null() {
        return Ok(None);
    }
    // SAFETY: I1: not NULL, so it is an fa_quant; no alignment is assumed.
    let quant = unsafe { cache.quant.read_unaligned() };
    names.check_zeros(!quant.zero.is_null(), layout.dtype.takes_zeros())?;
    let Places { stride, group, len } = places(names, &quant, layout)?;
    let is_own = is_of_tokens(stride, group, layout);
    // SAFETY: I1: scales and zeros have as many values as strides and groups say; those that are
    // written are outputs.
    unsafe {
        if is_own && !quant.scale.is_null() {
            let values = |data: *const f32| ArrayMut::new(data.cast_mut(), len);
            let zero = (!quant.zero.is_null()).then(|| values(quant.zero));
            return Ok(Some(Scales::Own(QuantMut { scale: values(quant.scale), zero, stride, group })));
        }
        let values = |data: *const f32| (!data.is_null()).then(|| Array::new(data, len));
        let given = Quant { scale: values(quant.scale), zero: values(quant.zero), stride, group };
        Ok(Some(Scales::Given(given)))
    }
}

/// Refuses fields and flags that mean nothing yet, unless they are 0.
fn plain_fields(a: &fa_attention) -> Result<(), Refusal> {
    let fields = [
        ("flags", i64::from(a.flags & !(FA_MASK_TIMES_SLOPE | FA_PRECISE | FA_FAST))),
        ("reserved0", i64::from(a.reserved0)),
    ];
    match fields.into_iter().find(|&(_, value)| value != 0) {
        None => Ok(()),
        Some((what, value)) => Err(Refusal::of(what, value).but(Error::Reserved, "unknown, must be 0")),
    }
}

/// The spans of `batch` sequences, if there are some.
///
/// # Safety
/// The pointers of the description lead to what the header says of them; see [`problem`].
unsafe fn spans<'a>(a: &fa_attention, batch: usize) -> Result<Option<Spans<'a>>, Refusal> {
    // SAFETY: I1: `span_starts` has a value more than there are sequences.
    let starts = unsafe { array("entries of span_starts", a.span_starts, batch, 1)? };
    let Some(starts) = starts else {
        return match a.spans.is_null() {
            true => Ok(None),
            false => Err(Refusal::about(Error::Null, "span_starts", "NULL, but spans is set")),
        };
    };
    if a.spans.is_null() {
        return Err(Refusal::about(Error::Null, "spans", "NULL, but span_starts is set"));
    }
    // A negative one is refused by `Spans`, which sees the others, too. Two numbers for each of
    // them fit, as there are at most i32::MAX.
    let len = 2 * usize::try_from(starts.get(batch)).unwrap_or(0);
    // SAFETY: I1: `spans` has two values for each span.
    Ok(Some(Spans { bounds: unsafe { Array::new(a.spans, len) }, starts }))
}

/// The page table of `batch` sequences of up to `len_kv` keys, if there is one.
///
/// # Safety
/// The pointers of the description lead to what the header says of them; see [`problem`].
unsafe fn pages<'a>(a: &fa_attention, batch: usize, len_kv: usize) -> Result<Option<Pages<'a>>, Refusal> {
    if a.block_table.is_null() {
        if !a.block_table_start.is_null() {
            return Err(Refusal::of("block_table_start", 1).but(Error::Null, "set, but block_table is NULL"));
        }
        return Ok(None);
    }
    if !a.cu_len_kv.is_null() {
        return Err(Refusal::of("cu_len_kv", 1).but(Error::Shape, "set, but keys lie in pages"));
    }
    // SAFETY: I1: `block_table_start` has a value more than there are sequences.
    let starts = unsafe { array("entries of block_table_start", a.block_table_start, batch, 1)? };
    let stride = extent("table_stride", a.table_stride, 0)?;
    let head_stride = extent("table_head_stride", a.table_head_stride, 0)?;
    let len = match starts {
        None => stride
            .checked_mul(batch)
            .filter(|&n| n <= MOST_VALUES)
            .ok_or_else(|| Refusal::of("table_stride", a.table_stride).but(Error::Overflow, TOO_LARGE))?,
        // A negative one is refused by `Pages`, which sees the others, too.
        Some(starts) => usize::try_from(starts.get(batch)).unwrap_or(0),
    };
    // SAFETY: I1: `block_table` has `table_stride` entries a sequence, or as many as its starts
    // say.
    let table = unsafe { Array::new(a.block_table, len) };
    Ok(Some(Pages { table, starts, stride, head_stride, len_kv }))
}

/// What changes scores, of a problem of these query rows and keys.
///
/// # Safety
/// The pointers of the description lead to what the header says of them; see [`problem`].
unsafe fn logits<'a>(a: &fa_attention, queries: [usize; 3], len_kv: usize) -> Result<Logits<'a>, Refusal> {
    let [batch, heads, _] = queries;
    let mask = if a.mask.data.is_null() {
        None
    } else {
        let dtype = tensor::dtype(MASK.dtype, a.mask.dtype)?;
        if !dtype.is_float() && dtype != Dtype::Bool8 {
            let fact = Refusal::of(MASK.dtype, i64::from(a.mask.dtype));
            return Err(fact.but(Error::Dtype, "neither FA_DTYPE_F32, _F16, _BF16 nor FA_DTYPE_BOOL8"));
        }
        unquantised(MASK.quant, &a.mask)?;
        let layout = layout_of(dtype, &MASK, &a.mask, queries, len_kv)?;
        // SAFETY: I1: `mask` has rows for all sequences, heads and query rows.
        Some(unsafe { View::new(a.mask.data.cast(), layout).map_err(about(MASK.tensor, &layout))? })
    };
    let times_mask = a.flags & FA_MASK_TIMES_SLOPE != 0;
    let slopes = if a.alibi_slopes.is_null() {
        if times_mask {
            let fact = Refusal::of("flags", i64::from(a.flags));
            return Err(fact.but(Error::Shape, "FA_MASK_TIMES_SLOPE, but alibi_slopes is NULL"));
        }
        None
    } else {
        let fact = Refusal::of("alibi_batch_stride", a.alibi_batch_stride);
        let batch_stride = usize::try_from(a.alibi_batch_stride);
        let batch_stride = batch_stride.map_err(|_| fact.but(Error::Stride, "negative"))?;
        let needed = needed_slopes(batch_stride, batch, heads).filter(|&len| len <= MOST_VALUES);
        let len = needed.ok_or_else(|| fact.but(Error::Overflow, TOO_LARGE))?;
        // SAFETY: I1: `alibi_slopes` has a value a head, for each sequence if there is a stride.
        Some(Slopes { values: unsafe { Array::new(a.alibi_slopes, len) }, batch_stride, times_mask })
    };
    // SAFETY: I1: `sinks` is NULL or has a value for each query head.
    let sinks = (!a.sinks.is_null()).then(|| unsafe { Array::new(a.sinks, heads) });
    // SAFETY: I1: `block_mask` is NULL or as large as documented.
    let cells = unsafe { cells(a, queries, len_kv)? };
    // SAFETY: I1: lists of single keys are as long as documented.
    let columns = unsafe { columns(a, [batch, heads])? };
    Ok(Logits { softcap: a.softcap, mask, cells, columns, slopes, sinks })
}

/// The lists of single keys of a problem of these sequences and query heads, if there are some.
///
/// # Safety
/// The pointers of the description lead to what the header says of them; see [`problem`].
unsafe fn columns<'a>(a: &fa_attention, queries: [usize; 2]) -> Result<Option<Lists<'a>>, Refusal> {
    if a.column_start.is_null() {
        return match a.columns.is_null() {
            true => Ok(None),
            false => Err(Refusal::about(Error::Null, "column_start", "NULL, but columns is set")),
        };
    }
    let given = GivenLists {
        starts: a.column_start,
        entries: (a.columns, "columns", "NULL, but lists in column_start are not empty"),
        stride: (a.column_stride, "column_stride"),
        heads: (a.column_heads, "column_heads"),
    };
    // SAFETY: I1: the lists are as long as documented.
    unsafe { given.lists(queries, 1).map(Some) }
}

/// The block mask of a problem of these query rows and keys, if there is one.
///
/// # Safety
/// The pointers of the description lead to what the header says of them; see [`problem`].
unsafe fn cells<'a>(
    a: &fa_attention,
    queries: [usize; 3],
    len_kv: usize,
) -> Result<Option<BlockMask<'a>>, Refusal> {
    if !a.kept_start.is_null() {
        // SAFETY: I1: the lists are as long as documented.
        return unsafe { lists_of_blocks(a, queries).map(Some) };
    }
    if !a.kept_blocks.is_null() {
        return Err(Refusal::about(Error::Null, "kept_start", "NULL, but kept_blocks is set"));
    }
    if a.block_mask.is_null() {
        return Ok(None);
    }
    let rows = extent("block_mask_q", a.block_mask_q, 1)?;
    let keys = extent("block_mask_kv", a.block_mask_kv, 1)?;
    let [batch, heads, len_q] = queries;
    let extent = [batch, heads, len_q.div_ceil(rows)];
    let stride = strides("block_mask_stride", a.block_mask_stride, extent, 1)?;
    let layout = Layout { dtype: Dtype::Bool8, extent, dim: len_kv.div_ceil(keys), stride, stride_dim: 0 };
    // SAFETY: I1: `block_mask` has a byte for each block of query rows and keys.
    let view = unsafe { View::new(a.block_mask, layout).map_err(about("block_mask", &layout))? };
    Ok(Some(BlockMask { blocks: Blocks::Bytes(view), rows, keys }))
}

/// The lists of blocks of a problem of these query rows, which has some. Kept out of line: few
/// problems have.
///
/// # Safety
/// The pointers of the description lead to what the header says of them; see [`problem`].
#[inline(never)]
unsafe fn lists_of_blocks<'a>(a: &fa_attention, queries: [usize; 3]) -> Result<BlockMask<'a>, Refusal> {
    let [batch, heads, len_q] = queries;
    if !a.block_mask.is_null() {
        return Err(Refusal::about(Error::Shape, "block_mask", "set, but kept_start is set, too"));
    }
    let rows = extent("kept_q", a.kept_q, 1)?;
    let keys = extent("kept_kv", a.kept_kv, 1)?;
    let given = GivenLists {
        starts: a.kept_start,
        entries: (a.kept_blocks, "kept_blocks", "NULL, but lists in kept_start are not empty"),
        stride: (a.kept_stride, "kept_stride"),
        heads: (a.kept_heads, "kept_heads"),
    };
    // SAFETY: I1: the lists are as long as documented.
    let lists = unsafe { given.lists([batch, heads], len_q.div_ceil(rows))? };
    Ok(BlockMask { blocks: Blocks::Lists(lists), rows, keys })
}

/// The fields that give lists, each with its name.
struct GivenLists {
    starts: *const i32,
    /// With words for the refusal of entries that are missing.
    entries: (*const i32, &'static str, &'static str),
    stride: ([i64; 2], &'static str),
    heads: (i64, &'static str),
}

impl GivenLists {
    /// The lists of a problem of these sequences and query heads, of which each head has as many.
    /// Kept out of line: few problems have some.
    ///
    /// # Safety
    /// The pointers lead to what the header says of them; see [`problem`].
    #[inline(never)]
    unsafe fn lists<'a>(&self, [batch, heads]: [usize; 2], lists: usize) -> Result<Lists<'a>, Refusal> {
        let (given_heads, of_heads) = self.heads;
        let with_lists = match extent(of_heads, given_heads, 0)? {
            0 => heads,
            n => n,
        };
        if !heads.is_multiple_of(with_lists) {
            let fact = Refusal::of(of_heads, given_heads);
            return Err(fact.against(Error::Shape, "no divisor of heads_q", heads as i64));
        }
        let (given_stride, of_stride) = self.stride;
        let mut stride = [0; 2];
        for (axis, n) in [batch, with_lists].into_iter().enumerate() {
            let fact = Refusal::of(of_stride, given_stride[axis]).at(axis);
            if n > 1 {
                stride[axis] =
                    usize::try_from(given_stride[axis]).map_err(|_| fact.but(Error::Stride, "negative"))?;
            }
        }
        let needed = needed_starts(stride, batch, with_lists, lists).filter(|&len| len <= MOST_VALUES);
        let Some(needed) = needed else {
            let axis = usize::from(stride[1] > stride[0]);
            let fact = Refusal::of(of_stride, given_stride[axis]).at(axis);
            return Err(fact.but(Error::Overflow, TOO_LARGE));
        };
        // SAFETY: I1: there is an element for each list, and one more for each head.
        let starts = unsafe { Array::new(self.starts, needed) };
        // As many entries as the lists lead to. Those that are negative or out of order are refused
        // by `Lists`, which sees all of them.
        let (mut most, mut are_empty) = (0, true);
        for b in 0..if stride[0] == 0 { batch.min(1) } else { batch } {
            for h in 0..if stride[1] == 0 { 1 } else { with_lists } {
                let at = b * stride[0] + h * stride[1];
                let (first, last) = (starts.get(at), starts.get(at + lists));
                most = most.max(first).max(last);
                are_empty &= first == last;
            }
        }
        let (entries, of_entries, missing) = self.entries;
        if !are_empty && entries.is_null() {
            return Err(Refusal::about(Error::Null, of_entries, missing));
        }
        // SAFETY: I1: there are as many entries as the lists say.
        let entries = unsafe { Array::new(entries, usize::try_from(most).unwrap_or(0)) };
        Ok(Lists { starts, entries, stride, shared_by: heads / with_lists })
    }
}

/// Whether any field of the probabilities is set. Most problems have none.
#[inline(always)]
fn names_weights(a: &fa_attention) -> bool {
    let has_lists = !a.weight_heads.is_null() || !a.weight_rows.is_null();
    !a.weights.data.is_null() || has_lists || a.num_weight_heads | a.num_weight_rows != 0
}

/// Where the probabilities of a problem of these query rows and keys go, if they are wanted.
///
/// # Safety
/// The pointers of the description lead to what the header says of them; see [`problem`].
#[inline(never)]
unsafe fn weights<'a>(
    a: &fa_attention,
    [batch, heads_q, len_q]: [usize; 3],
    len_kv: usize,
) -> Result<Option<Weights<'a>>, Refusal> {
    // SAFETY: I1: lists are NULL or have as many values as is said.
    let (heads, rows) = unsafe {
        let names = ["weight_heads", "num_weight_heads", "neither 0 nor heads_q", "more than heads_q"];
        let heads = chosen(a, names, a.weight_heads, a.num_weight_heads, heads_q)?;
        let names = ["weight_rows", "num_weight_rows", "neither 0 nor len_q", "more than len_q"];
        (heads, chosen(a, names, a.weight_rows, a.num_weight_rows, len_q)?)
    };
    if a.weights.data.is_null() {
        return Ok(None);
    }
    if tensor::dtype(WEIGHTS.dtype, a.weights.dtype)? != Dtype::F32 {
        let fact = Refusal::of(WEIGHTS.dtype, i64::from(a.weights.dtype));
        return Err(fact.but(Error::Dtype, "weights are FA_DTYPE_F32"));
    }
    unquantised(WEIGHTS.quant, &a.weights)?;
    let extent = [batch, heads.map_or(heads_q, |list| list.len()), rows.map_or(len_q, |list| list.len())];
    let layout = layout_of(Dtype::F32, &WEIGHTS, &a.weights, extent, len_kv)?;
    // SAFETY: I1: `weights` has rows for all sequences, heads of the list and rows of the list.
    let view =
        unsafe { ViewMut::new(a.weights.data.cast(), layout).map_err(about(WEIGHTS.tensor, &layout))? };
    Ok(Some(Weights { view, heads, rows }))
}

/// A list of some of `all` heads, or rows, of `count` entries; `None` if there is no list. `names`
/// are those of the list and of its length, and words for a length without a list, and for one that
/// is too large.
///
/// # Safety
/// `list` is NULL or has `count` values.
unsafe fn chosen<'a>(
    a: &fa_attention,
    names: [&'static str; 4],
    list: *const i32,
    count: i64,
    all: usize,
) -> Result<Option<Array<'a, i32>>, Refusal> {
    let [name, of_count, but_without, but_more] = names;
    let fact = Refusal::of(of_count, count);
    if list.is_null() {
        return match usize::try_from(count) {
            Ok(n) if n == 0 || n == all => Ok(None),
            _ => Err(fact.against(Error::Shape, but_without, number(all))),
        };
    }
    if a.weights.data.is_null() {
        return Err(Refusal::about(Error::Null, name, "set, but weights.data is NULL"));
    }
    let n = extent(of_count, count, 1)?;
    if n > all || n > MOST_VALUES {
        return Err(fact.against(Error::Shape, but_more, number(all)));
    }
    // SAFETY: I1: not NULL, so it has as many values as documented.
    Ok(Some(unsafe { Array::new(list, n) }))
}

fn semantics(a: &fa_attention, dim_qk: usize) -> Result<Semantics, Refusal> {
    let limit = |what, value| match value {
        FA_NO_LIMIT => Ok(None),
        0.. => Ok(Some(value as u64)),
        _ => Err(Refusal::of(what, value).but(Error::Window, "negative, and not FA_NO_LIMIT")),
    };
    // What only limits something may be more than an address space holds.
    let most = |what, value: i64| extent(what, value.min(isize::MAX as i64), 0);
    let q_pos = position(a)?;
    Ok(Semantics {
        accuracy: accuracy(a.flags)?,
        softmax_scale: if a.scale == 0.0 { Semantics::usual_scale(dim_qk) } else { a.scale },
        q_pos,
        window: Window {
            left: limit("window_left", a.window_left)?,
            right: limit("window_right", a.window_right)?,
        },
        prefix_keys: most("prefix_keys", a.prefix_keys)?,
        block_q: most("block_q", a.block_q)?,
        block_kv: most("block_kv", a.block_kv)?,
    })
}

/// Key position of query row 0.
fn position(a: &fa_attention) -> Result<Position, Refusal> {
    if !a.q_positions.is_null() && ![0, FA_POS_END].contains(&a.q_pos) {
        let but = "neither 0 nor FA_POS_END, but q_positions is set";
        return Err(Refusal::of("q_pos", a.q_pos).but(Error::Shape, but));
    }
    Ok(if a.q_pos == FA_POS_END { Position::End } else { Position::At(a.q_pos) })
}

/// The demand on rounding that the flags make.
fn accuracy(flags: u32) -> Result<Accuracy, Refusal> {
    match flags & (FA_PRECISE | FA_FAST) {
        0 => Ok(Accuracy::AsStored),
        FA_PRECISE => Ok(Accuracy::Precise),
        FA_FAST => Ok(Accuracy::Fast),
        _ => {
            let fact = Refusal::of("flags", i64::from(flags));
            Err(fact.but(Error::Reserved, "FA_FAST and FA_PRECISE exclude each other"))
        }
    }
}

/// Turns an error of a view into a refusal of the tensor `what` with this layout.
pub(super) fn about(what: &'static str, layout: &Layout) -> impl Fn(Error) -> Refusal {
    let Layout { extent, dim, stride, .. } = *layout;
    move |error| match names::flaw(error) {
        Some(but) => Refusal::about_tensor(error, TensorFact { what, but, extent, dim, stride }),
        None => error.into(),
    }
}

/// Refuses tensors that take more than the bytes that a description gives them.
#[inline(never)]
fn memory(a: &fa_attention, tensors: &Tensors) -> Result<(), Refusal> {
    let Tensors { q, k, v, o, lse, logits, weights, .. } = tensors;
    let all = [
        (&Q, a.q_bytes, Some(q.layout())),
        (&K, a.k_bytes, Some(k.layout())),
        (&V, a.v_bytes, Some(v.layout())),
        (&O, a.o_bytes, Some(o.layout())),
        (&MASK, a.mask_bytes, logits.mask.as_ref().map(View::layout)),
        (&LSE, a.lse_bytes, lse.as_ref().map(ViewMut::layout)),
        (&WEIGHTS, a.weights_bytes, weights.as_ref().map(|weights| weights.view.layout())),
    ];
    all.into_iter().try_for_each(|(names, given, layout)| match layout {
        Some(layout) => within(names, given, layout),
        None => Ok(()),
    })
}

/// Refuses a tensor that takes more than the `given` bytes of its memory; 0 are unknown.
#[inline(never)]
fn within(names: &Names, given: i64, layout: &Layout) -> Result<(), Refusal> {
    if given == 0 {
        return Ok(());
    }
    let fact = Refusal::of(names.bytes, given);
    let taken = layout.span().map_err(about(names.tensor, layout))?;
    match u64::try_from(given) {
        Err(_) => Err(fact.but(Error::Shape, "negative")),
        Ok(given) if taken as u64 <= given => Ok(()),
        Ok(_) => {
            let but = "fewer than the tensor takes by its sizes, strides and type";
            Err(fact.against(Error::Shape, but, number(taken)))
        }
    }
}

pub(super) fn extent(what: &'static str, value: i64, least: i64) -> Result<usize, Refusal> {
    let fact = Refusal::of(what, value);
    match usize::try_from(value) {
        Err(_) if value < 0 => Err(fact.but(Error::Shape, "negative")),
        Err(_) => Err(fact.but(Error::Overflow, "more than an address space holds")),
        Ok(_) if value < least => Err(fact.but(Error::ZeroExtent, "must be at least 1")),
        Ok(n) => Ok(n),
    }
}

/// Values of 4 bytes that an address space holds: offsets are signed.
pub(super) const MOST_VALUES: usize = isize::MAX as usize / 4;

/// A list with `batch + more` values; `None` if there is no list.
///
/// # Safety
/// `data` is NULL or leads to as many values.
unsafe fn array<'a>(
    what: &'static str,
    data: *const i32,
    batch: usize,
    more: usize,
) -> Result<Option<Array<'a, i32>>, Refusal> {
    if data.is_null() {
        return Ok(None);
    }
    // Fits: `batch` came from an i64.
    let len = batch + more;
    if len > MOST_VALUES {
        return Err(Refusal::of(what, len as i64).but(Error::Overflow, TOO_LARGE));
    }
    // SAFETY: I1: not NULL, so it has as many values as documented.
    Ok(Some(unsafe { Array::new(data, len) }))
}

/// Rows of a packed tensor; `None` if it is not packed. Refuses a sequence of more than `most`
/// rows.
fn packed(
    what: &'static str,
    starts: Option<Array<i32>>,
    but: &'static str,
    most: usize,
) -> Result<Option<usize>, Refusal> {
    let Some(starts) = starts else { return Ok(None) };
    let last = starts.len() - 1;
    for b in 0..last {
        let len = i64::from(starts.get(b + 1)) - i64::from(starts.get(b));
        if len > most as i64 {
            return Err(Refusal::of(what, i64::from(starts.get(b + 1))).at(b + 1).against(
                Error::Lengths,
                but,
                most as i64,
            ));
        }
    }
    // A negative one is refused by `Batch`, which sees the others, too.
    Ok(Some(usize::try_from(starts.get(last)).unwrap_or(0)))
}

pub(super) fn layout(
    names: &Names,
    tensor: &fa_tensor,
    extent: [usize; 3],
    dim: usize,
) -> Result<Layout, Refusal> {
    let dtype = tensor::dtype(names.dtype, tensor.dtype)?;
    let fact = Refusal::of(names.dtype, i64::from(tensor.dtype));
    if dtype == Dtype::Bool8 {
        return Err(fact.but(Error::Dtype, "FA_DTYPE_BOOL8 is for masks"));
    }
    if !dim.is_multiple_of(dtype.block()) {
        let but = "rows have whole blocks only, and the tensor's dim is no multiple of their elements";
        return Err(fact.against(Error::Shape, but, dtype.block() as i64));
    }
    if !dtype.takes_scales() {
        unquantised(names.quant, tensor)?;
    }
    layout_of(dtype, names, tensor, extent, dim)
}

fn unquantised(quant_name: &'static str, tensor: &fa_tensor) -> Result<(), Refusal> {
    if tensor.quant.is_null() {
        return Ok(());
    }
    let but = "set, but the numbers are not quantised, dtype";
    Err(Refusal::of_thing(quant_name).against(Error::Dtype, but, i64::from(tensor.dtype)))
}

/// # Safety
/// The pointers of the description lead to what the header says of them; see [`problem`].
unsafe fn input<'a>(names: &Names, tensor: &fa_tensor, layout: Layout) -> Result<View<'a>, Refusal> {
    // SAFETY: I1: `data` leads to all rows of the layout, which is that of the description.
    let view = unsafe { View::new(tensor.data.cast(), layout).map_err(about(names.tensor, &layout))? };
    // SAFETY: I1: scales are as documented.
    match unsafe { given_scales(names, tensor, &layout)? } {
        None => Ok(view),
        Some(quant) => view.quantised(quant).map_err(|error| names.refuse_scales(error)),
    }
}

/// # Safety
/// As for [`input`].
unsafe fn output<'a>(names: &Names, tensor: &fa_tensor, layout: Layout) -> Result<ViewMut<'a>, Refusal> {
    // SAFETY: I1: `data` leads to all rows of the layout, which is that of the description.
    let view = unsafe { ViewMut::new(tensor.data.cast(), layout).map_err(about(names.tensor, &layout))? };
    // SAFETY: I1: scales are as documented.
    match unsafe { given_scales(names, tensor, &layout)? } {
        None => Ok(view),
        Some(quant) => view.quantised(quant).map_err(|error| names.refuse_scales(error)),
    }
}

/// The scales and zeros of a tensor, if it has some.
///
/// # Safety
/// As for [`input`].
unsafe fn given_scales<'a>(
    names: &Names,
    tensor: &fa_tensor,
    layout: &Layout,
) -> Result<Option<Quant<'a>>, Refusal> {
    if tensor.quant.is_null() {
        return Ok(None);
    }
    // SAFETY: I1: not NULL, so it is an fa_quant; no alignment is assumed.
    let quant = unsafe { tensor.quant.read_unaligned() };
    names.check_zeros(!quant.zero.is_null(), layout.dtype.takes_zeros())?;
    let Places { stride, group, len } = places(names, &quant, layout)?;
    // SAFETY: I1: scales and zeros have as many values as strides and groups say.
    let values = |data: *const f32| (!data.is_null()).then(|| unsafe { Array::new(data, len) });
    Ok(Some(Quant { scale: values(quant.scale), zero: values(quant.zero), stride, group }))
}

/// Strides and groups of scales, and how many scales there are.
pub(super) struct Places {
    pub(super) stride: [usize; 4],
    pub(super) group: [usize; 2],
    pub(super) len: usize,
}

pub(super) fn places(names: &Names, quant: &fa_quant, layout: &Layout) -> Result<Places, Refusal> {
    let mut stride = [0; 4];
    for (axis, stride) in stride.iter_mut().enumerate() {
        let fact = Refusal::of(names.quant_stride, quant.stride[axis]).at(axis);
        *stride = usize::try_from(quant.stride[axis]).map_err(|_| fact.but(Error::Stride, "negative"))?;
    }
    let fa_quant { group_tokens, group_dims, .. } = *quant;
    let group = |name, size: i32, stride| match stride {
        // Nothing to tell apart.
        0 => Ok(1),
        _ => extent(name, i64::from(size), 1),
    };
    let group = [
        group(names.group_tokens, group_tokens, stride[2])?,
        group(names.group_dims, group_dims, stride[3])?,
    ];
    let len = Quant::len(stride, group, layout).map_err(|error| {
        let axis = (0..4).max_by_key(|&axis| stride[axis]).unwrap_or(0);
        Refusal::of(names.quant_stride, quant.stride[axis]).at(axis).but(error, TOO_LARGE)
    })?;
    Ok(Places { stride, group, len })
}

fn layout_of(
    dtype: Dtype,
    names: &Names,
    tensor: &fa_tensor,
    extent: [usize; 3],
    dim: usize,
) -> Result<Layout, Refusal> {
    let stride = strides(names.stride, tensor.stride, extent, dtype.unit())?;
    let element = [dtype.block(), dtype.block_bytes()];
    let stride_dim = names.stride_dim(i64::from(tensor.stride_dim), element, dim)?;
    Ok(Layout { dtype, extent, dim, stride, stride_dim })
}

/// Checked strides. Axes of one entry have none, whatever is given.
fn strides(
    what: &'static str,
    given: [i64; 3],
    extent: [usize; 3],
    element: usize,
) -> Result<[usize; 3], Refusal> {
    let mut strides = [0; 3];
    for axis in (0..3).filter(|&axis| extent[axis] > 1) {
        let fact = Refusal::of(what, given[axis]).at(axis);
        strides[axis] = usize::try_from(given[axis]).map_err(|_| fact.but(Error::Stride, "negative"))?;
        if !strides[axis].is_multiple_of(element) {
            return Err(fact.against(Error::Stride, "not a multiple of the element size", element as i64));
        }
    }
    Ok(strides)
}
