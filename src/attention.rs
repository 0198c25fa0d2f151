//! The Rust boundary: attention on slices. Lengths and lifetimes of slices say what a C caller has
//! to vouch for. Everything else is checked as for C, and refused with the same statuses and words.

mod append;
mod isa;
mod merge;
mod parts;
mod pool;
mod tensor;
mod workspace;

use crate::dtype::Dtype;
use crate::error::names::{K, LSE, MASK, Names, O, Q, V, WEIGHTS, names, number};
use crate::error::{Error, Refusal};
use crate::prepared::{self, PlanSummary, Prepared};
use crate::problem::{
    Accuracy, Batch, BlockMask, Blocks, Lists, Logits, Pages, Position, Problem, Semantics, Slopes, Spans,
    Tensors, Weights, Window,
};
use crate::sparse::SparseLists;
use crate::view::Array;
pub use append::{Append, quantize, quantize_smoothed};
pub use isa::{isa, limit_isa, version};
pub use merge::merge;
pub use parts::Parts;
pub use pool::{Pool, Task};
use tensor::Shape;
pub use tensor::{Data, DataMut, Tensor, TensorMut};
pub use workspace::Workspace;

/// Lists of blocks of keys, one for each block of query rows (BSR, block compressed sparse rows).
#[derive(Clone, Copy, Debug)]
pub struct KeptBlocks<'a> {
    /// Where the list of each block of query rows begins in `blocks`, and where the last one of a
    /// head ends: `[sequences][heads][blocks of rows + 1]`. Of ragged batches, there are lists for
    /// the longest sequence.
    pub starts: &'a [i32],
    /// Numbers of blocks of keys, in each list ascending, each once.
    pub blocks: &'a [i32],
    /// Sequences that have lists of their own: all of the batch, or 1, whose lists are those of
    /// all.
    pub sequences: usize,
    /// Heads that have lists of their own, a divisor of those of q: neighbouring query heads share
    /// them. 1: all heads have the same.
    pub heads: usize,
    /// Query rows of a block; at least 1.
    pub rows: usize,
    /// Keys of a block; at least 1.
    pub keys: usize,
}

/// Lists of single keys (vertical lines of the matrix of scores), one for each head.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    /// Where the list of each head begins in `keys`, and where it ends: `[sequences][heads][2]`.
    pub starts: &'a [i32],
    /// Keys, in each list ascending, each once.
    pub keys: &'a [i32],
    /// Sequences that have lists of their own: all of the batch, or 1, whose lists are those of
    /// all.
    pub sequences: usize,
    /// Heads that have lists of their own, a divisor of those of q: neighbouring query heads share
    /// them. 1: all heads have the same.
    pub heads: usize,
}

/// The lists of some sequences and heads, where each has as many: `entries` from those that
/// `starts` say. [`agree_on_lists`] has seen that the counts are exact.
fn lists_of<'a>(
    [starts, entries]: [&'a [i32]; 2],
    [sequences, with_lists]: [usize; 2],
    heads: usize,
) -> Lists<'a> {
    let of_head = starts.len().checked_div(with_lists.saturating_mul(sequences)).unwrap_or(0);
    let stride = |n: usize, stride| if n > 1 { stride } else { 0 };
    Lists {
        starts: Array::of(starts),
        entries: Array::of(entries),
        stride: [stride(sequences, of_head * with_lists), stride(with_lists, of_head)],
        shared_by: heads.checked_div(with_lists).unwrap_or(0),
    }
}

/// The words of a refusal of lists: what their sequences, heads and starts are called.
type ListNames = [&'static str; 3];

/// Refuses lists of `given` sequences and `with_lists` heads that do not fit a problem of these
/// sequences and heads.
fn agree_on_lists(
    names: ListNames,
    starts: &[i32],
    [given, with_lists]: [usize; 2],
    [sequences, heads]: [usize; 2],
) -> Result<(), Refusal> {
    let [of_sequences, of_heads, of_starts] = names;
    if given != 1 {
        equal(of_sequences, given, "neither 1 nor all of the batch", sequences)?;
    }
    if with_lists == 0 || !heads.is_multiple_of(with_lists) {
        let fact = Refusal::of(of_heads, number(with_lists));
        return Err(fact.against(Error::Shape, "no divisor of the heads of q", number(heads)));
    }
    let all = with_lists.saturating_mul(given).max(1);
    if !starts.len().is_multiple_of(all) {
        let fact = Refusal::of(of_starts, number(starts.len()));
        return Err(fact.against(Error::Shape, "not as many for each head", number(all)));
    }
    Ok(())
}

/// The lists of a text's partitions, which all heads and sequences share.
impl<'a> From<SparseLists<'a>> for KeptBlocks<'a> {
    fn from(lists: SparseLists<'a>) -> KeptBlocks<'a> {
        let SparseLists { starts, blocks, kept_q, kept_kv, .. } = lists;
        KeptBlocks { starts, blocks, sequences: 1, heads: 1, rows: kept_q, keys: kept_kv }
    }
}

/// The boundary tokens of a text's partitions that are kept, for all heads and sequences.
impl<'a> From<SparseLists<'a>> for Columns<'a> {
    fn from(lists: SparseLists<'a>) -> Columns<'a> {
        Columns { starts: lists.column_start, keys: lists.columns, sequences: 1, heads: 1 }
    }
}

/// The lists of pages of all sequences.
#[derive(Clone, Copy, Debug)]
struct PageLists<'a> {
    table: &'a [i32],
    /// Where each list begins in the table, and where the last one ends, if they are not all as
    /// long.
    starts: Option<&'a [i32]>,
    /// Keys of a sequence.
    len_kv: usize,
    /// Whether each kv head has its own.
    of_heads: bool,
}

impl<'a> PageLists<'a> {
    /// Lists as long as each other, one behind another.
    fn rows(table: &'a [i32], len_kv: usize) -> PageLists<'a> {
        PageLists { table, starts: None, len_kv, of_heads: false }
    }

    /// Refuses lists that are not those of so many sequences and kv heads.
    fn agree(&self, sequences: usize, heads_kv: usize) -> Result<(), Refusal> {
        if let Some(starts) = self.starts {
            let wanted = sequences.saturating_add(1);
            return equal("starts of lists of pages", starts.len(), "not one more than sequences", wanted);
        }
        let lists = if self.of_heads { sequences.saturating_mul(heads_kv) } else { sequences };
        if self.table.len().is_multiple_of(lists.max(1)) {
            return Ok(());
        }
        let fact = Refusal::of("entries of the table of pages", number(self.table.len()));
        let but = match self.of_heads {
            true => "not a row for each kv head of each sequence",
            false => "not a row for each sequence",
        };
        Err(fact.against(Error::Shape, but, number(lists)))
    }

    /// The lists of so many sequences and kv heads, which [`PageLists::agree`] has seen.
    fn pages(&self, sequences: usize, heads_kv: usize) -> Pages<'a> {
        let stride = self.table.len().checked_div(sequences).unwrap_or(0);
        Pages {
            table: Array::of(self.table),
            starts: self.starts.map(Array::of),
            stride,
            head_stride: if self.of_heads && heads_kv > 1 { stride / heads_kv } else { 0 },
            len_kv: self.len_kv,
        }
    }
}

/// A mask of blocks: which blocks of `keys` keys each block of `rows` query rows sees.
#[derive(Clone, Copy, Debug)]
struct MaskOfBlocks<'a> {
    mask: Tensor<'a>,
    rows: usize,
    keys: usize,
}

const BLOCK_MASK: Names = names!("block_mask");

/// Attention on tensors in slices. [`Attention::new`] takes the tensors, other methods the options,
/// and [`Attention::run`] computes. By default every query sees every key.
///
/// For query row i of a sequence, at key position p = q_pos + i, over the visible keys j. Terms of
/// options that are not set drop out:
///
/// ```text
/// s_j  = scale · Σ_d q[i][d] · k[j][d]
/// t_j  = softcap · tanh(s_j / softcap) - slope · |p - j| + mask[i][j]
/// Z    = Σ_j exp(t_j) + exp(sink)
/// o[i] = Σ_j exp(t_j) · v[j] / Z                   lse[i] = log Z
/// ```
///
/// Query head h uses kv head h / (heads_q / heads_kv). A key that is not visible has no influence
/// on the row, even if it is NaN. A fully masked row is zeros, and its lse -∞.
///
/// Errors are [`Refusal`]s: a status for programs and a sentence for people. On every error but
/// [`Error::Internal`] all outputs are as they were. A row's bits do not depend on threads,
/// strides, pages, or other rows.
///
/// The compiler ensures that an output belongs to one call and shares memory with no input:
///
/// ```compile_fail,E0502
/// # use flash_attention::{Attention, Tensor, TensorMut};
/// let mut x = vec![0.0; 2 * 4];
/// let input = Tensor::head_first(&x, [1, 1, 2, 4]);
/// let output = TensorMut::head_first(&mut x, [1, 1, 2, 4]);
/// let _ = Attention::new(input, input, input, output);
/// ```
#[derive(Debug)]
#[must_use = "nothing is computed before run()"]
pub struct Attention<'a> {
    q: Tensor<'a>,
    k: Tensor<'a>,
    v: Tensor<'a>,
    out: TensorMut<'a>,
    lse: Option<TensorMut<'a>>,
    scale: Option<f32>,
    softcap: f32,
    q_pos: Position,
    window: Window,
    accuracy: Accuracy,
    mask: Option<Tensor<'a>>,
    mask_times_slope: bool,
    block_mask: Option<MaskOfBlocks<'a>>,
    alibi_slopes: Option<&'a [f32]>,
    sinks: Option<&'a [f32]>,
    kv_lens: Option<&'a [i32]>,
    kv_starts: Option<&'a [i32]>,
    q_positions: Option<&'a [i32]>,
    prefix_keys: usize,
    /// The spans of all sequences, and where those of each begin.
    spans: Option<(&'a [[i32; 2]], &'a [i32])>,
    cu_len_q: Option<&'a [i32]>,
    cu_len_kv: Option<&'a [i32]>,
    kept_blocks: Option<KeptBlocks<'a>>,
    columns: Option<Columns<'a>>,
    pages: Option<PageLists<'a>>,
    weights: Option<TensorMut<'a>>,
    weight_heads: Option<&'a [i32]>,
    weight_rows: Option<&'a [i32]>,
    /// Query rows and keys of a tile; 0: chosen.
    tiles: [usize; 2],
}

impl<'a> Attention<'a> {
    /// Takes the tensors: q `[batch][heads_q][len_q][dim_qk]`, k
    /// `[batch][heads_kv][len_kv][dim_qk]`, v `[batch][heads_kv][len_kv][dim_v]` and out
    /// `[batch][heads_q][len_q][dim_v]`, in any mixture of types. heads_q is a multiple of
    /// heads_kv. Sizes are checked when a call is made.
    pub fn new(q: Tensor<'a>, k: Tensor<'a>, v: Tensor<'a>, out: TensorMut<'a>) -> Attention<'a> {
        Attention {
            q,
            k,
            v,
            out,
            lse: None,
            scale: None,
            softcap: 0.0,
            q_pos: Position::End,
            window: Window::default(),
            accuracy: Accuracy::default(),
            mask: None,
            mask_times_slope: false,
            block_mask: None,
            alibi_slopes: None,
            sinks: None,
            kv_lens: None,
            kv_starts: None,
            q_positions: None,
            prefix_keys: 0,
            spans: None,
            cu_len_q: None,
            cu_len_kv: None,
            kept_blocks: None,
            columns: None,
            pages: None,
            weights: None,
            weight_heads: None,
            weight_rows: None,
            tiles: [0; 2],
        }
    }

    /// Sets the softmax scale, which every dot product is multiplied by. Finite; may be 0 or
    /// negative. The default is 1/√dim_qk.
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Causal attention: a query sees no key behind its own position.
    pub fn causal(mut self) -> Self {
        self.window.right = Some(0);
        self
    }

    /// Limits how many keys before its own position a query sees, and how many behind it; `None` is
    /// no limit. A sliding window of `n` keys, the query's own included, is `window(Some(n - 1),
    /// Some(0))`.
    pub fn window(mut self, left: Option<u64>, right: Option<u64>) -> Self {
        self.window = Window { left, right };
        self
    }

    /// Sets the key position of query row 0. By default the last query of each sequence is on its
    /// last key.
    pub fn q_pos(mut self, position: i64) -> Self {
        self.q_pos = Position::At(position);
        self
    }

    /// Sets the key position of query row 0 of each sequence, `[batch]`, in place of
    /// [`q_pos`](Attention::q_pos).
    pub fn q_positions(mut self, positions: &'a [i32]) -> Self {
        self.q_positions = Some(positions);
        self
    }

    /// Lets rows see the first `keys` keys of their sequence (from
    /// [`kv_starts`](Attention::kv_starts) on) though they lie before the window, as far as its
    /// right end (StreamingLLM, arXiv:2309.17453).
    pub fn prefix_keys(mut self, keys: usize) -> Self {
        self.prefix_keys = keys;
        self
    }

    /// Sets spans of keys that see each other both ways, whatever the window: images within a
    /// causal text, the prompt of a prefix language model. Each is the position of its first key,
    /// and the one behind its last, ascending and disjoint in each sequence; those of sequence b
    /// are `spans[starts[b]]` to `spans[starts[b + 1]]`, `starts` is `[batch + 1]`. A row whose
    /// position lies in a span sees all its keys, besides what the window leaves it.
    pub fn spans(mut self, spans: &'a [[i32; 2]], starts: &'a [i32]) -> Self {
        self.spans = Some((spans, starts));
        self
    }

    /// Replaces scores s by softcap · tanh(s / softcap). Finite, not negative; 0 = off.
    pub fn softcap(mut self, softcap: f32) -> Self {
        self.softcap = softcap;
        self
    }

    /// Sets a mask `[batch or 1][heads_q or 1][len_q or 1][len_kv]`, whose last axis is its dim.
    /// Numbers (f32, f16, bf16) are added to the scores, after softcap; -∞ hides the key. Of
    /// booleans true = the key is visible.
    pub fn mask(mut self, mask: Tensor<'a>) -> Self {
        self.mask = Some(mask);
        self
    }

    /// Sets the ALiBi slope of each query head: `[heads_q]`, or `[batch][heads_q]`.
    pub fn alibi_slopes(mut self, slopes: &'a [f32]) -> Self {
        self.alibi_slopes = Some(slopes);
        self
    }

    /// Adds slope · mask\[i\]\[j\] to a score, in place of mask\[i\]\[j\] - slope · |p - j|: for
    /// masks that hold distances, as those of ggml do. Needs a mask of numbers and
    /// [`alibi_slopes`](Attention::alibi_slopes).
    ///
    /// ```
    /// # use flash_attention::{Attention, Pool, Tensor, TensorMut, Workspace};
    /// let (x, far) = ([0.0; 2 * 4], [0.0, f32::NEG_INFINITY]);
    /// let (values, mut out) = ([1.0, 3.0], [0.0]);
    /// let mut attention = Attention::new(
    ///     Tensor::head_first(&x[..4], [1, 1, 1, 4]),
    ///     Tensor::head_first(&x, [1, 1, 2, 4]),
    ///     Tensor::head_first(&values, [1, 1, 2, 1]),
    ///     TensorMut::head_first(&mut out, [1, 1, 1, 1]),
    /// )
    /// .mask(Tensor::head_first(&far, [1, 1, 1, 2]))
    /// .alibi_slopes(&[0.5])
    /// .mask_times_slope();
    /// let (mut workspace, pool) = (Workspace::new(), Pool::default());
    /// attention.reserve(&mut workspace, &pool)?;
    /// attention.run(&mut workspace, &pool)?;
    /// assert_eq!(out, [1.0]); // the second key is hidden
    /// # Ok::<(), flash_attention::Refusal>(())
    /// ```
    pub fn mask_times_slope(mut self) -> Self {
        self.mask_times_slope = true;
        self
    }

    /// Sets an attention sink for each query head, `[heads_q]`: a logit that takes part in the
    /// softmax without a value. -∞ = none.
    pub fn sinks(mut self, sinks: &'a [f32]) -> Self {
        self.sinks = Some(sinks);
        self
    }

    /// Sets how many keys of each sequence are in use, `[batch]`: the first ones. The others are
    /// never read.
    pub fn kv_lens(mut self, kv_lens: &'a [i32]) -> Self {
        self.kv_lens = Some(kv_lens);
        self
    }

    /// Sets the first key of each sequence that any row sees, `[batch]`: those before it are
    /// hidden, and their pages are not looked up. Positions still count from key 0.
    pub fn kv_starts(mut self, kv_starts: &'a [i32]) -> Self {
        self.kv_starts = Some(kv_starts);
        self
    }

    /// Ragged queries, `[batch + 1]`: q, out and lse have one batch entry with the rows of all
    /// sequences, packed one behind another. Rows of sequence b are `cu_len_q[b]` to
    /// `cu_len_q[b + 1]`. A mask has rows for the longest sequence.
    pub fn cu_len_q(mut self, cu_len_q: &'a [i32]) -> Self {
        self.cu_len_q = Some(cu_len_q);
        self
    }

    /// Ragged keys, `[batch + 1]`: k and v have one batch entry with the keys of all sequences,
    /// packed one behind another. Keys of sequence b are `cu_len_kv[b]` to `cu_len_kv[b + 1]`.
    pub fn cu_len_kv(mut self, cu_len_kv: &'a [i32]) -> Self {
        self.cu_len_kv = Some(cu_len_kv);
        self
    }

    /// Paged keys: k and v are `[page][head][token of the page][dim]`, or token first. `table` is
    /// `[batch][max_pages]`: key j of sequence b is token j % page_size of page
    /// `table[b][j / page_size]`. len_kv is the number of keys of every sequence; with
    /// [`kv_lens`](Attention::kv_lens), the most that any has.
    pub fn pages(mut self, table: &'a [i32], len_kv: usize) -> Self {
        self.pages = Some(PageLists::rows(table, len_kv));
        self
    }

    /// Paged keys where sequences have lists of different lengths, one behind another: the pages of
    /// sequence b are `table[starts[b]]` to `table[starts[b + 1]]`, `starts` is `[batch + 1]`. Else
    /// as [`pages`](Attention::pages).
    ///
    /// ```
    /// # use flash_attention::{Attention, Pool, Tensor, TensorMut, Workspace};
    /// // Pages of one token: sequence 0 has page 2, sequence 1 pages 0 and 1.
    /// let (q, k, v) = ([0.0; 2], [0.0; 3], [1.0, 3.0, 7.0]);
    /// let mut out = [0.0; 2];
    /// let mut attention = Attention::new(
    ///     Tensor::head_first(&q, [2, 1, 1, 1]),
    ///     Tensor::head_first(&k, [3, 1, 1, 1]),
    ///     Tensor::head_first(&v, [3, 1, 1, 1]),
    ///     TensorMut::head_first(&mut out, [2, 1, 1, 1]),
    /// )
    /// .page_lists(&[2, 0, 1], &[0, 1, 3], 2)
    /// .kv_lens(&[1, 2]);
    /// let (mut workspace, pool) = (Workspace::new(), Pool::default());
    /// attention.reserve(&mut workspace, &pool)?;
    /// attention.run(&mut workspace, &pool)?;
    /// assert_eq!(out, [7.0, 2.0]);
    /// # Ok::<(), flash_attention::Refusal>(())
    /// ```
    pub fn page_lists(mut self, table: &'a [i32], starts: &'a [i32], len_kv: usize) -> Self {
        self.pages = Some(PageLists { starts: Some(starts), ..PageLists::rows(table, len_kv) });
        self
    }

    /// Paged keys where each kv head has pages of its own, those that were selected for it, as many
    /// as the others have: `table` is `[batch][heads_kv][max_pages]`. Keys count within a list.
    /// Else as [`pages`](Attention::pages).
    pub fn pages_of_heads(mut self, table: &'a [i32], len_kv: usize) -> Self {
        self.pages = Some(PageLists { of_heads: true, ..PageLists::rows(table, len_kv) });
        self
    }

    /// Block-sparse attention: the blocks of keys that each block of query rows sees, as far as
    /// nothing else hides them. Time is in proportion to what is listed.
    pub fn kept_blocks(mut self, kept: KeptBlocks<'a>) -> Self {
        self.kept_blocks = Some(kept);
        self
    }

    /// Block-sparse attention by a mask of booleans: true = the block of `rows` query rows sees the
    /// block of `keys` keys, as far as nothing else hides it. The mask is `[batch or 1][heads_q or
    /// 1][blocks of rows or 1][blocks of keys]`, whose last axis is its dim; of ragged batches it
    /// has blocks for the longest sequence. Blocks without any visible pair take no time. Not
    /// together with [`kept_blocks`](Attention::kept_blocks).
    ///
    /// ```
    /// # use flash_attention::{Attention, Pool, Tensor, TensorMut, Workspace};
    /// let (x, values) = ([0.0; 4 * 2], [1.0, 3.0, 5.0, 9.0]);
    /// let mut out = [0.0; 4];
    /// // Blocks of two rows and two keys: rows see the block of their own.
    /// let blocks = [true, false, false, true];
    /// let mut attention = Attention::new(
    ///     Tensor::head_first(&x, [1, 1, 4, 2]),
    ///     Tensor::head_first(&x, [1, 1, 4, 2]),
    ///     Tensor::head_first(&values, [1, 1, 4, 1]),
    ///     TensorMut::head_first(&mut out, [1, 1, 4, 1]),
    /// )
    /// .block_mask(Tensor::head_first(&blocks, [1, 1, 2, 2]), 2, 2);
    /// let (mut workspace, pool) = (Workspace::new(), Pool::default());
    /// attention.reserve(&mut workspace, &pool)?;
    /// attention.run(&mut workspace, &pool)?;
    /// assert_eq!(out, [2.0, 2.0, 7.0, 7.0]);
    /// # Ok::<(), flash_attention::Refusal>(())
    /// ```
    pub fn block_mask(mut self, mask: Tensor<'a>, rows: usize, keys: usize) -> Self {
        self.block_mask = Some(MaskOfBlocks { mask, rows, keys });
        self
    }

    /// Single keys that all rows of a head see (vertical lines), as far as the right end of their
    /// window, whatever its left end and [`kept_blocks`](Attention::kept_blocks) leave. Not
    /// together with a mask, slopes or weights.
    pub fn columns(mut self, columns: Columns<'a>) -> Self {
        self.columns = Some(columns);
        self
    }

    /// Asks for the log-sum-exp of each row (natural logarithm): f32 `[batch][heads_q][len_q][1]`.
    pub fn lse(mut self, lse: TensorMut<'a>) -> Self {
        self.lse = Some(lse);
        self
    }

    /// Asks for the probabilities of all keys: f32 `[batch][heads_q][len_q][len_kv]`, or of the
    /// heads and rows of [`weight_heads`](Attention::weight_heads) and
    /// [`weight_rows`](Attention::weight_rows) alone. They are 0 for keys that a row does not see
    /// and for those that its sequence does not have, sum to 1 less the sink's part, and are not
    /// rounded, whatever the accuracy. They take no memory beside the tensor. Of ragged batches it
    /// has rows and keys for the longest sequence; row i of entry b is row i of sequence b, and
    /// rows that a sequence does not have are not written.
    pub fn weights(mut self, weights: TensorMut<'a>) -> Self {
        self.weights = Some(weights);
        self
    }

    /// Chooses the query heads of [`weights`](Attention::weights), ascending.
    pub fn weight_heads(mut self, heads: &'a [i32]) -> Self {
        self.weight_heads = Some(heads);
        self
    }

    /// Chooses the query rows of [`weights`](Attention::weights), ascending: all counted from the
    /// first of each sequence, or all negative, from its end, -1 being the last.
    pub fn weight_rows(mut self, rows: &'a [i32]) -> Self {
        self.weight_rows = Some(rows);
        self
    }

    /// How far queries and probabilities may be rounded; by default, no further than storing K and
    /// V in their types has rounded them.
    pub fn accuracy(mut self, accuracy: Accuracy) -> Self {
        self.accuracy = accuracy;
        self
    }

    /// Sets the query rows and the keys of a tile, for tuners; 0 = chosen from this machine's
    /// caches, which is the default. Rows change no results, keys change them within rounding.
    pub fn tiles(mut self, rows: usize, keys: usize) -> Self {
        self.tiles = [rows, keys];
        self
    }

    /// Checks everything that [`run`](Attention::run) checks, except the workspace.
    ///
    /// # Errors
    /// Those of [`run`](Attention::run) but [`Error::Workspace`].
    pub fn check(&mut self) -> Result<(), Refusal> {
        Prepared::new(&mut self.problem()?, 1)?;
        Ok(())
    }

    /// Checks everything that [`run`](Attention::run) checks, workspace and pool included. Computes
    /// nothing.
    ///
    /// # Errors
    /// Those of [`run`](Attention::run).
    pub fn check_run(&mut self, workspace: &Workspace, pool: &Pool) -> Result<(), Refusal> {
        workspace.check(Prepared::new(&mut self.problem()?, pool.threads())?.bytes()?)
    }

    /// How [`run`](Attention::run) computes the problem with `pool`: for tuners and logs. What it
    /// says may change in any version.
    ///
    /// ```
    /// # use flash_attention::{Attention, ComputePath, Pool, Tensor, TensorMut};
    /// let (x, mut out) = (vec![0.5; 1000 * 64], vec![0.0; 64]);
    /// let keys = Tensor::head_first(&x, [1, 1, 1000, 64]);
    /// let query = Tensor::head_first(&x, [1, 1, 1, 64]);
    /// let output = TensorMut::head_first(&mut out, [1, 1, 1, 64]);
    /// let mut attention = Attention::new(query, keys, keys, output);
    /// let plan = attention.plan(&Pool::default())?;
    /// assert!(plan.path == ComputePath::Decode && plan.threads == 1);
    /// # Ok::<(), flash_attention::Refusal>(())
    /// ```
    ///
    /// # Errors
    /// As for [`check`](Attention::check).
    pub fn plan(&mut self, pool: &Pool) -> Result<PlanSummary, Refusal> {
        Ok(Prepared::new(&mut self.problem()?, pool.threads())?.plan().summary())
    }

    /// Makes `workspace` large enough for a call with `pool`. The size depends on shapes and
    /// options, not on the contents of lists: one call does for a cache that fills up, whose len_kv
    /// is its capacity and whose keys in use are [`kv_lens`](Attention::kv_lens). Where shapes
    /// change, call it before each run: it does nothing if there is enough. A smaller problem does
    /// not always need less, as its keys may be split differently.
    ///
    /// # Errors
    /// Those of [`run`](Attention::run), and [`Error::Memory`]: allocation failed, and the
    /// workspace is as it was.
    pub fn reserve(&mut self, workspace: &mut Workspace, pool: &Pool) -> Result<(), Refusal> {
        let bytes = Prepared::new(&mut self.problem()?, pool.threads())?.bytes()?;
        workspace.reserve(bytes)
    }

    /// Bytes of workspace with which [`run`](Attention::run) computes on `threads` threads, and
    /// [`run_in_parts`](Attention::run_in_parts) for as many: for [`Workspace::reserve`]. Threads
    /// are 1 to 256, those of a pool are [`Pool::threads`]. It may be 0. What
    /// [`reserve`](Attention::reserve) says of the size is true of this one.
    ///
    /// # Errors
    /// As for [`check`](Attention::check), and [`Error::Part`]: not 1 to 256.
    pub fn workspace(&mut self, threads: usize) -> Result<usize, Refusal> {
        let threads = pool::threads(threads)?;
        let problem = self.problem()?;
        Ok(prepared::bytes_for(problem.shape(), problem.semantics().accuracy, threads)?)
    }

    /// The largest answer of [`workspace`](Attention::workspace) for 1 to `most` threads: more
    /// threads do not always need more. For programs that do not know yet how many they will have.
    ///
    /// ```
    /// # use flash_attention::{Attention, Pool, Tensor, TensorMut, Workspace};
    /// # let (x, mut out) = (vec![0.5; 1000 * 64], vec![0.0; 64]);
    /// # let keys = Tensor::head_first(&x, [1, 1, 1000, 64]);
    /// # let query = Tensor::head_first(&x, [1, 1, 1, 64]);
    /// # let output = TensorMut::head_first(&mut out, [1, 1, 1, 64]);
    /// # let mut attention = Attention::new(query, keys, keys, output);
    /// let mut workspace = Workspace::new();
    /// workspace.reserve(attention.workspace_max(8)?)?;
    /// for threads in 1..=8 {
    ///     attention.run(&mut workspace, &Pool::new(threads)?)?;
    /// }
    /// # Ok::<(), flash_attention::Refusal>(())
    /// ```
    ///
    /// # Errors
    /// As for [`workspace`](Attention::workspace).
    pub fn workspace_max(&mut self, most: usize) -> Result<usize, Refusal> {
        let threads = pool::threads(most)?;
        let problem = self.problem()?;
        Ok(prepared::most_borrowed_bytes(problem.shape(), problem.semantics().accuracy, threads)?)
    }

    /// Computes the problem. Allocates nothing, except some bytes a thread where `pool` has
    /// several, and waits for nothing but its threads. May be called again, whether the inputs have
    /// changed or not.
    ///
    /// # Panics
    /// If the library breaks one of its own rules. The program's panic hook is called as for any
    /// other panic, on whichever thread it happened: the library does not touch the hook.
    ///
    /// # Errors
    /// - [`Error::Shape`]: tensors, lists and slices disagree about a size, or heads_q is no
    ///   multiple of heads_kv
    /// - [`Error::ZeroExtent`]: a size other than batch, len_q and len_kv is 0
    /// - [`Error::Stride`]: rows of an output overlap
    /// - [`Error::Overflow`]: more bytes than an address space holds, or positions beyond 64 bits
    /// - [`Error::Dtype`]: booleans that are no mask, scales of a type that has none, weights
    ///   that are not f32
    /// - [`Error::SoftmaxScale`], [`Error::Softcap`], [`Error::QuantScale`]: unusable numbers
    /// - [`Error::Lengths`], [`Error::Page`]: kv_lens, kv_starts, cu_len_q, cu_len_kv or pages lead
    ///   out of the tensors, spans are out of order, or weight_heads or weight_rows name what is
    ///   not there or are out of order
    /// - [`Error::Null`]: weight_heads or weight_rows without weights
    /// - [`Error::Workspace`]: [`reserve`](Attention::reserve) was not called for so large a
    ///   problem
    /// - [`Error::Isa`]: the environment variable `FA_MAX_ISA` names an instruction set that this
    ///   build does not know
    pub fn run(&mut self, workspace: &mut Workspace, pool: &Pool) -> Result<(), Refusal> {
        let mut problem = self.problem()?;
        let mut prepared = Prepared::new(&mut problem, pool.threads())?;
        let needed = prepared.bytes()?;
        workspace.check(needed)?;
        Ok(prepared.run(workspace.memory(), pool.threads_to_run_on())?)
    }

    /// Computes the problem on threads of the program's own, for engines that have some at work
    /// anyway. `body` has them call [`Parts::compute`], each once: any of them, in any order, at
    /// the same time or not, the calling one, too. They divide the work among themselves. What
    /// nobody has computed when `body` returns, the calling thread computes, so that the outputs
    /// are complete when this function returns. `threads` is how many there will be, 1 to 256:
    /// small problems are divided among them, too, as they come anyway. Bits are those of any other
    /// call.
    ///
    /// The workspace needs the bytes that [`workspace`](Attention::workspace) says for `threads`.
    /// Threads that a program gives jobs to, and does not call, are a [`Pool::from_spawn`].
    ///
    /// ```
    /// # use flash_attention::{Attention, Tensor, TensorMut, Workspace};
    /// # let (x, mut out) = (vec![0.5; 300 * 64], vec![0.0; 300 * 64]);
    /// # let tensor = Tensor::head_first(&x, [1, 1, 300, 64]);
    /// # let output = TensorMut::head_first(&mut out, [1, 1, 300, 64]);
    /// # let mut attention = Attention::new(tensor, tensor, tensor, output);
    /// let mut workspace = Workspace::new();
    /// workspace.reserve(attention.workspace(3)?)?;
    /// attention.run_in_parts(&mut workspace, 3, |parts| {
    ///     std::thread::scope(|scope| {
    ///         for _ in 1..3 {
    ///             scope.spawn(|| parts.compute());
    ///         }
    ///         parts.compute();
    ///     });
    /// })?;
    /// assert_eq!(out, vec![0.5; 300 * 64]);
    /// # Ok::<(), flash_attention::Refusal>(())
    /// ```
    ///
    /// # Panics
    /// As [`run`](Attention::run), and if `body` panics.
    ///
    /// # Errors
    /// Those of [`run`](Attention::run), and [`Error::Part`]: `threads` is not 1 to 256. Then
    /// `body` has not been called, unless the error is [`Error::Internal`].
    pub fn run_in_parts<R>(
        &mut self,
        workspace: &mut Workspace,
        threads: usize,
        body: impl FnOnce(&Parts) -> R,
    ) -> Result<R, Refusal> {
        let threads = pool::threads(threads)?;
        let mut problem = self.problem()?;
        let mut prepared = Prepared::in_parts(&mut problem, threads)?;
        workspace.check(prepared.bytes()?)?;
        parts::run(&mut prepared, workspace.memory(), body)
    }

    fn problem(&mut self) -> Result<Problem<'_>, Refusal> {
        self.agree()?;
        let semantics = Semantics {
            accuracy: self.accuracy,
            q_pos: self.q_pos,
            window: self.window,
            prefix_keys: self.prefix_keys,
            block_q: self.tiles[0],
            block_kv: self.tiles[1],
            ..Semantics::with_scale(self.scale.unwrap_or(Semantics::usual_scale(self.q.shape.dim)))
        };
        let sequences = self.sequences();
        let [_, heads, rows] = self.q.shape.extent;
        let slopes = self.alibi_slopes.map(|slopes| Slopes {
            values: Array::of(slopes),
            batch_stride: if slopes.len() == heads { 0 } else { heads },
            times_mask: self.mask_times_slope,
        });
        let mask = match self.mask {
            None => None,
            Some(mask) => Some(mask.broadcast([sequences, heads, rows]).raw_view(&MASK)?),
        };
        let heads_kv = self.k.shape.extent[1];
        let pages = self.pages.map(|lists| lists.pages(sequences, heads_kv));
        let cells = match (self.kept_blocks, self.block_mask) {
            (Some(kept), _) => {
                let lists = lists_of([kept.starts, kept.blocks], [kept.sequences, kept.heads], heads);
                Some(BlockMask { blocks: Blocks::Lists(lists), rows: kept.rows, keys: kept.keys })
            }
            (None, Some(MaskOfBlocks { mask, rows: of_rows, keys })) => {
                let blocks = rows.checked_div(of_rows).unwrap_or(0).saturating_add(1);
                let view = mask.broadcast([sequences, heads, blocks]).raw_view(&BLOCK_MASK)?;
                Some(BlockMask { blocks: Blocks::Bytes(view), rows: of_rows, keys })
            }
            (None, None) => None,
        };
        let columns = self.columns.map(|columns| {
            lists_of([columns.starts, columns.keys], [columns.sequences, columns.heads], heads)
        });
        let tensors = Tensors {
            q: self.q.view(&Q)?,
            k: self.k.view(&K)?,
            v: self.v.view(&V)?,
            o: self.out.view(&O)?,
            lse: match &mut self.lse {
                None => None,
                Some(lse) => Some(lse.view(&LSE)?),
            },
            batch: Batch {
                starts_q: self.cu_len_q.map(Array::of),
                starts_kv: self.cu_len_kv.map(Array::of),
                kv_lens: self.kv_lens.map(Array::of),
                kv_starts: self.kv_starts.map(Array::of),
                positions: self.q_positions.map(Array::of),
                spans: self.spans.map(|(spans, starts)| Spans {
                    bounds: Array::of(spans.as_flattened()),
                    starts: Array::of(starts),
                }),
                pages,
                most: [0; 2],
            },
            logits: Logits {
                softcap: self.softcap,
                mask,
                cells,
                columns,
                slopes,
                sinks: self.sinks.map(Array::of),
            },
            weights: match &mut self.weights {
                None => None,
                Some(weights) => Some(Weights {
                    view: weights.view(&WEIGHTS)?,
                    heads: self.weight_heads.map(Array::of),
                    rows: self.weight_rows.map(Array::of),
                }),
            },
        };
        Problem::new(tensors, semantics)
    }

    fn sequences(&self) -> usize {
        self.cu_len_q.map_or(self.q.shape.extent[0], |starts| starts.len().saturating_sub(1))
    }

    /// Keys of a sequence, those of all of a ragged batch.
    fn len_kv(&self) -> usize {
        self.pages.map_or(self.k.shape.extent[2], |pages| pages.len_kv)
    }

    /// Refuses a mask of blocks that is not one of these sequences, query heads and rows.
    fn agree_on_blocks(&self, blocks: &MaskOfBlocks, wanted: [usize; 3]) -> Result<(), Refusal> {
        let MaskOfBlocks { mask, rows, keys } = *blocks;
        if self.kept_blocks.is_some() {
            return Err(Refusal::about(Error::Shape, BLOCK_MASK.tensor, "set, but kept_blocks are set, too"));
        }
        if mask.dtype() != Dtype::Bool8 {
            return Err(Refusal::about(Error::Dtype, BLOCK_MASK.tensor, "not of booleans"));
        }
        for (what, n) in [("rows of a block of block_mask", rows), ("keys of a block of block_mask", keys)] {
            if n == 0 {
                return Err(Refusal::of(what, 0).but(Error::ZeroExtent, "must be at least 1"));
            }
        }
        let wanted = [wanted[0], wanted[1], wanted[2].div_ceil(rows)];
        for (axis, what) in [BLOCK_MASK.batch, BLOCK_MASK.heads, BLOCK_MASK.tokens].into_iter().enumerate() {
            let is = mask.shape.extent[axis];
            if is != 1 && (axis < 2 || self.cu_len_q.is_none()) {
                equal(what, is, "neither 1 nor as many as q has", wanted[axis])?;
            }
        }
        if self.cu_len_kv.is_none() {
            let blocks = self.len_kv().div_ceil(keys);
            equal(BLOCK_MASK.dim, mask.shape.dim, "not the number of blocks of keys", blocks)?;
        }
        Ok(())
    }

    /// Refuses sizes that disagree, in words. [`Problem::new`] would refuse them without: the
    /// caller gave every size, not just one of each.
    fn agree(&self) -> Result<(), Refusal> {
        let [q, k, v, out] = [self.q.shape, self.k.shape, self.v.shape, self.out.shape];
        let ([batch, heads, _], sequences) = (q.extent, self.sequences());
        for (what, n) in [(Q.heads, heads), (K.heads, k.extent[1]), (Q.dim, q.dim), (V.dim, v.dim)] {
            if n == 0 {
                return Err(Refusal::of(what, 0).but(Error::ZeroExtent, "must be at least 1"));
            }
        }
        if self.cu_len_q.is_none() && self.cu_len_kv.is_none() && self.pages.is_none() {
            equal(K.batch, k.extent[0], "not that of q", batch)?;
        }
        same_extent(&V, &v, "not that of k", &k)?;
        same_extent(&O, &out, "not that of q", &q)?;
        equal(K.dim, k.dim, "not that of q", q.dim)?;
        equal(O.dim, out.dim, "not that of v", v.dim)?;
        if let Some(lse) = &self.lse {
            same_extent(&LSE, &lse.shape, "not that of q", &q)?;
            equal(LSE.dim, lse.shape.dim, "not", 1)?;
        }
        let len_kv = self.len_kv();
        if let Some(weights) = &self.weights {
            let is = &weights.shape;
            equal(WEIGHTS.batch, is.extent[0], "not that of q", sequences)?;
            let chosen = |list: Option<&[i32]>, all| list.map_or(all, <[i32]>::len);
            equal(WEIGHTS.heads, is.extent[1], "not as many as heads", chosen(self.weight_heads, heads))?;
            if self.cu_len_q.is_none() || self.weight_rows.is_some() {
                let rows = chosen(self.weight_rows, q.extent[2]);
                equal(WEIGHTS.tokens, is.extent[2], "not as many as rows", rows)?;
            }
            if self.cu_len_kv.is_none() {
                equal(WEIGHTS.dim, is.dim, "not the number of keys", len_kv)?;
            }
        } else {
            for (name, list) in [("weight_heads", self.weight_heads), ("weight_rows", self.weight_rows)] {
                if list.is_some() {
                    return Err(Refusal::about(Error::Null, name, "set, but there are no weights"));
                }
            }
        }
        if let Some(mask) = &self.mask {
            // Of ragged batches, and of keys in pages, it may be larger: see `Logits`.
            let wanted = [sequences, heads, q.extent[2]];
            for (axis, what) in [MASK.batch, MASK.heads, MASK.tokens].into_iter().enumerate() {
                let is = mask.shape.extent[axis];
                if is != 1 && (axis < 2 || self.cu_len_q.is_none()) {
                    equal(what, is, "neither 1 nor that of q", wanted[axis])?;
                }
            }
            if self.cu_len_kv.is_none() {
                equal(MASK.dim, mask.shape.dim, "not the number of keys", len_kv)?;
            }
        }
        if let Some(blocks) = &self.block_mask {
            self.agree_on_blocks(blocks, [sequences, heads, q.extent[2]])?;
        }
        if self.mask_times_slope {
            for (is_missing, but) in [
                (self.mask.is_none(), "set, but there is no mask"),
                (self.alibi_slopes.is_none(), "set, but there are no alibi_slopes"),
            ] {
                if is_missing {
                    return Err(Refusal::about(Error::Shape, "mask_times_slope", but));
                }
            }
        }
        if let Some(slopes) = self.alibi_slopes
            && slopes.len() != heads
        {
            let all = sequences.saturating_mul(heads);
            equal("alibi_slopes", slopes.len(), "neither heads_q nor all of the batch", all)?;
        }
        equal("sinks", self.sinks.map_or(heads, <[f32]>::len), "not heads_q", heads)?;
        let lists =
            [("kv_lens", self.kv_lens), ("kv_starts", self.kv_starts), ("q_positions", self.q_positions)];
        for (what, list) in lists {
            equal(what, list.map_or(sequences, <[i32]>::len), "not one for each sequence", sequences)?;
        }
        if let Some((_, starts)) = self.spans {
            equal("span_starts", starts.len(), "not one more than sequences", sequences.saturating_add(1))?;
        }
        if let Some(pages) = self.pages {
            pages.agree(sequences, k.extent[1])?;
        }
        let wanted = [sequences, heads];
        if let Some(kept) = &self.kept_blocks {
            let names = ["sequences of kept_blocks", "heads of kept_blocks", "starts of kept_blocks"];
            agree_on_lists(names, kept.starts, [kept.sequences, kept.heads], wanted)?;
        }
        if let Some(columns) = &self.columns {
            let names = ["sequences of columns", "heads of columns", "starts of columns"];
            agree_on_lists(names, columns.starts, [columns.sequences, columns.heads], wanted)?;
            let lists = columns.sequences.saturating_mul(columns.heads);
            equal(
                "starts of columns",
                columns.starts.len(),
                "not two for each list",
                lists.saturating_mul(2),
            )?;
        }
        Ok(())
    }
}

fn equal(what: &'static str, is: usize, but: &'static str, wanted: usize) -> Result<(), Refusal> {
    match is == wanted {
        true => Ok(()),
        false => Err(Refusal::of(what, number(is)).against(Error::Shape, but, number(wanted))),
    }
}

fn same_extent(names: &Names, is: &Shape, but: &'static str, wanted: &Shape) -> Result<(), Refusal> {
    for (axis, what) in [names.batch, names.heads, names.tokens].into_iter().enumerate() {
        equal(what, is.extent[axis], but, wanted.extent[axis])?;
    }
    Ok(())
}
