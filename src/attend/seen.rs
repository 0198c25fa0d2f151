//! Masks as ranges: what they leave of a block of keys to each query row.
//!
//! Before the first block of keys, the masks of its rows are scanned from both ends for the first
//! and the last key that some row sees. Before each block between them, what each row sees of it is
//! found: the keys from the first to the last one that no mask hides. So what is hidden from all
//! rows is skipped, and the rest is computed as under windows. If masks change no score within
//! these ranges, they have been read for the last time: rows are *plain*, and causal masks, windows
//! and padding that come as masks cost what the fields for them cost.
//!
//! A scan stops where the answer is known: of a dense bias it reads the first and the last key of
//! each row.

use std::ops::{BitOr, BitXor, Range};

use super::blocks::clip;
use crate::dtype::Dtype;
use crate::problem::{Problem, Sequence};
use crate::simd::{Body, Isa};
use crate::view::Layout;

/// Runs code with the elements of a row of a mask of any type.
macro_rules! with_elements {
    ($row:expr, $dtype:expr, $mask:ident => $code:expr) => {
        match $dtype {
            Dtype::Bool8 => {
                let $mask = Elements { row: $row, hidden: 0u8 };
                $code
            }
            Dtype::F16 => {
                let $mask = Elements { row: $row, hidden: 0xfc00u16 };
                $code
            }
            Dtype::Bf16 => {
                let $mask = Elements { row: $row, hidden: 0xff80u16 };
                $code
            }
            // Types that masks cannot have are named, so that a new one is not taken for f32.
            Dtype::F32 | Dtype::I8 | Dtype::Q8_0 => {
                let $mask = Elements { row: $row, hidden: 0xff80_0000u32 };
                $code
            }
        }
    };
}

/// The keys that a row sees of a block, from the first to the last, counted from the first key of
/// the block.
#[derive(Clone, Copy)]
pub(crate) struct Seen {
    /// The first one.
    pub(crate) low: i32,
    /// The one behind the last.
    pub(crate) high: i32,
}

impl Seen {
    /// No key: adds nothing to what is seen by any row, and leaves nothing to all.
    const NOTHING: Seen = Seen { low: i32::MAX, high: 0 };

    /// `keys` of the block that begins with key `start`.
    fn of(keys: &Range<usize>, start: usize) -> Seen {
        if keys.is_empty() {
            return Seen::NOTHING;
        }
        // A block has at most i32::MAX keys: see `plan`.
        Seen { low: (keys.start - start) as i32, high: (keys.end - start) as i32 }
    }

    /// The keys, of the block that begins with key `start`.
    #[inline(always)]
    pub(crate) fn keys(self, start: usize) -> Range<usize> {
        start + (self.low as usize).min(self.high as usize)..start + self.high as usize
    }

    /// The keys that are between two keys that `rows` see, of the block that begins with key
    /// `start`. Kept out of line, as [`look`] is.
    #[inline(never)]
    pub(crate) fn by_any(rows: &[Seen], start: usize) -> Range<usize> {
        let (low, high) = (rows.iter().map(|row| row.low).min(), rows.iter().map(|row| row.high).max());
        Seen { low: low.unwrap_or(0), high: high.unwrap_or(0) }.keys(start)
    }

    /// The keys within the ranges of all `rows`, of the block that begins with key `start`. Where
    /// there are none, the range may begin behind its end. Kept out of line, as [`look`] is.
    #[inline(never)]
    pub(crate) fn by_all(rows: &[Seen], start: usize) -> Range<usize> {
        let (low, high) = (rows.iter().map(|row| row.low).max(), rows.iter().map(|row| row.high).min());
        start + low.unwrap_or(0) as usize..start + high.unwrap_or(0) as usize
    }
}

/// The rows of a head whose masks are scanned, and a part of a block of keys.
pub(crate) struct Look<'a, 'p> {
    pub(crate) problem: &'a Problem<'p>,
    pub(crate) sequence: &'a Sequence,
    pub(crate) head: usize,
    pub(crate) rows: Range<usize>,
    /// Some keys of the block that begins with key `start`.
    pub(crate) keys: Range<usize>,
    pub(crate) start: usize,
    /// Whether it matters that the rows are plain.
    pub(crate) asks_plain: bool,
}

/// What [`look`] has found out about rows and keys.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    /// Whether masks leave the scores between the first and the last key of each row as they are;
    /// `false` where that does not matter.
    pub(crate) is_plain: bool,
    /// Whether each row sees the first and the last of the keys that windows leave to it.
    pub(crate) fills_windows: bool,
}

/// Writes to `to` what each of the rows sees, windows included. Kept out of line: few problems have
/// masks.
///
/// # Safety
/// `to` has room for as many elements as there are rows.
#[inline(never)]
pub(crate) unsafe fn look<S: Isa>(s: S, look: &Look, to: *mut Seen) -> Found {
    let Look { problem, sequence, head, ref rows, ref keys, start, asks_plain } = *look;
    let logits = problem.logits();
    let times_mask = logits.slopes.is_some_and(|slopes| slopes.times_mask);
    // Even 0 times a slope of NaN changes a score.
    let is_nan = times_mask && problem.slope(sequence, head).is_some_and(f32::is_nan);
    let (mut is_plain, mut fills_windows) = (asks_plain && !is_nan, true);
    look.prefetch(s);
    let dense = look.rows_within_windows();
    let mut before = None;
    for (i, row) in rows.clone().enumerate() {
        // SAFETY: I5: as many places as there are rows (caller); I2: keys of a row.
        unsafe {
            // Of a dense bias, no more than this is to be known.
            if let Some((mask, stride, dtype)) = dense
                && !is_plain
            {
                let row = mask.wrapping_add(i * stride);
                if with_elements!(row, dtype, mask => mask.sees_ends(keys)) {
                    to.add(i).write(Seen::of(keys, start));
                    continue;
                }
            }
            let line = look.line(row, keys);
            if before.as_ref() == Some(&line) {
                // One row for all is scanned once.
                to.add(i).write(to.add(i - 1).read());
                continue;
            }
            let (seen, row_is_plain) = line.scan(s, is_plain);
            is_plain &= row_is_plain;
            fills_windows &= seen == line.keys;
            to.add(i).write(Seen::of(&seen, start));
            before = Some(line);
        }
    }
    Found { is_plain, fills_windows }
}

/// The keys of `keys` between those that some of `rows` of some of `heads` see. Kept out of line,
/// as [`look`] is.
#[inline(never)]
pub(crate) fn hull<S: Isa>(
    s: S,
    problem: &Problem,
    sequence: &Sequence,
    heads: &Range<usize>,
    rows: &Range<usize>,
    keys: &Range<usize>,
) -> Range<usize> {
    let is_same = problem.logits().hides_same_from_all_heads();
    let mut hull = keys.end..keys.end;
    let whole = clip(sequence.seen_by(rows), keys);
    for head in heads.start..if is_same { heads.start + 1 } else { heads.end } {
        let look = Look {
            problem,
            sequence,
            head,
            rows: rows.clone(),
            keys: keys.clone(),
            start: 0,
            asks_plain: false,
        };
        let mut before = None;
        for row in rows.clone() {
            if hull == whole {
                return hull;
            }
            let line = look.line(row, keys);
            if before.as_ref() == Some(&line) {
                continue;
            }
            let is_first = hull.is_empty();
            // Only keys outside of the hull can extend it: those before it, then those behind it.
            let visible = line.keys.clone();
            let mut part = visible.start..visible.end.min(hull.start).max(visible.start);
            for is_behind in [false, true] {
                let part_of = Line { keys: part, ..line.clone() };
                let seen = if part_of.keys.is_empty() { part_of.keys } else { part_of.scan(s, false).0 };
                if !seen.is_empty() {
                    hull = if is_behind { hull.start } else { seen.start }..if is_first || is_behind {
                        seen.end
                    } else {
                        hull.end
                    };
                }
                if is_first {
                    break;
                }
                part = visible.start.max(hull.end).min(visible.end)..visible.end;
            }
            before = Some(line);
        }
    }
    hull
}

/// Writes to `to`, for each of the keys, whether any of the rows sees it: 1 or 0. `seen` is what
/// [`look`] has found for the rows.
///
/// # Safety
/// `seen` has an element for each row, of the block that begins with key `start`, and `to` room for
/// one for each key.
#[inline(never)]
pub(crate) unsafe fn mark_seen<S: Isa>(s: S, look: &Look, seen: *const Seen, to: *mut u8) {
    let mut before = None;
    // SAFETY: as many elements as there are rows, or keys (caller); I2: keys of the sequence.
    unsafe {
        to.write_bytes(0, look.keys.len());
        for (i, row) in look.rows.clone().enumerate() {
            let keys = clip(seen.add(i).read().keys(look.start), &look.keys);
            let line = Line { keys, ..look.line(row, &look.keys) };
            if before.as_ref() != Some(&line) {
                s.core().enter(Mark { line: &line, to: to.add(line.keys.start - look.keys.start) });
                before = Some(line);
            }
        }
    }
}

/// Whether a query row sees any key.
#[inline(never)]
pub(crate) fn sees_any<S: Isa>(
    s: S,
    problem: &Problem,
    sequence: &Sequence,
    head: usize,
    row: usize,
) -> bool {
    let keys = sequence.visible(row);
    if !problem.logits().hides() {
        return !keys.is_empty();
    }
    let look = Look { problem, sequence, head, rows: row..row + 1, keys, start: 0, asks_plain: false };
    !look.line(row, &look.keys).scan(s, false).0.is_empty()
}

impl Look<'_, '_> {
    /// The mask, if it decides alone which keys the rows see: the address of its first row, bytes
    /// from one to the next, and its type.
    #[inline(always)]
    fn rows_within_windows(&self) -> Option<(*const u8, usize, Dtype)> {
        let Look { problem, sequence, ref rows, ref keys, .. } = *self;
        let logits = problem.logits();
        let mask = logits.mask.as_ref().filter(|_| logits.cells.is_none() && !rows.is_empty())?;
        // Windows move with the row, so the first and the last row bound all others.
        let sees_all = |row| clip(sequence.visible(row), keys) == *keys;
        let Layout { dtype, stride: [_, _, stride], .. } = *mask.layout();
        let first = mask.row(sequence.batch, self.head, rows.start);
        (sees_all(rows.start) && sees_all(rows.end - 1)).then_some((first, stride, dtype))
    }

    /// Prefetches the first and the last of the keys of each row: of a dense bias, nothing else is
    /// read, from a line of its own for each of them.
    #[inline(always)]
    fn prefetch<S: Isa>(&self, s: S) {
        let Some(mask) = &self.problem.logits().mask else { return };
        let Layout { dtype, stride: [_, _, stride], .. } = *mask.layout();
        if stride == 0 || self.rows.is_empty() {
            return;
        }
        let row = mask.row(self.sequence.batch, self.head, self.rows.start);
        for i in 0..self.rows.len() {
            for key in [self.keys.start, self.keys.end - 1] {
                s.prefetch_l1(row.wrapping_add(i * stride + key * dtype.block_bytes()));
            }
        }
    }

    /// What masks say of those of `keys` that the window leaves to a row.
    #[inline(never)]
    fn line(&self, row: usize, keys: &Range<usize>) -> Line {
        let logits = self.problem.logits();
        let (batch, head) = (self.sequence.batch, self.head);
        let mask = logits.mask.as_ref().map(|mask| (mask.row(batch, head, row), mask.layout().dtype));
        let cells = logits.cells.as_ref();
        let cells = cells.map(|cells| (cells.view.row(batch, head, row / cells.rows), cells.keys));
        Line { mask, cells, keys: clip(self.sequence.visible(row), keys) }
    }
}

/// What the masks say of some keys of a row: only [`Look::line`] makes one, of keys that the masks
/// have (I2).
#[derive(Clone, PartialEq)]
struct Line {
    /// The row of the mask, and its type.
    mask: Option<(*const u8, Dtype)>,
    /// The row of the block mask, a byte for each block, and the keys of a block.
    cells: Option<(*const u8, usize)>,
    keys: Range<usize>,
}

impl Line {
    /// What is seen of the keys, from the first to the last; and, if `asks_plain`, whether nothing
    /// within that is hidden or changed. Out of line, so that the loops exist once.
    #[inline(never)]
    fn scan<S: Isa>(&self, s: S, asks_plain: bool) -> (Range<usize>, bool) {
        s.core().enter(Scan { line: self, asks_plain })
    }
}

/// The arguments of [`Line::scan`].
struct Scan<'a> {
    line: &'a Line,
    asks_plain: bool,
}

impl Body for Scan<'_> {
    type Out = (Range<usize>, bool);

    #[inline(always)]
    fn run<S: Isa>(self, _s: S) -> (Range<usize>, bool) {
        let Scan { line, asks_plain } = self;
        // SAFETY: I2: the rows have the keys (`Look::line`); I9: elements are of the mask's type.
        unsafe {
            match line.mask {
                None => line.scan_as::<u8>(None, asks_plain),
                Some((row, dtype)) => {
                    with_elements!(row, dtype, mask => line.scan_as(Some(mask), asks_plain))
                }
            }
        }
    }
}

/// The arguments of [`mark_seen`], for one row; that alone makes one, and vouches for the pointer.
struct Mark<'a> {
    line: &'a Line,
    /// That of the first key of the row.
    to: *mut u8,
}

impl Body for Mark<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, _s: S) {
        let Mark { line: Line { mask, cells, keys }, to } = self;
        let mut at = keys.start;
        while at < keys.end {
            // SAFETY: I2: the rows have the keys (`Look::line`); I9: elements are of the mask's
            // type; one element of `to` for each key (`mark_seen`).
            unsafe {
                let (part, is_left) = match *cells {
                    None => (keys.clone(), true),
                    Some((row, size)) => {
                        let is_left = row.wrapping_add(at / size).read() != 0;
                        (clip(keys_of(at / size, size), &(at..keys.end)), is_left)
                    }
                };
                let to = to.add(at - keys.start);
                at = part.end;
                if !is_left {
                    continue;
                }
                match *mask {
                    None => to.write_bytes(1, part.len()),
                    Some((row, dtype)) => with_elements!(row, dtype, mask => mask.mark(part, to)),
                }
            }
        }
    }
}

impl Line {
    /// [`Line::scan`], of a mask whose elements have the bits `T`.
    ///
    /// # Safety
    /// The rows have the keys.
    #[inline(always)]
    unsafe fn scan_as<T: Bits>(&self, mask: Option<Elements<T>>, asks_plain: bool) -> (Range<usize>, bool) {
        let Range { start: mut low, end: mut high } = self.keys;
        let nothing = high..high;
        // SAFETY: parts of the caller's keys, and the cells that these lie in.
        unsafe {
            loop {
                // The first keys that the block mask leaves.
                let left = match self.cells {
                    None => low..high,
                    Some((row, size)) => {
                        let cells = Elements { row, hidden: 0u8 };
                        match cells.first(low / size..high.div_ceil(size)) {
                            None => return (nothing, asks_plain),
                            Some(cell) => clip(keys_of(cell, size), &(low..high)),
                        }
                    }
                };
                let first = match &mask {
                    None if left.is_empty() => None,
                    None => Some(left.start),
                    Some(mask) => mask.first(left.clone()),
                };
                low = first.unwrap_or(left.end);
                if first.is_some() {
                    break;
                }
                if low == high {
                    return (nothing, asks_plain);
                }
            }
            while high > low {
                let left = match self.cells {
                    None => low..high,
                    Some((row, size)) => {
                        let cells = Elements { row, hidden: 0u8 };
                        let cell = cells.last(low / size..high.div_ceil(size)).unwrap_or(low / size);
                        clip(keys_of(cell, size), &(low..high))
                    }
                };
                let last = match &mask {
                    None => Some(left.end - 1),
                    Some(mask) => mask.last(left.clone()),
                };
                if let Some(last) = last {
                    high = last + 1;
                    break;
                }
                high = left.start;
            }
            let mut is_plain = asks_plain;
            if let Some((row, size)) = self.cells
                && is_plain
            {
                let cells = Elements { row, hidden: 0u8 };
                is_plain = !cells.any_changes(low / size..high.div_ceil(size));
            }
            if let Some(mask) = &mask
                && is_plain
            {
                is_plain = !mask.any_changes(low..high);
            }
            (low..high, is_plain)
        }
    }
}

/// The keys of a cell of `size` keys.
#[inline(always)]
fn keys_of(cell: usize, size: usize) -> Range<usize> {
    let start = cell.saturating_mul(size);
    start..start.saturating_add(size)
}

/// The bits of an element of a mask.
trait Bits: Copy + Default + PartialEq + BitXor<Output = Self> + BitOr<Output = Self> {
    /// 0 if the element leaves a score as it is.
    fn changes(self) -> Self;
}

impl Bits for u8 {
    #[inline(always)]
    fn changes(self) -> u8 {
        u8::from(self == 0)
    }
}

impl Bits for u16 {
    #[inline(always)]
    fn changes(self) -> u16 {
        self << 1
    }
}

impl Bits for u32 {
    #[inline(always)]
    fn changes(self) -> u32 {
        self << 1
    }
}

/// A row of a mask.
struct Elements<T> {
    row: *const u8,
    /// The element that hides a key.
    hidden: T,
}

/// Elements that are compared at a time: whole vectors of any type, and few enough to be searched
/// one by one afterwards.
const CHUNK: usize = 32;

impl<T: Bits> Elements<T> {
    /// # Safety
    /// The row has element `i`.
    #[inline(always)]
    unsafe fn get(&self, i: usize) -> T {
        // SAFETY: an element of the row (caller), whose type any bits are.
        unsafe { self.row.cast::<T>().wrapping_add(i).read_unaligned() }
    }

    /// Whether the first and the last of `keys` are seen, which are some.
    ///
    /// # Safety
    /// The row has the elements `keys`.
    #[inline(always)]
    unsafe fn sees_ends(&self, keys: &Range<usize>) -> bool {
        // SAFETY: elements of `keys` (caller).
        unsafe { self.get(keys.start) != self.hidden && self.get(keys.end - 1) != self.hidden }
    }

    /// Whether any of `CHUNK` elements from `at` on is seen.
    ///
    /// # Safety
    /// The row has these elements.
    #[inline(always)]
    unsafe fn any_seen(&self, at: usize) -> bool {
        // All of them and no early exit, so that the loop becomes vector code.
        let mut found = T::default();
        for i in 0..CHUNK {
            // SAFETY: an element of the row (caller).
            found = found | (unsafe { self.get(at + i) } ^ self.hidden);
        }
        found != T::default()
    }

    /// The first of `keys` that is seen.
    ///
    /// # Safety
    /// The row has the elements `keys`.
    #[inline(always)]
    unsafe fn first(&self, keys: Range<usize>) -> Option<usize> {
        let Range { start: mut at, end } = keys;
        // SAFETY: elements of `keys` (caller).
        unsafe {
            if at < end && self.get(at) != self.hidden {
                return Some(at);
            }
            while end - at >= CHUNK && !self.any_seen(at) {
                at += CHUNK;
            }
            while at < end {
                if self.get(at) != self.hidden {
                    return Some(at);
                }
                at += 1;
            }
        }
        None
    }

    /// The last of `keys` that is seen.
    ///
    /// # Safety
    /// The row has the elements `keys`.
    #[inline(always)]
    unsafe fn last(&self, keys: Range<usize>) -> Option<usize> {
        let Range { start, end: mut at } = keys;
        // SAFETY: elements of `keys` (caller).
        unsafe {
            if start < at && self.get(at - 1) != self.hidden {
                return Some(at - 1);
            }
            while at - start >= CHUNK && !self.any_seen(at - CHUNK) {
                at -= CHUNK;
            }
            while start < at {
                at -= 1;
                if self.get(at) != self.hidden {
                    return Some(at);
                }
            }
        }
        None
    }

    /// Makes 1 of the elements of `to` whose keys are seen.
    ///
    /// # Safety
    /// The row has the elements `keys`, and `to` one for each of them.
    #[inline(always)]
    unsafe fn mark(&self, keys: Range<usize>, to: *mut u8) {
        for i in 0..keys.len() {
            // SAFETY: an element of each (caller).
            unsafe {
                let is_seen = self.get(keys.start + i) != self.hidden;
                to.add(i).write(to.add(i).read() | u8::from(is_seen));
            }
        }
    }

    /// Whether any of `keys` is hidden, or its score changed.
    ///
    /// # Safety
    /// The row has the elements `keys`.
    #[inline(always)]
    unsafe fn any_changes(&self, keys: Range<usize>) -> bool {
        let Range { start: mut at, end } = keys;
        // SAFETY: elements of `keys` (caller).
        unsafe {
            while end - at >= CHUNK {
                let mut found = T::default();
                for i in 0..CHUNK {
                    found = found | self.get(at + i).changes();
                }
                if found != T::default() {
                    return true;
                }
                at += CHUNK;
            }
            let mut found = T::default();
            while at < end {
                found = found | self.get(at).changes();
                at += 1;
            }
            found != T::default()
        }
    }
}
