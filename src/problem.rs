//! WHAT is computed: views of all tensors and the semantics, consistent by construction.
//!
//! For query row i of a head, at key position p = `q_pos` + i, over the visible keys j. Terms of
//! options that are not set drop out:
//!
//! ```text
//! s_j = cap · tanh(scale · Σ_d q_d k_jd / cap) - slope · |p - j| + mask_ij
//! O = Σ_j e^(s_j - max) v_j / Z      Z = Σ_j e^(s_j - max) + e^(sink - max)      LSE = max + log Z
//! ```

pub mod batch;
pub mod cells;
pub mod lists;
pub mod logits;
pub mod pages;
pub mod semantics;
pub mod shape;
pub mod slots;
pub mod spans;
pub mod weights;

use std::iter;
use std::ops::Range;

use crate::dtype::Dtype;
use crate::error::{Error, Refusal};
use crate::view::{Array, Layout, Quant, ScaleGranularity, View, ViewMut, overlap};
pub use batch::{Batch, SeenKeys, Sequence};
pub use cells::{BlockMask, Blocks};
pub use lists::{List, Lists, needed_starts};
use logits::SCANNED_FROM;
pub use logits::{Logits, Slopes, needed_slopes};
pub use pages::Pages;
pub use semantics::{Accuracy, Position, Semantics, Window};
pub use shape::{Shape, Storage};
pub use spans::Spans;
pub use weights::Weights;

/// Keys of a sequence whose rows of K and of V lie behind one another.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// The keys.
    pub keys: Range<usize>,
    /// Where the first of them is in K and V: entry and row.
    pub at: [usize; 2],
}

/// The tensors of a problem. Of a ragged batch, Q, O and LSE have one entry, and so do K and V; see
/// [`Batch`].
#[derive(Debug)]
pub struct Tensors<'a> {
    /// Queries: `[batch][heads_q][len_q][dim_qk]`.
    pub q: View<'a>,
    /// Keys: `[batch][heads_kv][len_kv][dim_qk]`.
    pub k: View<'a>,
    /// Values: `[batch][heads_kv][len_kv][dim_v]`.
    pub v: View<'a>,
    /// Output, f32, f16, bf16 or Q15: `[batch][heads_q][len_q][dim_v]`.
    pub o: ViewMut<'a>,
    /// Natural logarithm of the sum of exponentials, f32: `[batch][heads_q][len_q][1]`.
    pub lse: Option<ViewMut<'a>>,
    /// Where the sequences lie.
    pub batch: Batch<'a>,
    /// What changes scores.
    pub logits: Logits<'a>,
    /// Where probabilities go, if they are wanted.
    pub weights: Option<Weights<'a>>,
}

impl<'a> Tensors<'a> {
    /// Of sequences of the same lengths.
    pub fn new(q: View<'a>, k: View<'a>, v: View<'a>, o: ViewMut<'a>) -> Tensors<'a> {
        let (batch, logits) = (Batch::default(), Logits::default());
        Tensors { q, k, v, o, lse: None, batch, logits, weights: None }
    }
}

/// A validated problem.
#[derive(Debug)]
pub struct Problem<'a> {
    tensors: Tensors<'a>,
    shape: Shape,
    semantics: Semantics,
    score_factor: f32,
    changes_scores: bool,
}

/// What is found out about tensors that fit together.
struct Checked {
    shape: Shape,
    score_factor: f32,
}

impl Tensors<'_> {
    /// Checks everything that the core relies on.
    fn check(&self, semantics: &Semantics) -> Result<Checked, Refusal> {
        let Tensors { q, k, v, o, lse, batch, logits, weights } = self;
        let shape = Shape::of(q.layout(), k.layout(), v.layout(), batch, semantics)?;
        if q.layout().is_strided() || logits.is_strided() {
            return Err(Error::Stride.into());
        }
        let is_output = |view: &ViewMut, dim| {
            let Layout { dtype, extent, dim: d, .. } = *view.layout();
            match dtype {
                _ if extent != q.layout().extent || d != dim => Err(Error::Shape),
                _ if dtype.is_stored() => Ok(dtype),
                _ => Err(Error::Dtype),
            }
        };
        is_output(o, shape.dim_v)?;
        if let Some(lse) = lse
            && is_output(lse, 1)? != Dtype::F32
        {
            return Err(Error::Dtype.into());
        }
        logits.check(shape.queries, shape.len_kv)?;
        if let Some(weights) = weights {
            weights.check(shape.queries, shape.len_kv)?;
            if logits.columns.is_some() {
                return Err(Refusal::about(Error::Shape, "weights", "set, but column_start is set, too"));
            }
        }
        let score_factor = score_factor(semantics)?;
        if let Some((output, but)) = self.overlap() {
            return Err(Refusal::about(Error::Overlap, output, but));
        }
        let cell = logits.cells.as_ref().map(|cells| cells.keys);
        let columns = logits.columns.map(|columns| columns.shared_by);
        let entries = shape.page.is_some();
        let granularity = |view: &View, entries| {
            view.quant().map_or(ScaleGranularity::PerHead, |quant| quant.granularity(view.layout(), entries))
        };
        let granularities = [granularity(q, false), granularity(k, entries), granularity(v, entries)];
        let zeros = [q, k, v].map(|view| view.quant().is_some_and(|quant| quant.has_zeros()));
        // A gap beside keys that are always seen is no range: masks are applied key by key there.
        let scans_masks = logits.has_masks() && shape.len_kv >= SCANNED_FROM && !shape.gaps;
        let storage = Storage { granularities, zeros, ..shape.storage };
        // A vector has one slope, and rows of several heads are copied without their scales.
        let can_group = logits.slopes.is_none() && !q.layout().dtype.takes_scales();
        let shape = Shape { cell, columns, scans_masks, can_group, storage, ..shape };
        Ok(Checked { shape, score_factor })
    }

    /// Finds an output that shares memory with something else: its name, and words for what it is.
    fn overlap(&self) -> Option<(&'static str, &'static str)> {
        let Tensors { q, k, v, o, lse, logits, batch, weights } = self;
        let scales_of_o = o.quant().map_or([0..0, 0..0], Quant::addresses);
        let o = o.addresses();
        let lse = lse.as_ref().map_or(0..0, ViewMut::addresses);
        let probabilities = weights.as_ref().map_or(0..0, |weights| weights.view.addresses());
        let outputs = [("o", &o), ("lse", &lse), ("weights", &probabilities)];
        // Most problems want no probabilities.
        let outputs = &outputs[..if weights.is_some() { 3 } else { 2 }];
        let hit = |input: Range<usize>, but| {
            outputs.iter().copied().find(|(_, output)| overlap(&input, output)).map(|(name, _)| (name, but))
        };
        let none = [0..0, 0..0];
        let of_quant = |view: &View| view.quant().map_or(none.clone(), |quant| quant.addresses());
        hit(q.addresses(), "shares memory with q")
            .or_else(|| hit(k.addresses(), "shares memory with k"))
            .or_else(|| hit(v.addresses(), "shares memory with v"))
            .or_else(|| hit(logits.mask.as_ref()?.addresses(), "shares memory with mask"))
            .or_else(|| logits.cells.as_ref()?.addresses().into_iter().find_map(|(list, but)| hit(list, but)))
            .or_else(|| {
                let lists = logits.addresses_of_columns();
                lists.into_iter().find_map(|(list, but)| hit(list, but))
            })
            .or_else(|| {
                let [slopes, sinks] = logits.addresses();
                hit(slopes, "shares memory with alibi_slopes")
                    .or_else(|| hit(sinks, "shares memory with sinks"))
            })
            .or_else(|| {
                // Most problems have none.
                if !batch.is_uneven() && batch.pages.is_none() {
                    return None;
                }
                outputs.iter().copied().find_map(|(name, output)| {
                    batch.find_list(&|list| overlap(&list, output)).map(|but| (name, but))
                })
            })
            .or_else(|| of_quant(q).into_iter().find_map(|list| hit(list, "shares memory with scales of q")))
            .or_else(|| of_quant(k).into_iter().find_map(|list| hit(list, "shares memory with scales of k")))
            .or_else(|| of_quant(v).into_iter().find_map(|list| hit(list, "shares memory with scales of v")))
            .or_else(|| scales_of_o.into_iter().find_map(|list| hit(list, "shares memory with scales of o")))
            .or_else(|| weights.as_ref()?.lists().into_iter().find_map(|(list, but)| hit(list, but)))
            .or_else(|| overlap(&o, &lse).then_some(("lse", "shares memory with o")))
            .or_else(|| overlap(&o, &probabilities).then_some(("weights", "shares memory with o")))
            .or_else(|| overlap(&lse, &probabilities).then_some(("weights", "shares memory with lse")))
    }
}

impl<'a> Problem<'a> {
    /// Checks everything that the core relies on; see [`Error`] for the refusals.
    // Inlined, as tensors are a kilobyte that a call would copy.
    #[inline(always)]
    pub fn new(tensors: Tensors<'a>, semantics: Semantics) -> Result<Problem<'a>, Refusal> {
        let Checked { shape, score_factor } = tensors.check(&semantics)?;
        let changes_scores = !tensors.logits.is_none();
        Ok(Problem { tensors, shape, semantics, score_factor, changes_scores })
    }

    /// Queries.
    pub fn q(&self) -> &View<'a> {
        &self.tensors.q
    }

    /// Keys.
    pub fn k(&self) -> &View<'a> {
        &self.tensors.k
    }

    /// Values.
    pub fn v(&self) -> &View<'a> {
        &self.tensors.v
    }

    /// Output.
    pub fn o(&self) -> &ViewMut<'a> {
        &self.tensors.o
    }

    /// Log-sum-exp, if wanted.
    pub fn lse(&self) -> Option<&ViewMut<'a>> {
        self.tensors.lse.as_ref()
    }

    /// Where probabilities go, if they are wanted.
    #[inline(always)]
    pub fn weights(&self) -> Option<&Weights<'a>> {
        self.tensors.weights.as_ref()
    }

    /// What is not a tensor.
    pub fn semantics(&self) -> &Semantics {
        &self.semantics
    }

    /// Sizes and type.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The kv head that a query head reads.
    pub fn kv_head(&self, head: usize) -> usize {
        let heads_q = self.shape.queries[1];
        if heads_q == self.shape.heads_kv { head } else { head / (heads_q / self.shape.heads_kv) }
    }

    /// What a dot product is multiplied by to be a score in log2 units: softmax scale · log2(e).
    pub fn score_factor(&self) -> f32 {
        self.score_factor
    }

    /// One sequence of the batch. Kept out of line, so that the code exists once.
    #[inline(never)]
    pub fn sequence(&self, batch: usize) -> Sequence<'_> {
        let rows = [self.shape.queries[2], self.shape.len_kv];
        Sequence::new(batch, &self.tensors.batch, rows, &self.semantics)
    }

    /// Where the sequences lie.
    pub fn batch(&self) -> &Batch<'a> {
        &self.tensors.batch
    }

    /// What changes scores.
    pub fn logits(&self) -> &Logits<'a> {
        &self.tensors.logits
    }

    /// Whether anything changes scores between the dot product and the softmax.
    #[inline(always)]
    pub fn changes_scores(&self) -> bool {
        self.changes_scores
    }

    /// The slope of a head's linear bias, if there is one.
    pub fn slope(&self, sequence: &Sequence, head: usize) -> Option<f32> {
        let slopes = self.tensors.logits.slopes?;
        Some(slopes.values.get(sequence.batch * slopes.batch_stride + head))
    }

    /// The logit without a value that a head has; none is -inf.
    pub fn sink(&self, head: usize) -> f32 {
        self.tensors.logits.sinks.map_or(f32::NEG_INFINITY, |sinks| sinks.get(head))
    }

    /// The single keys that all rows of a head see, if there is a list.
    #[inline(always)]
    pub(crate) fn columns(&self, sequence: &Sequence, head: usize) -> Option<List<'a>> {
        let lists = self.tensors.logits.columns.as_ref()?;
        Some(lists.of(sequence.batch, head, 0))
    }

    /// The single keys of a head that are computed for themselves and therefore hidden among all
    /// keys of the sequence, if some of them are among `keys`.
    #[inline(always)]
    pub(crate) fn columns_in(
        &self,
        sequence: &Sequence,
        head: usize,
        keys: &Range<usize>,
    ) -> Option<List<'a>> {
        let columns = self.columns(sequence, head).filter(|_| !sequence.is_of_columns())?;
        let columns = columns.within(keys.clone());
        (columns.count() > 0).then_some(columns)
    }

    /// Whether a query row sees a key, by everything that decides that: for the rare cases and for
    /// what must not be wrong.
    pub fn sees(&self, sequence: &Sequence, head: usize, row: usize, key: usize) -> bool {
        if sequence.is_of_columns() {
            return sequence.sees(row, key);
        }
        if self.columns_in(sequence, head, &(key..key + 1)).is_some() {
            return false;
        }
        let [head, of_head] = sequence.line(head, row);
        let hidden = self.tensors.logits.mask.as_ref().is_some_and(|mask| {
            let x = mask.get(sequence.batch, head, of_head, key);
            if mask.layout().dtype == Dtype::Bool8 { x == 0.0 } else { x == f64::NEG_INFINITY }
        });
        let cells = self.tensors.logits.cells.as_ref();
        let seen = cells.is_none_or(|cells| cells.sees(sequence.batch, head, of_head, key));
        !hidden && seen && sequence.sees(row, key)
    }

    /// The first of the sequences' query rows in the packed tensors, one more than there are
    /// sequences, if the batch is ragged.
    pub fn starts_q(&self) -> Option<Array<'a, i32>> {
        self.tensors.batch.starts_q
    }

    /// Keys of sequence `b` that are in use.
    #[inline(always)]
    pub fn keys_of(&self, b: usize) -> usize {
        self.tensors.batch.keys_of(b, self.shape.len_kv)
    }

    /// Where a query row of a sequence is in Q, O and LSE: entry and row.
    #[inline(always)]
    pub fn query_at(&self, sequence: &Sequence, row: usize) -> [usize; 2] {
        let [entry, _, row] = self.line_at(sequence, 0, row);
        [entry, row]
    }

    /// Where a query row of a sequence, counted as [`Sequence::line`] says, is in Q, O and LSE:
    /// entry, head and row.
    #[inline(always)]
    pub(crate) fn line_at(&self, sequence: &Sequence, head: usize, row: usize) -> [usize; 3] {
        let ([entry, first], [head, row]) = (sequence.q, sequence.line(head, row));
        [entry, head, first + row]
    }

    /// Where a key of a kv head of a sequence is in K and V: entry and row.
    #[inline(always)]
    pub fn key_at(&self, sequence: &Sequence, kv_head: usize, key: usize) -> [usize; 2] {
        let [entry, first] = sequence.kv;
        let key = sequence.columns().map_or(key, |columns| columns.get(key));
        match &self.tensors.batch.pages {
            None => [entry, first + key],
            Some(pages) => {
                let first = first + kv_head * pages.head_stride;
                // Before the first key there may be no page: what stands for such a key is not
                // seen.
                let (size, key) = (self.page_size(), key.max(sequence.first()));
                [pages.page(first + key / size), key % size]
            }
        }
    }

    /// The parts of `keys` of a kv head that lie behind one another, in the order of the keys: all
    /// of them, or those of each page. Only where the first one lies takes a division.
    #[inline(always)]
    pub fn chunks<'s>(
        &'s self,
        sequence: &Sequence<'s>,
        kv_head: usize,
        keys: Range<usize>,
    ) -> impl Iterator<Item = Chunk> + 's {
        let [entry, first] = sequence.kv;
        let pages = self.tensors.batch.pages.as_ref();
        let (mut entry, mut row, mut size) = (entry, first + keys.start, usize::MAX);
        // Before the first key there may be no page: what stands for such a key is not seen.
        let mut without_page = 0;
        if let Some(pages) = pages {
            let start = keys.start.max(sequence.first());
            without_page = start - keys.start;
            size = self.page_size();
            let list = first + kv_head * pages.head_stride;
            (entry, row) = (list + start / size, start % size);
        }
        let mut rest = keys;
        let columns = sequence.columns().copied();
        let sequence = *sequence;
        iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            if let Some(columns) = &columns {
                return Some(self.next_columns(&sequence, kv_head, columns, &mut rest));
            }
            let at = [pages.map_or(entry, |pages| pages.page(entry)), row];
            let start = rest.start;
            if without_page > 0 {
                without_page -= 1;
                rest.start += 1;
            } else {
                rest.start += rest.len().min(size - row);
                (entry, row) = (entry + 1, 0);
            }
            Some(Chunk { keys: start..rest.start, at })
        })
    }

    /// The first of the single keys `rest`, which are taken from it, that lie behind one another.
    /// Kept out of line: few problems have some.
    #[inline(never)]
    fn next_columns(
        &self,
        sequence: &Sequence,
        kv_head: usize,
        columns: &List,
        rest: &mut Range<usize>,
    ) -> Chunk {
        let start = rest.start;
        let at = self.key_at(sequence, kv_head, start);
        let most = if self.tensors.batch.pages.is_some() { self.page_size() - at[1] } else { usize::MAX };
        let mut n = 1;
        while n < rest.len().min(most) && columns.get(start + n) == columns.get(start) + n {
            n += 1;
        }
        rest.start += n;
        Chunk { keys: start..rest.start, at }
    }

    /// The single keys that are those of a sequence, and where key 0 of the tensors is, if all lie
    /// in rows of one entry.
    pub(crate) fn single_keys<'s>(&self, sequence: &Sequence<'s>) -> Option<(List<'s>, [usize; 2])> {
        let columns = sequence.columns().filter(|_| self.tensors.batch.pages.is_none());
        columns.map(|&columns| (columns, sequence.kv))
    }

    fn page_size(&self) -> usize {
        self.tensors.k.layout().extent[2]
    }
}

fn score_factor(semantics: &Semantics) -> Result<f32, Refusal> {
    let scale = semantics.softmax_scale;
    let factor = (f64::from(scale) * std::f64::consts::LOG2_E) as f32;
    if factor.is_finite() {
        return Ok(factor);
    }
    let but = "NaN, infinite, or so large that scale * log2(e) is infinite";
    Err(Refusal::of_real("scale", scale).but(Error::SoftmaxScale, but))
}
