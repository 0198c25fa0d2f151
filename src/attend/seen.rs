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

use std::ops::Range;

use super::blocks::{clip, first_block};
use crate::dtype::Dtype;
use crate::problem::{BlockMask, Blocks, List, Problem, SeenKeys, Sequence};
use crate::view::View;

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
    pub(crate) fn of(keys: &Range<usize>, start: usize) -> Seen {
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
    pub(crate) sequence: &'a Sequence<'a>,
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

/// Finds what masks leave of the keys to the rows, which are some. Returns the keys between those
/// that some row sees, windows included; if the rows are plain, `to` has what each of them sees.
/// Else masks are to be applied to all of these keys anyway, and only they are found: of a dense
/// bias, by a look at one row. Kept out of line: few problems have masks.
///
/// # Safety
/// `to` has room for as many elements as there are rows.
#[inline(never)]
pub(crate) unsafe fn look(look: &Look, to: *mut Seen) -> (Range<usize>, Found) {
    let Look { problem, sequence, head, ref rows, ref keys, start, asks_plain } = *look;
    let logits = problem.logits();
    let times_mask = logits.slopes.is_some_and(|slopes| slopes.times_mask);
    // Even 0 times a slope of NaN changes a score.
    let is_nan = times_mask && problem.slope(sequence, head).is_some_and(f32::is_nan);
    let (mut is_plain, mut fills_windows) = (asks_plain && !is_nan, true);
    let whole = clip(sequence.seen_by(rows), keys);
    if let (None, Some(cells)) = (&logits.mask, &logits.cells) {
        let head = head..head + 1;
        let kept = Kept { cells, problem, sequence, heads: &head, rows };
        // SAFETY: I5: the contract is the same.
        return unsafe { kept.look(&whole, start, is_plain, to) };
    }
    let mut hull = whole.end..whole.end;
    let mut before = None;
    for (i, row) in rows.clone().enumerate() {
        if !is_plain && hull == whole {
            break;
        }
        let line = look.line(row, keys);
        let is_same = before.as_ref() == Some(&line);
        // SAFETY: I5: as many places as there are rows (caller).
        unsafe {
            if is_plain && is_same {
                // One row for all is scanned once.
                to.add(i).write(to.add(i - 1).read());
            } else if is_plain {
                let seen;
                (seen, is_plain) = line.scan(true);
                fills_windows &= seen == line.keys;
                to.add(i).write(Seen::of(&seen, start));
                join(&mut hull, seen);
            } else if !is_same {
                line.extend(&mut hull);
            }
        }
        before = Some(line);
    }
    (hull, Found { is_plain, fills_windows })
}

/// Extends `hull` to `seen`, unless that is empty.
pub(crate) fn join(hull: &mut Range<usize>, seen: Range<usize>) {
    if hull.start >= hull.end {
        *hull = if seen.is_empty() { hull.clone() } else { seen };
    } else if !seen.is_empty() {
        *hull = hull.start.min(seen.start)..hull.end.max(seen.end);
    }
}

/// What a thread knows of the keys that query rows see: heads that share a mask share it.
pub(crate) struct Hulls {
    known: [Hull; HULLS],
}

/// Tiles of query rows of which [`Hulls`] are kept: 8192 rows of 128 each.
const HULLS: usize = 64;

/// The keys between those that some of the query rows sees.
#[derive(Clone, Copy, PartialEq)]
struct Hull {
    /// Batch entry, rows, and the keys that were looked at.
    of: [usize; 5],
    keys: [usize; 2],
}

impl Hulls {
    pub(crate) fn new() -> Hulls {
        // No rows that are looked at are empty.
        Hulls { known: [Hull { of: [0; 5], keys: [0; 2] }; HULLS] }
    }

    /// The keys of `keys` between those that some of `rows`, which are some, of some of `heads`
    /// see.
    pub(crate) fn of(
        &mut self,
        problem: &Problem,
        sequence: &Sequence,
        heads: &Range<usize>,
        rows: &Range<usize>,
        keys: &Range<usize>,
    ) -> Range<usize> {
        let whole = clip(sequence.seen_by(rows), keys);
        if !problem.logits().hides_same_from_all_heads() {
            return hull(problem, sequence, heads, rows, &whole);
        }
        let of = [sequence.batch, rows.start, rows.end, whole.start, whole.end];
        let known = &mut self.known[rows.start / rows.len() % HULLS];
        if known.of != of {
            let keys = hull(problem, sequence, &(heads.start..heads.start + 1), rows, &whole);
            *known = Hull { of, keys: [keys.start, keys.end] };
        }
        known.keys[0]..known.keys[1]
    }
}

/// The keys of `whole`, those that windows leave to `rows`, between those that some of `rows` of
/// some of `heads` see.
fn hull(
    problem: &Problem,
    sequence: &Sequence,
    heads: &Range<usize>,
    rows: &Range<usize>,
    whole: &Range<usize>,
) -> Range<usize> {
    let mut hull = whole.end..whole.end;
    for head in heads.clone() {
        let (rows, keys) = (rows.clone(), whole.clone());
        let look = Look { problem, sequence, head, rows, keys, start: 0, asks_plain: false };
        let mut before = None;
        for row in look.rows.clone() {
            if hull == *whole {
                return hull;
            }
            let line = look.line(row, whole);
            if before.as_ref() == Some(&line) {
                continue;
            }
            line.extend(&mut hull);
            before = Some(line);
        }
    }
    hull
}

/// Writes to `to`, for each of the keys, whether any of the rows sees it: 1 or 0.
///
/// # Safety
/// `to` has room for an element for each key.
#[inline(never)]
pub(crate) unsafe fn mark_seen(look: &Look, to: *mut u8) {
    let mut before = None;
    // SAFETY: as many elements as there are keys (caller).
    unsafe {
        to.write_bytes(0, look.keys.len());
        for row in look.rows.clone() {
            let line = look.line(row, &look.keys);
            if before.as_ref() != Some(&line) {
                line.mark(to.add(line.keys.start - look.keys.start));
                before = Some(line);
            }
        }
    }
}

/// Whether a query row sees any key.
#[inline(never)]
pub(crate) fn sees_any(problem: &Problem, sequence: &Sequence, head: usize, row: usize) -> bool {
    let keys = sequence.visible(row);
    if !problem.logits().hides() {
        return !keys.is_empty();
    }
    if let Some(columns) = problem.columns(sequence, head) {
        // Those that the window has are hidden among all keys, and seen as single ones.
        if !sequence.of_columns(columns).window_keys(row).is_empty() {
            return true;
        }
    }
    if !sequence.has_windows_only() {
        return keys.clone().any(|key| problem.sees(sequence, head, row, key));
    }
    let look = Look { problem, sequence, head, rows: row..row + 1, keys, start: 0, asks_plain: false };
    !look.line(row, &look.keys).scan(false).0.is_empty()
}

impl Look<'_, '_> {
    /// What masks say of those of `keys` that the window leaves to a row.
    fn line(&self, row: usize, keys: &Range<usize>) -> Line<'_> {
        let logits = self.problem.logits();
        let batch = self.sequence.batch;
        let [head, of_head] = self.sequence.line(self.head, row);
        let mask = logits.mask.as_ref().map(|mask| Elements::of(mask, [batch, head, of_head]));
        let cells = logits.cells.as_ref();
        let cells = cells.map(|cells| (Cells::of(cells, [batch, head, of_head]), cells.keys));
        Line { mask, cells, keys: clip(self.sequence.visible(row), keys) }
    }
}

/// What the masks say of some keys of a row: only [`Look::line`] makes one, of keys that the masks
/// have (I2).
#[derive(Clone, PartialEq)]
struct Line<'a> {
    mask: Option<Elements>,
    /// The blocks that the row sees, and the keys of a block.
    cells: Option<(Cells<'a>, usize)>,
    keys: Range<usize>,
}

impl Line<'_> {
    /// Extends `hull` to what is seen of the keys. Only keys outside of it are looked at: those
    /// before it, then those behind it.
    fn extend(&self, hull: &mut Range<usize>) {
        let Range { start, end } = self.keys;
        let before = start..end.min(hull.start).max(start);
        let behind = start.max(hull.end).min(end)..end;
        let parts = if hull.start >= hull.end { [start..end, end..end] } else { [before, behind] };
        for keys in parts {
            let (seen, _) = Line { keys, ..*self }.scan(false);
            join(hull, seen);
        }
    }

    /// What is seen of the keys, from the first to the last; and, if `asks_plain`, whether nothing
    /// within that is hidden or changed.
    fn scan(&self, asks_plain: bool) -> (Range<usize>, bool) {
        let Range { start: mut low, end: mut high } = self.keys;
        // SAFETY: I2: the rows have the keys (`Look::line`), and the cells that these lie in.
        unsafe {
            // The first key that both masks leave.
            loop {
                if low >= high {
                    return (high..high, asks_plain);
                }
                let left = match self.cells {
                    None => low..high,
                    Some((cells, size)) => match cells.first(low / size..high.div_ceil(size)) {
                        None => return (high..high, asks_plain),
                        Some(cell) => clip(keys_of(cell, size), &(low..high)),
                    },
                };
                low = left.start;
                let Some(mask) = self.mask else { break };
                match mask.first(left.clone()) {
                    Some(first) => {
                        low = first;
                        break;
                    }
                    None => low = left.end,
                }
            }
            // The last one: there is one.
            loop {
                let left = match self.cells {
                    None => low..high,
                    Some((cells, size)) => {
                        let cell = cells.last(low / size..high.div_ceil(size)).unwrap_or(low / size);
                        clip(keys_of(cell, size), &(low..high))
                    }
                };
                high = left.end;
                let Some(mask) = self.mask else { break };
                match mask.last(left.clone()) {
                    Some(last) => {
                        high = last + 1;
                        break;
                    }
                    None if left.start <= low => break,
                    None => high = left.start,
                }
            }
            let mut is_plain = asks_plain;
            if let Some((cells, size)) = self.cells {
                is_plain = is_plain && !cells.any_changes(low / size..high.div_ceil(size));
            }
            if let Some(mask) = self.mask {
                is_plain = is_plain && !mask.any_changes(low..high);
            }
            (low..high, is_plain)
        }
    }

    /// Makes 1 of the elements of `to` whose keys are seen.
    ///
    /// # Safety
    /// `to` has an element for each key.
    unsafe fn mark(&self, to: *mut u8) {
        let Line { mask, cells, ref keys } = *self;
        let mut at = keys.start;
        while at < keys.end {
            // SAFETY: I2: the rows have the keys (`Look::line`); one element of `to` for each key
            // (caller).
            unsafe {
                let (part, is_left) = match cells {
                    None => (keys.clone(), true),
                    Some((cells, size)) => {
                        let cell = at / size;
                        let is_left = cells.first(cell..cell + 1).is_some();
                        (clip(keys_of(cell, size), &(at..keys.end)), is_left)
                    }
                };
                let to = to.add(at - keys.start);
                at = part.end;
                match mask {
                    _ if !is_left => {}
                    None => to.write_bytes(1, part.len()),
                    Some(mask) => mask.mark(part, to),
                }
            }
        }
    }
}

/// The keys of a cell of `size` keys.
fn keys_of(cell: usize, size: usize) -> Range<usize> {
    let start = cell.saturating_mul(size);
    start..start.saturating_add(size)
}

/// The blocks of keys that a block of query rows sees.
#[derive(Clone, Copy, PartialEq)]
enum Cells<'a> {
    Bytes(Elements),
    List(List<'a>),
}

impl<'a> Cells<'a> {
    /// Those of row `row` of a head.
    fn of(mask: &BlockMask<'a>, [batch, head, row]: [usize; 3]) -> Cells<'a> {
        let row = row / mask.rows;
        match &mask.blocks {
            Blocks::Bytes(view) => Cells::Bytes(Elements::of(view, [batch, head, row])),
            Blocks::Lists(lists) => Cells::List(lists.of(batch, head, row)),
        }
    }

    /// The first of `cells` that is seen.
    ///
    /// # Safety
    /// A row of bytes has `cells`.
    unsafe fn first(&self, cells: Range<usize>) -> Option<usize> {
        match self {
            // SAFETY: the contract is the same.
            Cells::Bytes(bytes) => unsafe { bytes.first(cells) },
            Cells::List(list) => list.first(cells),
        }
    }

    /// The last of `cells` that is seen.
    ///
    /// # Safety
    /// A row of bytes has `cells`.
    unsafe fn last(&self, cells: Range<usize>) -> Option<usize> {
        match self {
            // SAFETY: the contract is the same.
            Cells::Bytes(bytes) => unsafe { bytes.last(cells) },
            Cells::List(list) => list.last(cells),
        }
    }

    /// Whether any of `cells` is hidden.
    ///
    /// # Safety
    /// A row of bytes has `cells`.
    unsafe fn any_changes(&self, cells: Range<usize>) -> bool {
        match self {
            // SAFETY: the contract is the same.
            Cells::Bytes(bytes) => unsafe { bytes.any_changes(cells) },
            Cells::List(list) => !list.has_all(cells),
        }
    }
}

/// `block`, or the first block behind it that block masks do not hide as a whole from all of
/// `rows`, which are some, of all of `heads`; empty if there is none. Blocks are those of
/// [`crate::attend::blocks`].
#[inline(always)]
pub(crate) fn kept_block(
    problem: &Problem,
    sequence: &Sequence,
    heads: &Range<usize>,
    rows: &Range<usize>,
    seen: &SeenKeys,
    block: Range<usize>,
    [size, group]: [usize; 2],
) -> Range<usize> {
    match problem.logits().cells {
        Some(ref cells) if !block.is_empty() && !sequence.is_of_columns() => {
            let of = Kept { cells, problem, sequence, heads, rows };
            of.block(seen, block, [size, group])
        }
        _ => block,
    }
}

/// Rows of some heads, and what block masks say of them.
struct Kept<'a, 'p> {
    cells: &'a BlockMask<'p>,
    problem: &'a Problem<'p>,
    sequence: &'a Sequence<'a>,
    heads: &'a Range<usize>,
    rows: &'a Range<usize>,
}

impl<'p> Kept<'_, 'p> {
    /// See [`kept_block`]. Kept out of line: few problems have block masks.
    #[inline(never)]
    fn block(&self, seen: &SeenKeys, block: Range<usize>, [size, group]: [usize; 2]) -> Range<usize> {
        let SeenKeys { keys, gap } = seen;
        let first = self.first(block.start..keys.end);
        if first < block.end {
            return block;
        }
        first_block(&SeenKeys { keys: first..keys.end, gap: gap.clone() }, size, group)
    }

    /// The first of `keys`, which are some, in a block that some row sees; the end of `keys` if
    /// there is none.
    fn first(&self, keys: Range<usize>) -> usize {
        let Kept { cells, problem, heads, rows, .. } = self;
        let size = cells.keys;
        let is_same = problem.logits().hides_same_from_all_heads();
        let heads = if is_same { heads.start..heads.start + 1 } else { (*heads).clone() };
        let mut first = keys.end;
        for head in heads {
            let mut row = rows.start;
            while row < rows.end {
                let (seen, end) = self.of_row(head, row, is_same);
                // SAFETY: I2: block masks have all keys of the sequence.
                let cell = unsafe { seen.first(keys.start / size..first.div_ceil(size)) };
                if let Some(cell) = cell {
                    first = first.min((cell * size).max(keys.start));
                    if first == keys.start {
                        return first;
                    }
                }
                row = end;
            }
        }
        first
    }

    /// The blocks that a row sees, and the row behind those that see the same. `is_same` says that
    /// block masks say the same of all heads.
    fn of_row(&self, head: usize, row: usize, is_same: bool) -> (Cells<'p>, usize) {
        let Kept { cells, sequence, .. } = *self;
        let [of_group, of_head] = sequence.line(head, row);
        let next = (of_head / cells.rows).saturating_add(1).saturating_mul(cells.rows);
        let end = match sequence.is_grouped() {
            false => next,
            true if is_same => next.saturating_mul(sequence.rows_of_query(0)),
            true => row + 1,
        };
        (Cells::of(cells, [sequence.batch, of_group, of_head]), end)
    }

    /// [`look`] where there is no other mask, at `whole`, the keys that windows leave to some row:
    /// once for each block of rows.
    ///
    /// # Safety
    /// The contract of [`look`].
    unsafe fn look(
        &self,
        whole: &Range<usize>,
        start: usize,
        asks_plain: bool,
        to: *mut Seen,
    ) -> (Range<usize>, Found) {
        let Kept { cells, problem, sequence, heads, rows } = *self;
        let size = cells.keys;
        let is_same = problem.logits().hides_same_from_all_heads();
        let (mut is_plain, mut fills_windows) = (asks_plain, true);
        let mut hull = whole.end..whole.end;
        let mut row = rows.start;
        while row < rows.end && (is_plain || hull != *whole) {
            let (seen, end) = self.of_row(heads.start, row, is_same);
            let some = row..end.min(rows.end);
            row = some.end;
            let of_keys = whole.start / size..whole.end.div_ceil(size);
            // SAFETY: I2: block masks have all keys of the sequence.
            let ends = unsafe { seen.first(of_keys.clone()).zip(seen.last(of_keys)) };
            let kept = match ends {
                _ if whole.is_empty() => whole.clone(),
                None => whole.end..whole.end,
                Some((first, last)) => {
                    // SAFETY: I2: as above.
                    is_plain = is_plain && !unsafe { seen.any_changes(first..last + 1) };
                    clip(first * size..last.saturating_add(1).saturating_mul(size), whole)
                }
            };
            if !is_plain {
                join(&mut hull, clip(sequence.seen_by(&some), &kept));
                continue;
            }
            // Windows move with the row: if the first and the last row see all of it, so do others.
            let last = some.end - 1;
            let sees_all = |row| clip(sequence.visible(row), &kept) == kept;
            if kept.is_empty() || (sees_all(some.start) && sees_all(last)) {
                for row in some.clone() {
                    // SAFETY: I5: one of as many places as there are rows (caller).
                    unsafe { to.add(row - rows.start).write(Seen::of(&kept, start)) };
                }
                join(&mut hull, kept.clone());
            } else {
                for row in some.clone() {
                    let of_row = clip(sequence.visible(row), &kept);
                    // SAFETY: I5: as above.
                    unsafe { to.add(row - rows.start).write(Seen::of(&of_row, start)) };
                    join(&mut hull, of_row);
                }
            }
            fills_windows &= clip(sequence.seen_by(&some), whole) == clip(sequence.seen_by(&some), &kept);
        }
        (hull, Found { is_plain, fills_windows })
    }
}

/// A row of a mask, or of a block mask. Elements of all types are looked at as words of 8 bytes, so
/// that one loop serves them all. It becomes code of the vectors that any machine of the target
/// has: a scan waits for memory, not for operations.
#[derive(Clone, Copy, PartialEq)]
struct Elements {
    row: *const u8,
    /// Bytes of an element: 1, 2 or 4.
    size: usize,
    /// Elements that hide their keys.
    hidden: u64,
}

/// Bytes of a word.
const WORD: usize = size_of::<u64>();

/// Words that are compared at a time: a cache line.
const WORDS: usize = 8;

/// A 1 in each byte of a word.
const ONES: u64 = 0x0101_0101_0101_0101;

impl Elements {
    fn of(mask: &View, [batch, head, row]: [usize; 3]) -> Elements {
        let (size, hidden) = match mask.layout().dtype {
            Dtype::Bool8 => (1, 0),
            Dtype::F16 => (2, 0xfc00_fc00_fc00_fc00),
            Dtype::Bf16 => (2, 0xff80_ff80_ff80_ff80),
            // Types that masks cannot have are named, so that a new one is not taken for f32.
            Dtype::F32
            | Dtype::I8
            | Dtype::Q8_0
            | Dtype::Q4_0
            | Dtype::Q4_1
            | Dtype::Q5_0
            | Dtype::Q5_1
            | Dtype::Iq4Nl
            | Dtype::F8E4M3
            | Dtype::F8E5M2
            | Dtype::U8
            | Dtype::Q15 => (4, 0xff80_0000_ff80_0000),
        };
        Elements { row: mask.row(batch, head, row), size, hidden }
    }

    /// Nonzero bytes where a word has elements that change a score or hide a key. For bytes, those
    /// behind such an element may be nonzero, too.
    #[inline(always)]
    fn changes(&self, word: u64) -> u64 {
        match self.size {
            1 => word.wrapping_sub(ONES) & !word & (ONES << 7),
            // Zeros of either sign.
            2 => word & 0x7fff_7fff_7fff_7fff,
            _ => word & 0x7fff_ffff_7fff_ffff,
        }
    }

    /// The word at byte `at` of the row.
    ///
    /// # Safety
    /// The row has these bytes.
    #[inline(always)]
    unsafe fn word(&self, at: usize) -> u64 {
        // SAFETY: bytes of the row (caller), which any bits are.
        unsafe { self.row.wrapping_add(at).cast::<u64>().read_unaligned() }
    }

    /// The first `n` bytes, fewer than a word, of that at byte `at`; `rest` behind them.
    ///
    /// # Safety
    /// The row has these bytes.
    #[inline(always)]
    unsafe fn part_of_word(&self, at: usize, n: usize, rest: u64) -> u64 {
        let mut bytes = rest.to_ne_bytes();
        for (i, byte) in bytes[..n].iter_mut().enumerate() {
            // SAFETY: a byte of the row (caller).
            *byte = unsafe { self.row.wrapping_add(at + i).read() };
        }
        u64::from_ne_bytes(bytes)
    }

    /// Whether `test` gives anything but 0 for some of the [`WORDS`] words from byte `at` on.
    ///
    /// # Safety
    /// The row has these bytes.
    #[inline(always)]
    unsafe fn any(&self, at: usize, test: impl Fn(u64) -> u64) -> bool {
        // All of them and no early exit, so that the loop becomes vector code.
        let mut found = 0;
        for i in 0..WORDS {
            // SAFETY: bytes of the row (caller).
            found |= test(unsafe { self.word(at + i * WORD) });
        }
        found != 0
    }

    /// The first of `keys` that is seen.
    ///
    /// # Safety
    /// The row has the elements `keys`.
    #[inline(never)]
    unsafe fn first(&self, keys: Range<usize>) -> Option<usize> {
        let (mut at, end) = (keys.start * self.size, keys.end * self.size);
        let seen = |word| word ^ self.hidden;
        let key = |at: usize, seen: u64| (at + seen.to_le().trailing_zeros() as usize / 8) / self.size;
        // SAFETY: bytes of the elements `keys` (caller).
        unsafe {
            while end - at >= WORDS * WORD && !self.any(at, seen) {
                at += WORDS * WORD;
            }
            while end - at >= WORD {
                match seen(self.word(at)) {
                    0 => at += WORD,
                    word => return Some(key(at, word)),
                }
            }
            match seen(self.part_of_word(at, end - at, self.hidden)) {
                0 => None,
                word => Some(key(at, word)),
            }
        }
    }

    /// The last of `keys` that is seen.
    ///
    /// # Safety
    /// The row has the elements `keys`.
    #[inline(never)]
    unsafe fn last(&self, keys: Range<usize>) -> Option<usize> {
        let (start, mut end) = (keys.start * self.size, keys.end * self.size);
        let seen = |word| word ^ self.hidden;
        let key = |at: usize, seen: u64| (at + 7 - seen.to_le().leading_zeros() as usize / 8) / self.size;
        // SAFETY: bytes of the elements `keys` (caller).
        unsafe {
            while end - start >= WORDS * WORD && !self.any(end - WORDS * WORD, seen) {
                end -= WORDS * WORD;
            }
            while end - start >= WORD {
                match seen(self.word(end - WORD)) {
                    0 => end -= WORD,
                    word => return Some(key(end - WORD, word)),
                }
            }
            match seen(self.part_of_word(start, end - start, self.hidden)) {
                0 => None,
                word => Some(key(start, word)),
            }
        }
    }

    /// Whether any of `keys` is hidden, or its score changed.
    ///
    /// # Safety
    /// The row has the elements `keys`.
    #[inline(never)]
    unsafe fn any_changes(&self, keys: Range<usize>) -> bool {
        let (mut at, end) = (keys.start * self.size, keys.end * self.size);
        let changes = |word| self.changes(word);
        // SAFETY: bytes of the elements `keys` (caller).
        unsafe {
            while end - at >= WORDS * WORD {
                // The type is the same for all words, and the loop has no branches.
                let found = match self.size {
                    1 => self.any(at, |word| Elements { size: 1, ..*self }.changes(word)),
                    2 => self.any(at, |word| Elements { size: 2, ..*self }.changes(word)),
                    _ => self.any(at, |word| Elements { size: 4, ..*self }.changes(word)),
                };
                if found {
                    return true;
                }
                at += WORDS * WORD;
            }
            while end - at >= WORD {
                if changes(self.word(at)) != 0 {
                    return true;
                }
                at += WORD;
            }
            // True, and 0: what changes nothing.
            changes(self.part_of_word(at, end - at, if self.size == 1 { ONES } else { 0 })) != 0
        }
    }

    /// Makes 1 of the elements of `to` whose keys are seen.
    ///
    /// # Safety
    /// The row has the elements `keys`, and `to` one for each of them.
    #[inline(never)]
    unsafe fn mark(&self, keys: Range<usize>, to: *mut u8) {
        let row = self.row.wrapping_add(keys.start * self.size);
        // SAFETY: elements of both (caller), whose types any bits are.
        unsafe {
            for i in 0..keys.len() {
                let is_seen = match self.size {
                    1 => row.add(i).read() != self.hidden as u8,
                    2 => row.cast::<u16>().add(i).read_unaligned() != self.hidden as u16,
                    _ => row.cast::<u32>().add(i).read_unaligned() != self.hidden as u32,
                };
                *to.add(i) |= u8::from(is_seen);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row of `n` elements of `bytes` bytes each, from an odd address on.
    struct Row {
        data: Vec<u8>,
        elements: Elements,
    }

    fn row(size: usize, hidden: u64, element: impl Fn(usize) -> u64, n: usize) -> Row {
        let mut data = vec![0xa5];
        for i in 0..n {
            match size {
                1 => data.push(element(i) as u8),
                2 => data.extend((element(i) as u16).to_ne_bytes()),
                _ => data.extend((element(i) as u32).to_ne_bytes()),
            }
        }
        let elements = Elements { row: data[1..].as_ptr(), size, hidden };
        Row { data, elements }
    }

    /// Bytes of an element, what hides a key, and what leaves a score as it is.
    const TYPES: [(usize, u64, [u64; 2]); 4] = [
        (1, 0, [1, 0x80]),
        (2, 0xfc00_fc00_fc00_fc00, [0, 0x8000]),
        (2, 0xff80_ff80_ff80_ff80, [0, 0x8000]),
        (4, 0xff80_0000_ff80_0000, [0, 0x8000_0000]),
    ];

    #[test]
    fn ends_are_found_wherever_they_are() {
        for (size, hidden, plain) in TYPES {
            for n in (0..40).chain([63, 64, 65, 129, 200]) {
                for (first, last) in (0..n).flat_map(|i| [(i, i), (i / 2, i)]) {
                    let is_seen = |i| i == first || i == last;
                    let row = row(size, hidden, |i| if is_seen(i) { plain[i % 2] } else { hidden }, n);
                    // SAFETY: the row has n elements.
                    let found = unsafe { (row.elements.first(0..n), row.elements.last(0..n)) };
                    assert_eq!(found, (Some(first), Some(last)), "{size} bytes, {n} elements");
                    // SAFETY: the same.
                    let [before, behind] =
                        unsafe { [row.elements.first(0..first), row.elements.last(last + 1..n)] };
                    assert_eq!([before, behind], [None; 2], "{size} bytes, {n} elements");
                    assert_eq!(row.data[0], 0xa5);
                }
            }
        }
    }

    #[test]
    fn changes_are_found_wherever_they_are() {
        for (size, hidden, plain) in TYPES {
            for n in (1..40).chain([63, 64, 65, 129, 200]) {
                // SAFETY: the row has n elements, in all of these.
                let changes = |row: Row, keys| unsafe { row.elements.any_changes(keys) };
                assert!(!changes(row(size, hidden, |i| plain[i % 2], n), 0..n), "{size} bytes, {n}");
                for at in 0..n {
                    // A hidden key, and the least number; bytes have no others.
                    for other in [hidden, 1 - u64::from(size == 1)] {
                        let of = |keys| {
                            let element = |i| if i == at { other } else { plain[i % 2] };
                            changes(row(size, hidden, element, n), keys)
                        };
                        let place = format!("{size} bytes, {n} elements, {at}");
                        assert!(of(0..n) && of(at..at + 1), "{place}");
                        assert!(!of(0..at) && !of(at + 1..n), "{place}");
                    }
                }
            }
        }
    }
}
