//! Asking for rows before they are multiplied. No result depends on it, nor on whether there is memory.

use crate::attend::rows::Rows;
use crate::simd::Isa;

/// Rows that are asked for ahead of those that are multiplied, where the order of reading is not that of memory. With 8
/// they come too late from memory, with 32 they are too many for the first-level cache, into which they are fetched.
pub(super) const AHEAD: usize = 16;

/// Rows that are asked for before a block begins: the machine takes only some tens of requests at a time.
pub(super) const FIRST: usize = 8;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Asks for `bytes` bytes each of `n` rows.
#[inline(always)]
pub(super) fn fetch_rows<S: Isa>(s: S, rows: Rows, n: usize, bytes: usize) {
    if bytes > 0 {
        for i in 0..n {
            let row = rows.skip(i).base;
            let mut line = 0;
            while line < bytes {
                s.prefetch_near(row.wrapping_add(line));
                line += LINE;
            }
        }
    }
}

/// What is multiplied after this, and is brought into the second level meanwhile: V of a block while its K is
/// multiplied, K of the next block while V is. Row n goes with key n.
///
/// Otherwise reading and multiplying take turns: of several passes over V the first one waits for memory, and nothing
/// is read in the others.
#[derive(Clone, Copy)]
pub(super) struct PrefetchStream {
    rows: Rows,
    /// Of a row; 0 for nothing.
    bytes: usize,
}

/// Bytes of a row.
#[derive(Clone, Copy)]
pub(super) struct LineRange {
    from: usize,
    to: usize,
}

impl PrefetchStream {
    pub(super) const NOTHING: PrefetchStream =
        PrefetchStream { rows: Rows { base: std::ptr::null(), stride: 0 }, bytes: 0 };

    /// `bytes` of each of these.
    pub(super) fn rows(rows: Rows, bytes: usize) -> PrefetchStream {
        PrefetchStream { rows, bytes }
    }

    /// Nothing if they begin where `rows` do, which are being read: V may be a part of K.
    pub(super) fn unless_at(self, rows: Rows) -> PrefetchStream {
        if self.rows.base == rows.base { PrefetchStream::NOTHING } else { self }
    }

    /// The rows from row `n` on.
    #[inline(always)]
    pub(super) fn skip(self, n: usize) -> PrefetchStream {
        PrefetchStream { rows: self.rows.skip(n), ..self }
    }

    /// What goes with elements `from..to` of `dim`.
    #[inline(always)]
    pub(super) fn share(&self, from: usize, to: usize, dim: usize) -> LineRange {
        let line = |d: usize| (self.bytes.saturating_mul(d.min(dim)) / dim).next_multiple_of(LINE);
        LineRange { from: line(from), to: line(to).min(self.bytes) }
    }

    /// All of them.
    #[inline(always)]
    pub(super) fn whole(&self) -> LineRange {
        LineRange { from: 0, to: self.bytes }
    }

    /// Asks for the rows of `n` keys from `key` on that lie behind one another, each line once.
    #[inline(always)]
    pub(super) fn ask_all<S: Isa>(&self, s: S, key: usize, n: usize) {
        let from = self.rows.skip(key).base;
        // The first line of rows that begin within one belongs to those before them.
        let mut line = from.addr().wrapping_neg() % LINE;
        let bytes = if self.bytes == self.rows.stride { n * self.bytes } else { 0 };
        while line < bytes {
            s.prefetch(from.wrapping_add(line));
            line += LINE;
        }
        if self.bytes != self.rows.stride {
            self.ask(s, key, n, self.whole());
        }
    }

    /// Asks for a share of the rows of `n` keys from `key` on.
    #[inline(always)]
    pub(super) fn ask<S: Isa>(&self, s: S, key: usize, n: usize, share: LineRange) {
        for i in 0..n {
            let row = self.rows.skip(key + i).base;
            let mut line = share.from;
            while line < share.to {
                s.prefetch(row.wrapping_add(line));
                line += LINE;
            }
        }
    }
}
