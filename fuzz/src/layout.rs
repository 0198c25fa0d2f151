//! What the header says about sizes, strides and overlaps, in numbers that do not overflow: the
//! judge of what must be refused and what must not.

use crate::definition::block;

/// What the header says about an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Legal,
    /// The header leaves it open.
    Either,
    Refused,
}

use Verdict::{Either, Legal, Refused};

impl Verdict {
    /// Refused if it is not so.
    pub fn demand(&mut self, is_so: bool) {
        self.join(if is_so { Legal } else { Refused });
    }
    /// Open if it is not so.
    pub fn usually(&mut self, is_so: bool) {
        self.join(if is_so { Legal } else { Either });
    }
    pub fn join(&mut self, other: Verdict) {
        *self = (*self).max(other);
    }
}

/// The largest object of an address space.
pub const MOST: i128 = i64::MAX as i128;

/// `[batch][head][token]` rows of so many bytes; strides in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    pub extent: [i128; 3],
    pub stride: [i128; 3],
    pub row: i128,
}

impl Rows {
    /// Of a tensor; all numbers as they come.
    pub fn of(dtype: i32, extent: [i64; 3], dim: i64, stride: [i64; 3]) -> Rows {
        let [elements, bytes] = block(dtype).map(i128::from);
        Rows {
            extent: extent.map(i128::from),
            stride: stride.map(i128::from),
            row: i128::from(dim) / elements * bytes,
        }
    }

    /// Those whose elements lie so many bytes apart, if that is not 0.
    pub fn apart(self, dtype: i32, dim: i64, stride_dim: i32) -> Rows {
        match i128::from(stride_dim).max(0) {
            0 => self,
            apart => {
                let last = (i128::from(dim) - 1).max(0).saturating_mul(apart);
                Rows { row: last.saturating_add(i128::from(block(dtype)[1])), ..self }
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.extent.contains(&0)
    }

    /// Bytes from the first to the last.
    pub fn span(&self) -> i128 {
        if self.is_empty() {
            return 0;
        }
        let far = |i: usize| {
            (self.extent[i] - 1).saturating_mul(if self.extent[i] > 1 { self.stride[i].max(0) } else { 0 })
        };
        (0..3).fold(self.row, |sum, i| sum.saturating_add(far(i)))
    }

    /// Whether strides are multiples of `unit` and all fits an address space.
    pub fn verdict(&self, unit: i64) -> Verdict {
        let mut verdict = Legal;
        for i in 0..3 {
            if self.extent[i] > 1 {
                verdict.demand(self.stride[i] >= 0 && self.stride[i] % i128::from(unit) == 0);
            }
        }
        let fits = self.span() <= MOST;
        if self.is_empty() {
            // Where nothing is, a library may all the same refuse distances that no address space
            // has.
            let filled = Rows { extent: self.extent.map(|n| n.max(1)), ..*self };
            verdict.usually(filled.span() <= MOST);
        } else {
            verdict.demand(fits);
        }
        verdict
    }

    /// Whether no two rows share a byte.
    pub fn are_apart(&self) -> Verdict {
        if self.is_empty() {
            return Legal;
        }
        let mut axes: Vec<(i128, i128)> =
            (0..3).filter(|&i| self.extent[i] > 1).map(|i| (self.stride[i], self.extent[i])).collect();
        axes.sort_unstable();
        let mut inner = self.row;
        let is_nested = axes.iter().all(|&(stride, extent)| {
            let is_over = stride >= inner;
            inner = inner.saturating_add((extent - 1).saturating_mul(stride));
            is_over
        });
        if is_nested {
            return Legal;
        }
        // Others may be apart by chance, which a library need not find out.
        if self.extent.iter().fold(1, |n: i128, &m| n.saturating_mul(m)) > 1000 {
            return Either;
        }
        let mut starts = Vec::new();
        for b in 0..self.extent[0] {
            for h in 0..self.extent[1] {
                for t in 0..self.extent[2] {
                    starts.push(b * self.stride[0] + h * self.stride[1] + t * self.stride[2]);
                }
            }
        }
        starts.sort_unstable();
        if starts.windows(2).all(|pair| pair[1].saturating_sub(pair[0]) >= self.row) {
            Either
        } else {
            Refused
        }
    }
}

/// Whether elements of a row of a tensor may lie so many bytes apart.
pub fn dim_verdict(dtype: i32, stride_dim: i32, is_k_or_v: bool) -> Verdict {
    let [elements, bytes] = block(dtype);
    let stride = i64::from(stride_dim);
    let is_contiguous = stride == 0 || (elements == 1 && stride == bytes);
    let is_stride = elements == 1 && stride > 0 && stride % bytes == 0;
    if is_contiguous || (is_k_or_v && is_stride) { Legal } else { Refused }
}

/// What strides of elements of a type are multiples of.
pub fn unit(dtype: i32) -> i64 {
    if crate::definition::BLOCKS.contains(&dtype) { 2 } else { block(dtype)[1] }
}

/// Values that a quantised tensor needs, where its strides are not negative and its groups are
/// some.
pub fn values(extent: [i64; 3], dim: i64, stride: [i64; 4], group: [i32; 2]) -> i128 {
    if extent.contains(&0) {
        return 0;
    }
    let size = |i: usize| if stride[2 + i] == 0 { 1 } else { i128::from(group[i].max(1)) };
    let last = [
        i128::from(extent[0]) - 1,
        i128::from(extent[1]) - 1,
        (i128::from(extent[2]) - 1) / size(0),
        (i128::from(dim) - 1) / size(1),
    ];
    (0..4).fold(1, |sum: i128, i| sum.saturating_add(last[i].saturating_mul(i128::from(stride[i]).max(0))))
}

/// Whether the numbers of a quant are some that may be.
pub fn quant_verdict(stride: [i64; 4], group: [i32; 2], values: i128) -> Verdict {
    let mut verdict = Legal;
    verdict.demand(stride.iter().all(|&stride| stride >= 0));
    verdict.demand((0..2).all(|i| stride[2 + i] == 0 || group[i] >= 1));
    verdict.demand(values <= MOST / 4);
    verdict
}

/// Whether no two cells have their scale at the same place, as far as the header demands it.
pub fn cells_are_apart(sizes: [i64; 4], stride: [i64; 4], group: [i32; 2]) -> Verdict {
    let [batch, heads, tokens, dim] = sizes.map(i128::from);
    if sizes.contains(&0) {
        return Legal;
    }
    let groups = |n: i128, size: i32| (n + i128::from(size) - 1) / i128::from(size.max(1));
    let counts = [batch, heads, groups(tokens, group[0]), groups(dim, group[1])];
    let mut axes: Vec<(i128, i128)> = (0..4)
        .filter(|&i| stride[i] != 0 && counts[i] > 1)
        .map(|i| (i128::from(stride[i]), counts[i]))
        .collect();
    axes.sort_unstable();
    // Each larger than the farthest that one gets by the smaller ones: the header's own words.
    let mut farthest = 0i128;
    let is_nested = axes.iter().all(|&(stride, count)| {
        let is_larger = stride > farthest;
        farthest = farthest.saturating_add((count - 1).saturating_mul(stride));
        is_larger
    });
    if is_nested { Legal } else { Refused }
}
