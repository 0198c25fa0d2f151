//! Attention of 16-bit fixed-point numbers in integers alone: no floating-point instruction, no
//! allocation, nothing but `core`, and the same bits on every machine. The package in `fixed/` is
//! this file by itself.
//!
//! An element is a signed 16-bit integer that stands for itself divided by 32,768 (Q15).
//! docs/fixed-point.md defines the result to the bit. Its order of work is free: the maximum of a
//! row is found first, in a pass over the keys of its own; after that everything that is added up
//! is an exact integer, until one rounded division an element.

use core::fmt;
use core::ops::Range;

/// Elements of a row, at most: differences of their scores fit 32 bits when they are rounded.
pub const MAX_HEAD_DIM: usize = 1 << 16;

/// Keys, at most: sums of as many weights times values fit 64 bits.
pub const MAX_KEYS: usize = 1 << 21;

/// Query rows of a tile, which share a pass over the keys.
pub const TILE_ROWS: usize = 32;

/// Query rows whose scores are computed together.
const GROUP: usize = 4;

/// Keys of a block. As many products of a piece of a query, or of a weight, and an element fit 32
/// bits: see [`dots`].
const KEYS: usize = 128;

/// A query is two pieces, of 8 bits.
const QUERY_PIECES: usize = 2;
const QUERY_BITS: u32 = 8;

/// A weight is three pieces, of 9 bits.
const WEIGHT_PIECES: usize = 3;
const WEIGHT_BITS: u32 = 9;

/// Bits of a weight behind the point: the largest weight of a row is 1.
const ONE: u32 = WEIGHT_PIECES as u32 * WEIGHT_BITS;

/// Bits of an exponent behind the point.
const EXPONENT: u32 = 16;

/// 2^30 / ln 2, the bits of a logarithm to base 2 in one to base e.
const LOG2_E: u64 = 1_549_082_005;

/// 2^24 ln 2.
const LN_2: u64 = 11_629_080;

/// 2^(30 - i / 32).
const POWERS: [u32; 32] = [
    1_073_741_824,
    1_050_733_751,
    1_028_218_693,
    1_006_186_087,
    984_625_594,
    963_527_098,
    942_880_699,
    922_676_710,
    902_905_651,
    883_558_244,
    864_625_413,
    846_098_274,
    827_968_132,
    810_226_483,
    792_865_000,
    775_875_538,
    759_250_125,
    742_980_960,
    727_060_411,
    711_481_005,
    696_235_434,
    681_316_545,
    666_717_336,
    652_430_958,
    638_450_708,
    624_770_026,
    611_382_493,
    598_281_827,
    585_461_881,
    572_916_640,
    560_640_218,
    548_626_854,
];

/// The number `mantissa` / 2^`shift`, which every dot product of a query and a key is multiplied
/// by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// May be negative; 0 with any shift is [`Scale::USUAL`].
    pub mantissa: i32,
    /// 0 to 63.
    pub shift: u32,
}

impl Scale {
    /// 1 / sqrt(head_dim).
    pub const USUAL: Scale = Scale { mantissa: 0, shift: 0 };
}

/// What is computed, besides the lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Elements of a row of query, key, value and output; 1 to [`MAX_HEAD_DIM`].
    pub head_dim: usize,
    /// The softmax scale.
    pub scale: Scale,
    /// Whether query i sees the keys up to i + keys - queries alone: the last query sees all.
    pub is_causal: bool,
}

/// Why a problem is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Flaw {
    /// `head_dim` is 0, or more than [`MAX_HEAD_DIM`].
    HeadDim,
    /// More keys than [`MAX_KEYS`].
    Keys,
    /// A shift beyond 63, or a scale that would cost accuracy: more than 2^18 / head_dim, where
    /// `head_dim` counts as the next power of two.
    Scale,
    /// A slice has not as many elements as the sizes say, or scratch has fewer than it should.
    Slice,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Flaw::HeadDim => "head_dim is 0 or too large",
            Flaw::Keys => "too many keys",
            Flaw::Scale => "the scale is too large",
            Flaw::Slice => "a slice is too short",
        })
    }
}

impl core::error::Error for Flaw {}

/// A problem of one head that can be computed: sizes within limits, its scale as one factor.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    head_dim: usize,
    queries: usize,
    keys: usize,
    is_causal: bool,
    /// Scores change their sign.
    is_negative: bool,
    /// Bits that scores lose, so that their differences have 32.
    loss: u32,
    /// Differences of scores are exponents when they are multiplied by `factor` / 2^`shift`.
    factor: u32,
    shift: u32,
}

impl Plan {
    /// Checks sizes and scale.
    pub fn new(config: Config, queries: usize, keys: usize) -> Result<Plan, Flaw> {
        let Config { head_dim, scale, is_causal } = config;
        if head_dim == 0 || head_dim > MAX_HEAD_DIM {
            return Err(Flaw::HeadDim);
        }
        if keys > MAX_KEYS {
            return Err(Flaw::Keys);
        }
        let loss = head_dim.next_power_of_two().trailing_zeros();
        let Scale { mantissa, shift } = match scale.mantissa {
            // At most 2^30.
            0 => Scale { mantissa: ((1u64 << 60) / head_dim as u64).isqrt() as i32, shift: 30 },
            _ => scale,
        };
        let size = u64::from(mantissa.unsigned_abs());
        // `size` has 32 bits and loses 16 at most, so that any is small enough with a shift of 46.
        if scale.shift > 63 || (shift < 46 && size << loss > 1 << (18 + shift)) {
            return Err(Flaw::Scale);
        }
        let product = size * LOG2_E;
        let spare = 32u32.saturating_sub(product.leading_zeros());
        Ok(Plan {
            head_dim,
            queries,
            keys,
            is_causal,
            is_negative: mantissa < 0,
            loss,
            factor: (product >> spare) as u32,
            // At least 25, since the scale is limited.
            shift: 60 - EXPONENT + shift - loss - spare,
        })
    }

    /// How many tiles the queries are, each of [`TILE_ROWS`] rows, or fewer at the end.
    pub fn tiles(&self) -> usize {
        self.queries.div_ceil(TILE_ROWS)
    }

    /// The query rows of a tile.
    pub fn rows(&self, tile: usize) -> Range<usize> {
        let first = tile.saturating_mul(TILE_ROWS).min(self.queries);
        first..self.queries.min(first + TILE_ROWS)
    }

    /// Query rows of a tile that have room in scratch memory: whole groups.
    fn room(&self) -> usize {
        self.queries.min(TILE_ROWS).next_multiple_of(GROUP)
    }

    /// How many 16-bit integers of scratch memory a tile needs.
    pub fn narrow_len(&self) -> usize {
        (self.room() * QUERY_PIECES + KEYS) * self.head_dim
    }

    /// How many 64-bit integers of scratch memory a tile needs.
    pub fn wide_len(&self) -> usize {
        self.room() * self.head_dim
    }

    /// Computes all tiles. `q` and `out` are `[queries][head_dim]`, `k` and `v` `[keys][head_dim]`;
    /// `narrow` and `wide` are scratch memory of any content.
    pub fn run(
        &self,
        q: &[i16],
        k: &[i16],
        v: &[i16],
        out: &mut [i16],
        narrow: &mut [i16],
        wide: &mut [i64],
    ) -> Result<(), Flaw> {
        if self.queries.checked_mul(self.head_dim) != Some(out.len()) || out.len() != q.len() {
            return Err(Flaw::Slice);
        }
        let tile = TILE_ROWS * self.head_dim;
        for (i, (q, out)) in q.chunks(tile).zip(out.chunks_mut(tile)).enumerate() {
            self.tile(i, q, k, v, out, narrow, wide)?;
        }
        Ok(())
    }

    /// Computes one tile, whose rows alone `q` and `out` have; see [`Plan::run`].
    pub fn tile(
        &self,
        tile: usize,
        q: &[i16],
        k: &[i16],
        v: &[i16],
        out: &mut [i16],
        narrow: &mut [i16],
        wide: &mut [i64],
    ) -> Result<(), Flaw> {
        let (dim, rows) = (self.head_dim, self.rows(tile));
        let is_short = |slice: &[i16], rows: usize| rows.checked_mul(dim) != Some(slice.len());
        if is_short(q, rows.len())
            || is_short(out, rows.len())
            || is_short(k, self.keys)
            || is_short(v, self.keys)
            || narrow.len() < self.narrow_len()
            || wide.len() < self.wide_len()
        {
            return Err(Flaw::Slice);
        }
        let (pieces, values) = narrow[..self.narrow_len()].split_at_mut(self.room() * QUERY_PIECES * dim);
        self.split_queries(q, pieces);
        let mut tile = Tile {
            seen: [0; TILE_ROWS],
            maxima: [i32::MIN; TILE_ROWS],
            sums: [0; TILE_ROWS],
            pieces,
            values,
            sums_of_values: &mut wide[..self.wide_len()],
        };
        for (seen, row) in tile.seen.iter_mut().zip(rows.clone()) {
            *seen = self.seen(row);
        }
        tile.sums_of_values.fill(0);
        self.pass(&mut tile, k, None);
        self.pass(&mut tile, k, Some(v));
        for (i, out) in out.chunks_exact_mut(dim).enumerate() {
            divide(&tile.sums_of_values[i * dim..], tile.sums[i], out);
        }
        Ok(())
    }

    /// How many keys a query sees: the first ones.
    fn seen(&self, row: usize) -> usize {
        if self.is_causal { (row + 1 + self.keys).saturating_sub(self.queries) } else { self.keys }
    }

    /// Writes the pieces of queries: for each row the high ones, then the low ones. Rows that are
    /// missing in the last group are zeros.
    fn split_queries(&self, q: &[i16], pieces: &mut [i16]) {
        let sign = if self.is_negative { -1 } else { 1 };
        pieces.fill(0);
        for (i, &q) in q.iter().enumerate() {
            let (row, element) = (i / self.head_dim, i % self.head_dim);
            let at = row * QUERY_PIECES * self.head_dim + element;
            pieces[at] = (q >> QUERY_BITS) * sign;
            pieces[at + self.head_dim] = (q & ((1 << QUERY_BITS) - 1)) * sign;
        }
    }

    /// A pass over the keys that some row of a tile sees. The first, without values, finds the
    /// largest score of each row; the second has weights, their sums, and those of values times
    /// them.
    #[inline(never)]
    fn pass(&self, tile: &mut Tile, k: &[i16], v: Option<&[i16]>) {
        let dim = self.head_dim;
        let seen = tile.seen.iter().fold(0, |a, &b| a.max(b));
        let mut scores = [[0; KEYS]; GROUP];
        let mut weights = [[[0; KEYS]; GROUP]; WEIGHT_PIECES];
        for first in (0..seen).step_by(KEYS) {
            let block = first * dim..(first + KEYS).min(seen) * dim;
            if let Some(v) = v {
                transpose(&v[block.clone()], dim, tile.values);
            }
            for group in 0..self.room() / GROUP {
                let rows = group * GROUP..(group + 1) * GROUP;
                let counts: [usize; GROUP] =
                    core::array::from_fn(|row| tile.seen[rows.start + row].saturating_sub(first).min(KEYS));
                if counts == [0; GROUP] {
                    continue;
                }
                self.score(tile, group, &k[block.clone()], &mut scores);
                for (row, i) in rows.enumerate() {
                    let scores = &scores[row][..counts[row]];
                    if v.is_some() {
                        tile.sums[i] += self.weigh(scores, tile.maxima[i], &mut weights, row);
                    } else {
                        tile.maxima[i] = largest(scores, tile.maxima[i]);
                    }
                }
                if v.is_some() {
                    tile.add_values(group, &weights, dim);
                }
            }
        }
    }

    /// The scores of a group of rows and a block of keys, without the bits that they lose.
    fn score(&self, tile: &Tile, group: usize, keys: &[i16], scores: &mut [[i32; KEYS]; GROUP]) {
        let dim = self.head_dim;
        let stride = QUERY_PIECES * dim;
        let high = &tile.pieces[group * GROUP * stride..][..GROUP * stride];
        let low = &high[dim..];
        for (j, key) in keys.chunks_exact(dim).enumerate() {
            let mut sums = [0i64; GROUP];
            for (i, key) in key.chunks(KEYS).enumerate() {
                let [high, low] = [high, low].map(|rows| dots(&rows[i * KEYS..], stride, key));
                for row in 0..GROUP {
                    sums[row] += (i64::from(high[row]) << QUERY_BITS) + i64::from(low[row]);
                }
            }
            for (scores, sum) in scores.iter_mut().zip(sums) {
                // It fits, as `loss` is for this.
                scores[j] = (sum >> self.loss) as i32;
            }
        }
    }

    /// The pieces of the weights of keys, in one row, and the sum of the weights. Keys of the block
    /// without a score weigh nothing.
    #[inline(never)]
    fn weigh(
        &self,
        scores: &[i32],
        maximum: i32,
        pieces: &mut [[[i16; KEYS]; GROUP]; WEIGHT_PIECES],
        row: usize,
    ) -> u64 {
        const MASK: u32 = (1 << WEIGHT_BITS) - 1;
        let mut sum = 0;
        for (j, &score) in scores.iter().enumerate() {
            let below = u64::from(maximum.abs_diff(score)) * u64::from(self.factor);
            let weight = power(below.checked_shr(self.shift).unwrap_or(0));
            sum += u64::from(weight);
            pieces[0][row][j] = (weight & MASK) as i16;
            pieces[1][row][j] = ((weight >> WEIGHT_BITS) & MASK) as i16;
            pieces[2][row][j] = (weight >> (2 * WEIGHT_BITS)) as i16;
        }
        for piece in pieces {
            piece[row][scores.len()..].fill(0);
        }
        sum
    }
}

/// What is known of the rows of a tile.
struct Tile<'a> {
    /// Keys that each row sees; 0 for rows that are missing.
    seen: [usize; TILE_ROWS],
    /// The largest score of each row.
    maxima: [i32; TILE_ROWS],
    /// The sum of the weights of each row.
    sums: [u64; TILE_ROWS],
    /// Queries: `[row][piece][head_dim]`.
    pieces: &'a [i16],
    /// The values of a block of keys: `[head_dim][key]`.
    values: &'a mut [i16],
    /// Sums of weights times values: `[row][head_dim]`.
    sums_of_values: &'a mut [i64],
}

impl Tile<'_> {
    /// Adds the values of a block, times the weights of the rows of a group.
    fn add_values(&mut self, group: usize, weights: &[[[i16; KEYS]; GROUP]; WEIGHT_PIECES], dim: usize) {
        let sums = &mut self.sums_of_values[group * GROUP * dim..][..GROUP * dim];
        for (i, column) in self.values.chunks_exact(KEYS).enumerate() {
            let mut products = [0i64; GROUP];
            for piece in weights.iter().rev() {
                let parts = dots(piece.as_flattened(), KEYS, column);
                for row in 0..GROUP {
                    products[row] = (products[row] << WEIGHT_BITS) + i64::from(parts[row]);
                }
            }
            for (sums, product) in sums.chunks_exact_mut(dim).zip(products) {
                sums[i] += product;
            }
        }
    }
}

/// Dot products of the rows of a group, which lie `stride` elements apart, with one row, of
/// [`KEYS`] elements at most. None of them overflows: an element has at most 2^15, a piece of a
/// query 2^8, one of a weight 2^9, which makes 2^31 for 2^7 elements, and the positive ones are
/// smaller than that.
///
/// Once in the code. The compiler makes vectors of it as it is written: with slices in an array it
/// would not see that they have the same length.
#[inline(never)]
fn dots(rows: &[i16], stride: usize, with: &[i16]) -> [i32; GROUP] {
    let n = with.len();
    let (a, b) = (&rows[..n], &rows[stride..][..n]);
    let (c, d) = (&rows[2 * stride..][..n], &rows[3 * stride..][..n]);
    let mut sums = [0; GROUP];
    for i in 0..n {
        let x = i32::from(with[i]);
        sums[0] += i32::from(a[i]) * x;
        sums[1] += i32::from(b[i]) * x;
        sums[2] += i32::from(c[i]) * x;
        sums[3] += i32::from(d[i]) * x;
    }
    sums
}

/// The largest score of a block, and before it.
#[inline(never)]
fn largest(scores: &[i32], before: i32) -> i32 {
    scores.iter().fold(before, |a, &b| a.max(b))
}

/// Rows of values as columns. Where a block has fewer keys than [`KEYS`], the rest of a column is
/// what it was: these keys weigh nothing.
fn transpose(values: &[i16], dim: usize, columns: &mut [i16]) {
    for (j, value) in values.chunks_exact(dim).enumerate() {
        for (column, &x) in columns.chunks_exact_mut(KEYS).zip(value) {
            column[j] = x;
        }
    }
}

/// 2^-x for an exponent x with [`EXPONENT`] bits behind the point, with [`ONE`] of them, within
/// 1.8e-6 of it besides the rounding.
fn power(x: u64) -> u32 {
    // From there on it is 0, whatever the rest.
    let x = x.min(30 << EXPONENT) as u32;
    let (whole, fraction) = (x >> EXPONENT, x & ((1 << EXPONENT) - 1));
    // The first bits of the fraction choose a power, the others, times ln 2, make the beginning of
    // a series.
    let y = (u64::from(fraction & 0x7ff) * LN_2) >> 10;
    let series = (1 << 30) - y + ((y * y) >> 31);
    let product = u64::from(POWERS[(fraction >> 11) as usize]) * series;
    let shift = 60 - ONE + whole;
    ((product + (1 << (shift - 1))) >> shift) as u32
}

/// Sums of weighted values divided by the sum of the weights, rounded to nearest even; 0 where no
/// key was seen.
fn divide(sums: &[i64], weights: u64, out: &mut [i16]) {
    if weights == 0 {
        out.fill(0);
        return;
    }
    // Of 2^21 keys, so it has 48 bits.
    let weights = weights as i64;
    for (out, &sum) in out.iter_mut().zip(sums) {
        let quotient = sum.div_euclid(weights);
        let rest = sum - quotient * weights;
        let is_odd = quotient & 1 == 1;
        let rounded = quotient + i64::from(2 * rest > weights || (2 * rest == weights && is_odd));
        // A mean of 16-bit integers is one, so that this changes nothing.
        *out = rounded.clamp(i64::from(i16::MIN), i64::from(i16::MAX)) as i16;
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    /// Every exponent there is.
    #[test]
    fn powers_are_within_their_error() {
        for x in 0..30u64 << EXPONENT {
            let want = (27.0 - x as f64 / 65536.0).exp2();
            let error = (f64::from(power(x)) - want).abs();
            assert!(error <= 1.8e-6 * want + 0.5, "{x}: {error:e}");
        }
        assert_eq!([0, 28 << EXPONENT, (28 << EXPONENT) + 2, u64::MAX].map(power), [1 << ONE, 1, 0, 0]);
    }

    #[test]
    fn powers_of_the_table_are_rounded() {
        for (i, &power) in POWERS.iter().enumerate() {
            assert_eq!(f64::from(power), (30.0 - i as f64 / 32.0).exp2().round());
        }
    }
}
