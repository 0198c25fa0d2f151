//! Software prefetch of rows of K and V. No result depends on it, nor on whether there is memory.

use crate::attend::rows::Rows;
use crate::simd::Isa;

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// Prefetches `bytes` bytes of each of the first `n` rows into the first-level cache.
#[inline(always)]
pub(super) fn prefetch_rows<S: Isa>(s: S, rows: Rows, n: usize, bytes: usize) {
    if bytes > 0 {
        for i in 0..n {
            let row = rows.skip(i).base;
            let mut line = 0;
            while line < bytes {
                s.prefetch_l1(row.wrapping_add(line));
                line += LINE;
            }
        }
    }
}

/// [`prefetch_rows`] of rows of `bytes` bytes: each line once, also where rows share lines.
#[inline(always)]
pub(super) fn prefetch_whole_rows<S: Isa>(s: S, rows: Rows, n: usize, bytes: usize) {
    if rows.stride == bytes {
        prefetch_rows(s, rows, 1, n * bytes);
    } else {
        prefetch_rows(s, rows, n, bytes);
    }
}

/// Bytes of rows that a stream is ahead of what is multiplied: what memory gives while it answers.
/// 16 to 64 KB did as well.
pub(super) const BYTES_AHEAD: usize = 24 << 10;

/// [`BYTES_AHEAD`] of rows that lie behind one another: from 12 to 16 KB no type and no length of
/// rows took much longer than at its best.
const BYTES_AHEAD_IN_ORDER: usize = 16 << 10;

/// Rows that are multiplied later, and are brought into the second-level cache meanwhile. Row n
/// goes with key n.
///
/// Otherwise reading and multiplying take turns: of several passes over V the first one waits for
/// memory, and nothing is read in the others.
#[derive(Clone, Copy)]
pub(crate) struct PrefetchStream {
    rows: Rows,
    /// Bytes of a row; 0 for nothing.
    bytes: usize,
    /// Whether the rows are those that are multiplied, some keys later.
    is_own: bool,
}

impl PrefetchStream {
    /// Prefetches nothing.
    pub(super) const NOTHING: PrefetchStream =
        PrefetchStream { rows: Rows { base: std::ptr::null(), stride: 0 }, bytes: 0, is_own: false };

    /// Whether there is anything to prefetch.
    #[inline(always)]
    pub(crate) fn is_any(&self) -> bool {
        self.bytes > 0
    }

    /// `bytes` bytes of each of these rows.
    pub(super) fn rows(rows: Rows, bytes: usize) -> PrefetchStream {
        PrefetchStream { rows, bytes, is_own: false }
    }

    /// The rows that go with each key, as far as memory answers late.
    pub(super) fn ahead(rows: Rows, bytes: usize) -> PrefetchStream {
        PrefetchStream { rows: rows.skip(BYTES_AHEAD_IN_ORDER / bytes.max(1)), bytes, is_own: true }
    }

    /// Whether the rows are those that are multiplied, some keys later, so that reading these in
    /// order is as good.
    #[inline(always)]
    pub(super) fn is_own(&self) -> bool {
        self.is_own
    }

    /// Nothing if the stream begins where `rows` do, which are being read: V may be a part of K.
    pub(super) fn unless_at(self, rows: Rows) -> PrefetchStream {
        if self.rows.base == rows.base { PrefetchStream::NOTHING } else { self }
    }

    /// The rows from row `n` on.
    #[inline(always)]
    pub(super) fn skip(self, n: usize) -> PrefetchStream {
        PrefetchStream { rows: self.rows.skip(n), ..self }
    }

    /// Prefetches the rows of `n` keys from `key` on, which lie behind one another: each line once,
    /// also where rows share lines.
    #[inline(always)]
    pub(super) fn prefetch_lines<S: Isa>(&self, s: S, key: usize, n: usize) {
        let from = self.rows.skip(key).base;
        // The first line of rows that begin within one belongs to those before them.
        let mut line = from.addr().wrapping_neg() % LINE;
        let bytes = if self.bytes == self.rows.stride { n * self.bytes } else { 0 };
        while line < bytes {
            s.prefetch_l2(from.wrapping_add(line));
            line += LINE;
        }
        if self.bytes != self.rows.stride {
            self.prefetch(s, key, n);
        }
    }

    /// Prefetches the rows of `n` keys from `key` on.
    #[inline(always)]
    pub(super) fn prefetch<S: Isa>(&self, s: S, key: usize, n: usize) {
        for i in 0..n {
            let row = self.rows.skip(key + i).base;
            let mut line = 0;
            while line < self.bytes {
                s.prefetch_l2(row.wrapping_add(line));
                line += LINE;
            }
        }
    }
}
