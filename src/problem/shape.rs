//! The sizes of a problem: all that a plan depends on.

use super::batch::{Batch, Sizes};
use super::semantics::{Position, Semantics};
use crate::dtype::Dtype;
use crate::error::{Error, Refusal};
use crate::view::{Layout, ScaleGranularity};

/// How Q, K and V are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Storage {
    /// Their types, those of K and V as they are read ([`Dtype::read_as`]).
    pub dtypes: [Dtype; 3],
    /// The types that K, and V, are stored as.
    pub stored: [Dtype; 2],
    /// What shares a scale, and a zero.
    pub granularities: [ScaleGranularity; 3],
    /// Whether there are zeros.
    pub zeros: [bool; 3],
}

impl Storage {
    /// With one scale a head, or none, and without zeros.
    pub fn plain(dtypes: [Dtype; 3]) -> Storage {
        let [q, k, v] = dtypes;
        Storage {
            dtypes: [q, k.read_as(), v.read_as()],
            stored: [k, v],
            granularities: [ScaleGranularity::PerHead; 3],
            zeros: [false, k == Dtype::U8, v == Dtype::U8],
        }
    }

    /// Whether K, or V (`which`), is read as another type than it is stored as.
    #[inline(always)]
    pub fn is_recoded(&self, which: usize) -> bool {
        self.stored[which] as u8 != self.dtypes[1 + which] as u8
    }
}

/// Sizes and types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// How Q, K and V are stored.
    pub storage: Storage,
    /// Sequences, query heads, query rows of the longest sequence.
    pub queries: [usize; 3],
    /// Heads of K and V; divides the number of query heads.
    pub heads_kv: usize,
    /// Keys of the longest sequence.
    pub len_kv: usize,
    /// Elements of a row of Q and K.
    pub dim_qk: usize,
    /// Elements of a row of V and O.
    pub dim_v: usize,
    /// Whether sequences differ in their number of query rows, and how many they have together.
    pub ragged: Option<usize>,
    /// Whether sequences may differ in the keys that their rows see.
    pub uneven: bool,
    /// Whether each sequence has a number of keys of its own.
    pub has_lengths: bool,
    /// Whether rows may see keys on both sides of some that they do not see.
    pub gaps: bool,
    /// Keys of a block of block-sparse attention.
    pub cell: Option<usize>,
    /// Neighbouring query heads that see the same single keys, if there are some.
    pub columns: Option<usize>,
    /// Whether masks may hide keys, and are scanned for blocks of keys that they hide.
    pub scans_masks: bool,
    /// Whether neighbouring query heads can be taken as one with more rows; see
    /// [`Shape::heads_of_group`].
    pub can_group: bool,
    /// Keys of a page of K and V, if they lie in pages.
    pub page: Option<usize>,
    /// Bytes between the rows of K, and of V.
    pub strides_kv: [usize; 2],
    /// Bytes between the rows of neighbouring kv heads, likewise.
    pub head_strides_kv: [usize; 2],
    /// Whether the elements of a row of K, and of V, do not lie behind one another.
    pub strided_kv: [bool; 2],
    /// Query rows per tile, 0 = automatic.
    pub block_q: usize,
    /// Keys per tile, 0 = automatic.
    pub block_kv: usize,
}

impl Shape {
    /// Query heads that share a kv head and can be computed as one head with as many times the
    /// rows.
    pub fn heads_of_group(&self) -> usize {
        if self.can_group { self.heads_alike() } else { 1 }
    }

    /// Query heads that share a kv head, and see the same single keys if there are some.
    pub fn heads_alike(&self) -> usize {
        let group = self.queries[1] / self.heads_kv;
        if self.columns.is_none_or(|shared_by| shared_by.is_multiple_of(group)) { group } else { 1 }
    }

    /// Whether rows of K, or of V (`which`), are gathered before anything else is done with them.
    #[inline(always)]
    pub fn gathers(&self, which: usize) -> bool {
        self.strided_kv[which] || self.storage.is_recoded(which)
    }

    /// Bytes of a row of K, and of V.
    pub fn row_bytes_kv(&self) -> [usize; 2] {
        let [k, v] = self.storage.stored;
        [k.row_bytes(self.dim_qk), v.row_bytes(self.dim_v)].map(|bytes| bytes.unwrap_or(usize::MAX))
    }

    /// The shape of Q, K and V with these layouts, if they fit together.
    pub fn of(
        q: &Layout,
        k: &Layout,
        v: &Layout,
        batch: &Batch,
        semantics: &Semantics,
    ) -> Result<Shape, Refusal> {
        let [_, heads_q, rows] = q.extent;
        let [_, heads_kv, _] = k.extent;
        // No sequences, no rows and no keys are nothing to do; the rest must be there.
        let zero = |layout: &Layout| layout.dim == 0 || layout.extent[1] == 0;
        if zero(q) || zero(k) || zero(v) {
            return Err(Error::ZeroExtent.into());
        }
        let ragged = batch.starts_q.map(|_| rows);
        let page = batch.pages.map(|_| k.extent[2]);
        let (uneven, has_lengths) = (batch.is_uneven(), batch.has_lengths());
        let Sizes { batch, len_q, len_kv } = batch.sizes(q.extent, k.extent)?;
        if !heads_q.is_multiple_of(heads_kv) {
            let fact = Refusal::of("heads_q", heads_q as i64);
            return Err(fact.against(Error::Shape, "not a multiple of heads_kv", heads_kv as i64));
        }
        if v.extent != k.extent || k.dim != q.dim {
            return Err(Error::Shape.into());
        }
        let dtypes = [q.dtype, k.dtype, v.dtype];
        if dtypes.contains(&Dtype::Bool8) {
            return Err(Error::Dtype.into());
        }
        // Positions are i64, and a position plus a length must stay one.
        if let Position::At(position) = semantics.q_pos {
            let refused = |but| Refusal::of("q_pos", position).against(Error::Overflow, but, len_q as i64);
            semantics.q_pos.check(len_q).map_err(refused)?;
        }
        if i64::try_from(len_q.max(len_kv)).is_err() {
            return Err(Error::Overflow.into());
        }
        Ok(Shape {
            storage: Storage::plain(dtypes),
            queries: [batch, heads_q, len_q],
            heads_kv,
            len_kv,
            dim_qk: q.dim,
            dim_v: v.dim,
            ragged,
            uneven,
            has_lengths,
            gaps: semantics.prefix_keys > 0 && semantics.window.left.is_some(),
            page,
            cell: None,
            columns: None,
            scans_masks: false,
            can_group: false,
            strides_kv: [k.stride[2], v.stride[2]],
            head_strides_kv: [k.stride[1], v.stride[1]],
            strided_kv: [k.is_strided(), v.is_strided()],
            block_q: semantics.block_q,
            block_kv: semantics.block_kv,
        })
    }
}
