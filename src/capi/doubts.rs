//! What is doubtful about a problem that is right: strides that are legal, and that nobody means.
//!
//! No use of strides that has a meaning is doubted: data that is repeated by a stride of 0, caches
//! with room, chunks or pages that overlap by whole rows, rows of a mask that overlap.

use std::fmt;

use crate::error::names::{K, MASK, Names, Q, V, number};
use crate::error::{Error, Refusal};
use crate::problem::Problem;
use crate::view::{Layout, is_nested};

/// The doubts about a problem, in words; none if there are none.
pub(super) struct Doubts<'p, 'a>(pub(super) &'p Problem<'a>);

impl fmt::Display for Doubts<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Doubts(problem) = self;
        let [q, k, v] = [problem.q(), problem.k(), problem.v()].map(|view| view.layout());
        let mask = problem.logits().mask.as_ref();
        let is_paged = problem.batch().pages.is_some();
        let doubts = [
            of_strides(&Q, q),
            of_strides(&K, k),
            of_strides(&V, v),
            if is_paged { of_pages(&K, k) } else { None },
            if is_paged { of_pages(&V, v) } else { None },
            of_tokens(k, v),
            mask.and_then(|mask| of_mask(mask.layout())),
        ];
        doubts.iter().flatten().try_for_each(|doubt| write!(f, "; warning: {doubt}"))
    }
}

/// Rows of Q, K or V that share memory, though not by being the same rows again and again.
fn of_strides(names: &Names, layout: &Layout) -> Option<Refusal> {
    let Layout { dtype, extent: [_, heads, tokens], stride: [_, head, token], .. } = *layout;
    if layout.is_strided() || layout.extent.contains(&0) {
        return None;
    }
    let row = layout.row_bytes();
    let doubt = |axis: usize, but, limit: usize| {
        let fact = Refusal::of(names.stride, number(layout.stride[axis])).at(axis);
        Some(fact.against(Error::Stride, but, number(limit)))
    };
    // As a count of elements it would be a whole row or more.
    let counts_elements = |axis: &usize| {
        let stride = layout.stride[*axis];
        layout.extent[*axis] > 1 && stride < row && stride >= (layout.dim / dtype.block()).max(1)
    };
    if let Some(axis) = (0..3).find(counts_elements) {
        return doubt(axis, "strides count bytes, and this is fewer than those of a row", row);
    }
    if heads == 1 || tokens == 1 || head < row || token < row {
        return None;
    }
    let reach = (heads - 1) * head + row;
    if head <= token && reach > token {
        let but =
            "heads of a token reach into the next token: fewer heads, or another stride? bytes of all heads";
        return doubt(2, but, reach);
    }
    // Queries in overlapping heads mean nothing; keys may be chunks of a longer sequence.
    let overlaps = (tokens - 1) * token + row > head;
    let axes: [(usize, usize); 3] = std::array::from_fn(|axis| {
        (layout.stride[axis], if layout.stride[axis] == 0 { 1 } else { layout.extent[axis] })
    });
    let is_swapped = token.checked_mul(heads) == Some(head) && !is_nested(axes, row);
    if head > token && (is_swapped || (names.tensor == Q.tensor && overlaps)) {
        let but =
            "heads overlap: is it swapped with stride[2], that of tokens? bytes of all tokens of a head";
        return doubt(1, but, (tokens - 1) * token + row);
    }
    None
}

/// Pages that are all the same memory.
fn of_pages(names: &Names, layout: &Layout) -> Option<Refusal> {
    let [pages, ..] = layout.extent;
    (pages > 1 && layout.stride[0] == 0 && !layout.extent.contains(&0)).then(|| {
        let but = "all pages are the same memory; num_pages";
        Refusal::of(names.stride, 0).at(0).against(Error::Stride, but, number(pages))
    })
}

/// Keys and values of which a head has one each: the output is that value.
fn of_tokens(k: &Layout, v: &Layout) -> Option<Refusal> {
    let [.., tokens] = k.extent;
    (tokens > 1 && k.stride[2] == 0 && v.stride[2] == 0).then(|| {
        let but = "as that of v, so a head has one key and one value; tokens";
        Refusal::of(K.stride, 0).at(2).against(Error::Stride, but, number(tokens))
    })
}

/// Rows of a mask whose stride is the number of their elements, not of their bytes.
fn of_mask(layout: &Layout) -> Option<Refusal> {
    let row = layout.row_bytes();
    (layout.extent[2] > 1 && layout.stride[2] == layout.dim && layout.dim < row).then(|| {
        let but = "strides count bytes, and this is the number of elements of a row; bytes of a row";
        Refusal::of(MASK.stride, number(layout.stride[2])).at(2).against(Error::Stride, but, number(row))
    })
}
