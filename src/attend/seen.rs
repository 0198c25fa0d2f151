//! Masks as ranges: what they leave of a block of keys to each query row.
//!
//! Before a block of keys is computed, the masks of its rows are scanned. A row sees the keys from
//! the first to the last one that no mask hides. So what is hidden from all rows is skipped, and
//! the rest is computed as under windows. If masks change no score within these ranges, they have
//! been read for the last time: rows are *plain*, and causal masks, windows and padding that come
//! as masks cost what the fields for them cost.
//!
//! A scan stops where the answer is known: of a dense bias it reads the first and the last key of
//! each row.

use std::ops::{BitOr, BitXor, Range};

use super::blocks::clip;
use crate::dtype::Dtype;
use crate::problem::{Problem, Sequence};
use crate::simd::{Body, Isa};

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
    /// `start`.
    pub(crate) fn by_any(rows: &[Seen], start: usize) -> Range<usize> {
        let (low, high) = (rows.iter().map(|row| row.low).min(), rows.iter().map(|row| row.high).max());
        Seen { low: low.unwrap_or(0), high: high.unwrap_or(0) }.keys(start)
    }

    /// The keys within the ranges of all `rows`, of the block that begins with key `start`. Where
    /// there are none, the range may begin behind its end.
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

/// Writes to `to` what each of the rows sees, windows included. Returns whether masks leave the
/// scores of these keys as they are; `false` where that does not matter. Kept out of line: few
/// problems have masks.
///
/// # Safety
/// `to` has room for as many elements as there are rows.
#[inline(never)]
pub(crate) unsafe fn look<S: Isa>(s: S, look: Look, to: *mut Seen) -> bool {
    s.core().enter(Scan { look, to })
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
    s.core().enter(SeesAny(Look {
        problem,
        sequence,
        head,
        rows: row..row + 1,
        start: keys.start,
        keys,
        asks_plain: false,
    }))
}

/// The arguments of [`look`], which alone makes one and vouches for the pointer.
struct Scan<'a, 'p> {
    look: Look<'a, 'p>,
    to: *mut Seen,
}

impl Body for Scan<'_, '_> {
    type Out = bool;

    #[inline(always)]
    fn run<S: Isa>(self, _s: S) -> bool {
        let Scan { look, to } = self;
        let Look { problem, sequence, head, ref rows, ref keys, start, asks_plain } = look;
        let logits = problem.logits();
        let times_mask = logits.slopes.is_some_and(|slopes| slopes.times_mask);
        // Even 0 times a slope of NaN changes a score.
        let is_nan = times_mask && problem.slope(sequence, head).is_some_and(f32::is_nan);
        let mut is_plain = asks_plain && !is_nan;
        let mut before = None;
        for (i, row) in rows.clone().enumerate() {
            let visible = clip(sequence.visible(row), keys);
            // One row for all is scanned once.
            let line = look.line(row);
            let place = (line.address(), visible.start, visible.end);
            // SAFETY: I5: as many places as there are rows (the contract of `look`, which made
            // this); I2: the masks have the row, with the keys of the sequence.
            unsafe {
                if before == Some(place) {
                    to.add(i).write(to.add(i - 1).read());
                    continue;
                }
                before = Some(place);
                let (seen, row_is_plain) = line.scan(visible, is_plain);
                is_plain &= row_is_plain;
                to.add(i).write(Seen::of(&seen, start));
            }
        }
        is_plain
    }
}

/// The arguments of [`sees_any`], which alone makes one.
struct SeesAny<'a, 'p>(Look<'a, 'p>);

impl Body for SeesAny<'_, '_> {
    type Out = bool;

    #[inline(always)]
    fn run<S: Isa>(self, _s: S) -> bool {
        let Look { ref rows, ref keys, .. } = self.0;
        // SAFETY: I2: the masks have the row, with the keys of the sequence.
        let (seen, _) = unsafe { self.0.line(rows.start).scan(keys.clone(), false) };
        !seen.is_empty()
    }
}

impl Look<'_, '_> {
    /// What the masks say of a row.
    #[inline(always)]
    fn line(&self, row: usize) -> Line {
        let logits = self.problem.logits();
        let batch = self.sequence.batch;
        let mask = logits.mask.as_ref().map(|mask| (mask.row(batch, self.head, row), mask.layout().dtype));
        let cells = logits.cells.as_ref();
        let cells = cells.map(|cells| (cells.view.row(batch, self.head, row / cells.rows), cells.keys));
        Line { mask, cells }
    }
}

/// What the masks say of a row.
struct Line {
    /// The row of the mask, and its type.
    mask: Option<(*const u8, Dtype)>,
    /// The row of the block mask, a byte for each block, and the keys of a block.
    cells: Option<(*const u8, usize)>,
}

impl Line {
    /// Where it lies.
    #[inline(always)]
    fn address(&self) -> [usize; 2] {
        [self.mask.map_or(0, |(row, _)| row.addr()), self.cells.map_or(0, |(row, _)| row.addr())]
    }

    /// What is seen of `keys`, from the first to the last; and, if `asks_plain`, whether nothing
    /// within that is hidden or changed.
    ///
    /// # Safety
    /// The rows have `keys`.
    #[inline(always)]
    unsafe fn scan(&self, keys: Range<usize>, asks_plain: bool) -> (Range<usize>, bool) {
        // SAFETY: the rows have `keys` (caller); I9: elements are of the mask's type.
        unsafe {
            match self.mask {
                None => self.scan_as::<u8>(None, keys, asks_plain),
                Some((row, Dtype::Bool8)) => {
                    self.scan_as(Some(Elements { row, hidden: 0u8 }), keys, asks_plain)
                }
                Some((row, Dtype::F16)) => {
                    self.scan_as(Some(Elements { row, hidden: 0xfc00u16 }), keys, asks_plain)
                }
                Some((row, Dtype::Bf16)) => {
                    self.scan_as(Some(Elements { row, hidden: 0xff80u16 }), keys, asks_plain)
                }
                // Types that masks cannot have are named, so that a new one is not taken for f32.
                Some((row, Dtype::F32 | Dtype::I8 | Dtype::Q8_0)) => {
                    self.scan_as(Some(Elements { row, hidden: 0xff80_0000u32 }), keys, asks_plain)
                }
            }
        }
    }

    /// [`Line::scan`], of a mask whose elements have the bits `T`.
    ///
    /// # Safety
    /// As [`Line::scan`].
    #[inline(always)]
    unsafe fn scan_as<T: Bits>(
        &self,
        mask: Option<Elements<T>>,
        keys: Range<usize>,
        asks_plain: bool,
    ) -> (Range<usize>, bool) {
        let nothing = keys.end..keys.end;
        let Range { start: mut low, end: mut high } = keys;
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
                let first = mask.as_ref().map_or(Some(left.start), |mask| mask.first(left.clone()));
                low = first.unwrap_or(left.end);
                if low == high {
                    return (nothing, asks_plain);
                }
                if first.is_some() {
                    break;
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
            let is_plain = asks_plain
                && self.cells.is_none_or(|(row, size)| {
                    !Elements { row, hidden: 0u8 }.any_changes(low / size..high.div_ceil(size))
                })
                && mask.is_none_or(|mask| !mask.any_changes(low..high));
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
