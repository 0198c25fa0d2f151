//! What is doubtful about a problem that is right: strides that are legal, and that nobody means.
//!
//! No use of strides that has a meaning is doubted: data that is repeated by a stride of 0, caches
//! with room, chunks or pages that overlap by whole rows, rows of a mask that overlap.

use std::fmt;

use crate::error::names::{K, MASK, Names, Q, V};
use crate::problem::Problem;
use crate::view::{Layout, is_nested};

/// The doubts about a problem, in words; none if there are none.
pub(super) struct Doubts<'p, 'a>(pub(super) &'p Problem<'a>);

/// A stride that nobody means.
struct Doubt {
    names: &'static Names,
    axis: usize,
    is: usize,
    /// What is wrong with it; the name of `limit` ends it.
    but: &'static str,
    limit: usize,
}

impl fmt::Display for Doubts<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Doubts(problem) = self;
        let is_paged = problem.batch().pages.is_some();
        let [q, k, v] = [problem.q(), problem.k(), problem.v()].map(|view| view.layout());
        let mask = problem.logits().mask.as_ref().map(|mask| mask.layout());
        // One after another, so that the code of each exists once.
        for i in 0..7 {
            let doubt = match i {
                0..3 => of_strides([&Q, &K, &V][i], [q, k, v][i]),
                3..5 if is_paged => of_pages([&K, &V][i - 3], [k, v][i - 3]),
                5 => of_tokens(k, v),
                6 => mask.and_then(of_mask),
                _ => None,
            };
            if let Some(Doubt { names, axis, is, but, limit }) = doubt {
                write!(f, "; warning: {}[{axis}] = {is}: {but} = {limit}", names.stride)?;
            }
        }
        Ok(())
    }
}

/// Rows of Q, K or V that share memory, though not by being the same rows again and again.
#[inline(never)]
fn of_strides(names: &'static Names, layout: &Layout) -> Option<Doubt> {
    let Layout { dtype, extent: [entries, heads, tokens], stride, .. } = *layout;
    let [entry, head, token] = stride;
    if layout.is_strided() || layout.extent.contains(&0) {
        return None;
    }
    let row = layout.row_bytes();
    let doubt = |axis, but, limit| Some(Doubt { names, axis, is: stride[axis], but, limit });
    // As a count of elements it would be a whole row or more.
    let least = (layout.dim / dtype.block()).max(1);
    let counts_elements = |&axis: &usize| layout.extent[axis] > 1 && (least..row).contains(&stride[axis]);
    if let Some(axis) = (0..3).find(counts_elements) {
        return doubt(axis, "strides count bytes, and this is fewer than those of a row", row);
    }
    if heads == 1 || tokens == 1 || head < row || token < row {
        return None;
    }
    let of_heads = (heads - 1) * head + row;
    if head <= token && of_heads > token {
        let but = "heads of a token reach into the next token: too many heads, or another stride? bytes of all heads";
        return doubt(2, but, of_heads);
    }
    // Queries in heads that overlap mean nothing; keys may be chunks of a longer sequence.
    let of_tokens = (tokens - 1) * token + row;
    let overlaps = names.tensor == Q.tensor && of_tokens > head;
    let entries = if entry == 0 { 1 } else { entries };
    let is_swapped = token.checked_mul(heads) == Some(head)
        && !is_nested([(entry, entries), (head, heads), (token, tokens)], row);
    if head > token && (is_swapped || overlaps) {
        let but = "heads overlap: swapped with stride[2], that of tokens? bytes of all tokens of a head";
        return doubt(1, but, of_tokens);
    }
    None
}

/// Pages that are all the same memory.
fn of_pages(names: &'static Names, layout: &Layout) -> Option<Doubt> {
    let pages = layout.extent[0];
    let is_one = layout.stride[0] == 0 && !layout.extent.contains(&0);
    let but = "all pages are the same memory; num_pages";
    (pages > 1 && is_one).then_some(Doubt { names, axis: 0, is: 0, but, limit: pages })
}

/// Keys and values of which a head has one each: the output is that value.
fn of_tokens(k: &Layout, v: &Layout) -> Option<Doubt> {
    let tokens = k.extent[2];
    let is_one = k.stride[2] == 0 && v.stride[2] == 0;
    let but = "as that of v, so a head has one key and one value; tokens";
    (tokens > 1 && is_one).then_some(Doubt { names: &K, axis: 2, is: 0, but, limit: tokens })
}

/// Rows of a mask whose stride is the number of their elements, not of their bytes.
fn of_mask(layout: &Layout) -> Option<Doubt> {
    let (row, is) = (layout.row_bytes(), layout.stride[2]);
    let counts_elements = layout.extent[2] > 1 && is == layout.dim && is < row;
    let but = "strides count bytes, and this is the number of elements of a row; bytes of a row";
    counts_elements.then_some(Doubt { names: &MASK, axis: 2, is, but, limit: row })
}
