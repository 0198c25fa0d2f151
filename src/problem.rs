//! WHAT is computed: views of all tensors and the semantics, consistent by construction.
//!
//! For query row i of a head, at key position p = `q_pos` + i, over the keys j that it sees:
//!
//! ```text
//! s_j = scale · Σ_d q_d k_jd        O = Σ_j e^(s_j - max) v_j / Σ_j e^(s_j - max)
//! LSE = log Σ_j e^s_j
//! ```

use std::ops::Range;

use crate::dtype::Dtype;
use crate::error::Error;
use crate::view::{Layout, View, ViewMut};

/// Which keys a query at position p sees: those from `p - left` to `p + right`, both inclusive;
/// `None` is no limit. Causal attention is `right = Some(0)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Keys before the query's own position.
    pub left: Option<u64>,
    /// Keys behind it.
    pub right: Option<u64>,
}

/// What a stored value must be multiplied by; 1 for f32 tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scales {
    /// Of Q.
    pub q: f32,
    /// Of K.
    pub k: f32,
    /// Of V.
    pub v: f32,
}

impl Default for Scales {
    fn default() -> Scales {
        Scales { q: 1.0, k: 1.0, v: 1.0 }
    }
}

/// Everything about a problem that is not a tensor.
#[derive(Clone, Copy, Debug)]
pub struct Semantics {
    /// Multiplied to every dot product, usually 1/sqrt(dim).
    pub softmax_scale: f32,
    /// Quantisation scales per tensor.
    pub scales: Scales,
    /// Key position of query row 0.
    pub q_pos: i64,
    /// Visible keys around a query's position.
    pub window: Window,
    /// Query rows per tile, 0 = automatic.
    pub block_q: usize,
    /// Keys per tile, 0 = automatic.
    pub block_kv: usize,
}

impl Semantics {
    /// Full attention with the given scale.
    pub fn with_scale(softmax_scale: f32) -> Semantics {
        Semantics {
            softmax_scale,
            scales: Scales::default(),
            q_pos: 0,
            window: Window::default(),
            block_q: 0,
            block_kv: 0,
        }
    }

    /// Query i sees key j iff j <= i + (len_kv - len_q): the last query is on the last key.
    pub fn causal(self, len_q: usize, len_kv: usize) -> Semantics {
        let q_pos = len_kv as i64 - len_q as i64;
        Semantics { q_pos, window: Window { left: None, right: Some(0) }, ..self }
    }
}

/// Sizes and type of a problem: all that a plan depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Storage type of Q, K and V.
    pub dtype: Dtype,
    /// Batches, query heads, query rows.
    pub queries: [usize; 3],
    /// Heads of K and V; divides the number of query heads.
    pub heads_kv: usize,
    /// Keys of a sequence.
    pub len_kv: usize,
    /// Elements of a row of Q and K.
    pub dim_qk: usize,
    /// Elements of a row of V and O.
    pub dim_v: usize,
    /// Bytes between the rows of K, and of V.
    pub strides_kv: [usize; 2],
    /// Query rows per tile, 0 = automatic.
    pub block_q: usize,
    /// Keys per tile, 0 = automatic.
    pub block_kv: usize,
}

impl Shape {
    /// The shape of Q, K and V with these layouts, if they fit together.
    pub fn of(q: &Layout, k: &Layout, v: &Layout, semantics: &Semantics) -> Result<Shape, Error> {
        let [batch, heads_q, len_q] = q.extent;
        let [_, heads_kv, len_kv] = k.extent;
        if batch == 0 || heads_q == 0 || heads_kv == 0 || q.dim == 0 || v.dim == 0 {
            return Err(Error::ZeroExtent);
        }
        let consistent = k.extent == [batch, heads_kv, len_kv]
            && v.extent == k.extent
            && k.dim == q.dim
            && heads_q.is_multiple_of(heads_kv);
        if !consistent {
            return Err(Error::Shape);
        }
        if q.dtype != k.dtype || k.dtype != v.dtype || q.dtype == Dtype::F64 {
            return Err(Error::Dtype);
        }
        // Positions are i64, and a position plus a length must stay one.
        if i64::try_from(len_q.max(len_kv)).is_err() || semantics.q_pos.checked_add(len_q as i64).is_none() {
            return Err(Error::Overflow);
        }
        Ok(Shape {
            dtype: q.dtype,
            queries: q.extent,
            heads_kv,
            len_kv,
            dim_qk: q.dim,
            dim_v: v.dim,
            strides_kv: [k.stride[2], v.stride[2]],
            block_q: semantics.block_q,
            block_kv: semantics.block_kv,
        })
    }
}

/// The tensors of a problem.
#[derive(Debug)]
pub struct Tensors<'a> {
    /// Queries: `[batch][heads_q][len_q][dim_qk]`.
    pub q: View<'a>,
    /// Keys: `[batch][heads_kv][len_kv][dim_qk]`.
    pub k: View<'a>,
    /// Values: `[batch][heads_kv][len_kv][dim_v]`.
    pub v: View<'a>,
    /// Output, f32: `[batch][heads_q][len_q][dim_v]`.
    pub o: ViewMut<'a>,
    /// Natural logarithm of the sum of exponentials, f32: `[batch][heads_q][len_q][1]`.
    pub lse: Option<ViewMut<'a>>,
}

/// A validated problem.
#[derive(Debug)]
pub struct Problem<'a> {
    tensors: Tensors<'a>,
    shape: Shape,
    semantics: Semantics,
    score_factor: f32,
}

impl<'a> Problem<'a> {
    /// Checks everything that the core relies on; see [`Error`] for the refusals.
    pub fn new(tensors: Tensors<'a>, semantics: Semantics) -> Result<Problem<'a>, Error> {
        let Tensors { q, k, v, o, lse } = &tensors;
        let shape = Shape::of(q.layout(), k.layout(), v.layout(), &semantics)?;
        let is_output = |view: &ViewMut, dim| {
            let Layout { dtype, extent, dim: d, .. } = *view.layout();
            match dtype {
                _ if extent != shape.queries || d != dim => Err(Error::Shape),
                Dtype::F32 => Ok(()),
                _ => Err(Error::Dtype),
            }
        };
        is_output(o, shape.dim_v)?;
        if let Some(lse) = lse {
            is_output(lse, 1)?;
        }
        let score_factor = score_factor(shape.dtype, &semantics)?;
        let problem = Problem { tensors, shape, semantics, score_factor };
        if problem.output_overlaps_input() {
            return Err(Error::Overlap);
        }
        Ok(problem)
    }

    fn output_overlaps_input(&self) -> bool {
        let Tensors { q, k, v, o, lse } = &self.tensors;
        let o = o.addresses();
        let lse = lse.as_ref().map_or(0..0, ViewMut::addresses);
        let inputs = [q.addresses(), k.addresses(), v.addresses()];
        overlap(&o, &lse) || inputs.iter().any(|input| overlap(input, &o) || overlap(input, &lse))
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

    /// What a raw dot product of stored values is multiplied by to be a score in log2 units:
    /// softmax scale · quantisation scales · log2(e).
    pub fn score_factor(&self) -> f32 {
        self.score_factor
    }

    /// The keys that a query row sees.
    pub fn visible(&self, row: usize) -> Range<usize> {
        let len = self.shape.len_kv as i64;
        let [start, end] = self.window(row).map(|bound| bound.clamp(0, len) as usize);
        start..end.max(start)
    }

    /// The keys that a query row would see if there were infinitely many in both directions: the first,
    /// and the one behind the last. Each row's window lies one key further than that of the row before.
    pub fn window(&self, row: usize) -> [i64; 2] {
        let Semantics { q_pos, window, .. } = self.semantics;
        // Cannot overflow: checked by `new` for every row.
        let position = q_pos + row as i64;
        let start = window.left.map_or(i64::MIN, |left| position.saturating_sub_unsigned(left));
        let end =
            window.right.map_or(i64::MAX, |right| position.saturating_add_unsigned(right).saturating_add(1));
        [start, end]
    }
}

fn score_factor(dtype: Dtype, semantics: &Semantics) -> Result<f32, Error> {
    let Semantics { softmax_scale, scales, .. } = semantics;
    if !(scales.q.is_finite() && scales.k.is_finite() && scales.v.is_finite()) {
        return Err(Error::QuantScale);
    }
    let factor = f64::from(*softmax_scale) * std::f64::consts::LOG2_E;
    if !(factor as f32).is_finite() {
        return Err(Error::SoftmaxScale);
    }
    if dtype == Dtype::F32 {
        return Ok(factor as f32);
    }
    let factor = (factor * f64::from(scales.q) * f64::from(scales.k)) as f32;
    if factor.is_finite() { Ok(factor) } else { Err(Error::QuantScale) }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end && !a.is_empty() && !b.is_empty()
}
