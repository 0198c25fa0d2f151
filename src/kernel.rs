//! THE TABLE: one row for each instruction set and compute family, best first.
//!
//! A new instruction set is one file in `simd/` and its rows here; a new compute family one file
//! in `family/` and its rows here. Nothing else names either.

use std::ffi::CStr;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::compute::{Gemm, Gemv, f32::F32};
#[cfg(all(target_arch = "x86_64", not(test)))]
use crate::compute::{bf16::Bf16, i8::I8, i16::I16, split16};
use crate::decode::{self, By, Decode, Join};
use crate::dtype::Dtype;
use crate::error::Error;
use crate::machine;
use crate::prefill::{self, Prefill};
use crate::problem::{Shape, Storage};
use crate::quantize::Quantize;
use crate::simd::{Body, Isa, MAX_LANES, math, scalar::Scalar};
#[cfg(all(target_arch = "x86_64", not(test)))]
use crate::simd::{avx2::Avx2, avx512, avx512::Avx512};
use crate::work::query_tiles::{QueryTile, TileSizes};
use crate::workspace::Scratch;

/// Best first; the rows of the last instruction set run everywhere. The number is the height of
/// the register tile (keys of a score tile, elements of an output tile), two vectors wide. Compiling the others
/// takes minutes, for which the crate's own unit tests need not wait: they are not about kernels. Those in tests/ have all.
static TABLE: &[Row] = &[
    #[cfg(all(target_arch = "x86_64", not(test)))]
    Row::of::<Avx512<avx512::Bf16>, Bf16, 8>().only_where(machine::has_fast_bf16_dots),
    #[cfg(all(target_arch = "x86_64", not(test)))]
    Row::with::<Avx512<avx512::Vnni>, I8, split16::OfI8, 8>(),
    #[cfg(all(target_arch = "x86_64", not(test)))]
    Row::with::<Avx512<avx512::Vnni>, I16, split16::OfI8, 8>(),
    // Where rows are many, nothing of it is used that the base does not have.
    #[cfg(all(target_arch = "x86_64", not(test)))]
    Row::between::<Avx512<avx512::Vnni>, split16::OfQ8_0, split16::OfQ8_0, Avx512<avx512::Base>, F32, 8>()
        .only_for(<I16 as Gemm>::MOST[1], |storage| {
            storage.dtypes[1] == Dtype::Q8_0 && storage.dtypes[2] == Dtype::Q8_0
        }),
    #[cfg(all(target_arch = "x86_64", not(test)))]
    Row::of::<Avx512<avx512::Base>, I16, 8>(),
    // 32 registers: 16 accumulators hide FMA's latency twice over, and leave room for exp2.
    #[cfg(all(target_arch = "x86_64", not(test)))]
    Row::of::<Avx512<avx512::Base>, F32, 8>(),
    // 16 registers: 12 accumulators, 2 query vectors, 1 broadcast. One more would spill.
    #[cfg(all(target_arch = "x86_64", not(test)))]
    Row::of::<Avx2, I16, 6>(),
    #[cfg(all(target_arch = "x86_64", not(test)))]
    Row::of::<Avx2, F32, 6>(),
    Row::of::<Scalar, F32, 4>(),
];

/// Which way through the rows of a sequence: both give the same result within rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// For many query rows: lanes are rows.
    Prefill,
    /// For few: lanes are elements of a head.
    Decode,
}

impl Path {
    /// The other one.
    pub fn other(self) -> Path {
        match self {
            Path::Prefill => Path::Decode,
            Path::Decode => Path::Prefill,
        }
    }
}

/// One path of a row.
struct Way {
    /// Whether K, and V, stored so are read where they lie.
    reads_kv: fn(&Shape) -> [bool; 2],
    scratch: fn(&Shape, TileSizes) -> Option<usize>,
}

/// One instruction set and compute family, and what can be asked of it.
pub struct Row {
    isa: &'static CStr,
    family: &'static str,
    /// The family of [`Path::Decode`].
    products: &'static str,
    takes: fn(&Storage) -> bool,
    /// See [`Gemm::MOST`].
    most: [usize; 2],
    /// See [`Gemv::MOST`].
    most_few: usize,
    /// Whether [`select`] leaves it out where that is demanded.
    rounds: bool,
    blockwise: bool,
    lanes: usize,
    tile_rows: usize,
    tile: usize,
    available: fn() -> bool,
    /// Whether it is faster than the rows below it that compute the same.
    is_worth_it: fn() -> bool,
    prefill: Way,
    decode: Way,
    compute: fn(&QueryTile, TileSizes, Scratch) -> Result<(), Error>,
    decode_piece: fn(Decode) -> Result<(), Error>,
    join: fn(Join) -> Result<(), Error>,
    kept: fn(&Shape, TileSizes) -> Option<usize>,
    /// Whole vectors only.
    map: fn(Function, &mut [f32]),
    quantize: fn(&mut Quantize) -> Result<(), Error>,
}

impl Row {
    const fn of<S: Isa, F: Gemm, const R: usize>() -> Row {
        Row::with::<S, F, F::Gemv, R>()
    }

    /// The same with other products, which give the same bits, for a single query row.
    const fn with<S: Isa, F: Gemm, One: Gemv, const R: usize>() -> Row {
        Row::between::<S, F::Gemv, One, S, F, R>()
    }

    /// `PathRule` and, for a single query row, `One` on one instruction set; `F` on another, which is a part of it and has
    /// as many lanes.
    const fn between<S: Isa, PathRule: Gemv, One: Gemv, Many: Isa, F: Gemm, const R: usize>() -> Row {
        Row {
            isa: S::NAME,
            family: F::NAME,
            products: PathRule::NAME,
            takes: F::takes,
            most: F::MOST,
            most_few: PathRule::MOST,
            rounds: F::ROUNDS,
            blockwise: F::BLOCKWISE,
            lanes: S::LANES,
            tile_rows: prefill::tile_rows::<Many>(),
            tile: R,
            available: || S::detect().is_some(),
            is_worth_it: || true,
            prefill: Way {
                reads_kv: |shape| {
                    let [_, k, v] = shape.storage.dtypes;
                    [F::reads_k(k, shape.dim_qk), F::reads_v(v)]
                },
                scratch: prefill::scratch_bytes::<Many, F>,
            },
            decode: Way {
                reads_kv: |shape| decode::reads_kv(&shape.storage),
                scratch: |shape, tiles| {
                    let [several, one] = [
                        decode::scratch_bytes::<S, PathRule>(shape, tiles)?,
                        decode::scratch_bytes::<S, One>(shape, tiles)?,
                    ];
                    Some(several.max(one))
                },
            },
            compute: |part, tiles, scratch| {
                let s = Many::detect().ok_or(Error::Internal)?;
                s.enter(Prefill::<F, R>::new(part, tiles, scratch));
                Ok(())
            },
            decode_piece: |piece| {
                let s = S::detect().ok_or(Error::Internal)?;
                if piece.piece.count() == 1 {
                    s.enter(By(piece, PhantomData::<One>));
                } else {
                    s.enter(By(piece, PhantomData::<PathRule>));
                }
                Ok(())
            },
            join: |join| {
                let s = S::detect().ok_or(Error::Internal)?;
                if join.piece.count() == 1 {
                    s.enter(By(join, PhantomData::<One>));
                } else {
                    s.enter(By(join, PhantomData::<PathRule>));
                }
                Ok(())
            },
            kept: |shape, tiles| {
                let several = decode::kept_bytes::<S, PathRule>(shape, tiles)?;
                Some(several.max(decode::kept_bytes::<S, One>(shape, tiles)?))
            },
            map: |function, values| {
                if let Some(s) = Many::detect() {
                    s.enter(Map(function, values));
                }
            },
            quantize: |what| {
                let s = Many::detect().ok_or(Error::Internal)?;
                s.enter(what);
                Ok(())
            },
        }
    }

    /// The same, for machines on which it is worth it: on others it is taken if its instruction set is named.
    const fn only_where(mut self, is_worth_it: fn() -> bool) -> Row {
        self.is_worth_it = is_worth_it;
        self
    }

    /// The same for some problems, with heads of at most `dim` elements, that others compute, too, without rounding queries
    /// and probabilities to fewer bits.
    #[cfg(all(target_arch = "x86_64", not(test)))]
    const fn only_for(mut self, dim: usize, takes: fn(&Storage) -> bool) -> Row {
        self.takes = takes;
        self.most[1] = dim;
        self.rounds = true;
        self
    }

    /// Whether it is used where no instruction set is named.
    pub fn is_worth_it(&self) -> bool {
        (self.is_worth_it)()
    }

    /// The instruction set, as `fa_isa` reports it.
    pub fn isa(&self) -> &'static CStr {
        self.isa
    }

    /// The compute family of a path.
    pub fn family(&self, path: Path) -> &'static str {
        match path {
            Path::Prefill => self.family,
            Path::Decode => self.products,
        }
    }

    /// Whether it computes problems of a shape.
    pub fn takes(&self, shape: &Shape) -> bool {
        (self.takes)(&shape.storage) && shape.dim_qk <= self.most[1]
    }

    /// Whether it computes problems whose Q, K and V are of these types, with one scale a head.
    pub fn takes_types(&self, dtypes: [Dtype; 3]) -> bool {
        (self.takes)(&Storage::plain(dtypes))
    }

    /// Keys of a block, at most.
    pub fn most_keys(&self, path: Path) -> usize {
        match path {
            Path::Prefill => self.most[0],
            Path::Decode => self.most_few,
        }
    }

    /// Whether K, and V, are read where they lie, as far as their types and scales decide that.
    pub fn reads_kv(&self, path: Path, shape: &Shape) -> [bool; 2] {
        (self.way(path).reads_kv)(shape)
    }

    /// Whether queries and probabilities are rounded to fewer bits than where another row computes the same: in prefill to
    /// 8; to 16 where it is the only one on its instruction set.
    pub fn rounds(&self) -> bool {
        self.rounds
    }

    /// Whether prefill sums integers, a block of keys at a time.
    pub fn is_blockwise(&self) -> bool {
        self.blockwise
    }

    /// f32 lanes of a vector.
    pub fn lanes(&self) -> usize {
        self.lanes
    }

    /// Query rows of a whole tile.
    pub fn tile_rows(&self) -> usize {
        self.tile_rows
    }

    /// Keys of a register tile.
    pub fn tile(&self) -> usize {
        self.tile
    }

    fn way(&self, path: Path) -> &Way {
        match path {
            Path::Prefill => &self.prefill,
            Path::Decode => &self.decode,
        }
    }

    /// Bytes of scratch for one part; `None` if no machine has as many.
    pub fn scratch_bytes(&self, path: Path, shape: &Shape, tiles: TileSizes) -> Option<usize> {
        (self.way(path).scratch)(shape, tiles)
    }

    /// Computes one part, on the way of many query rows. Fails only if the row is not available here; likewise
    /// below.
    pub fn compute(&self, part: &QueryTile, tiles: TileSizes, scratch: Scratch) -> Result<(), Error> {
        (self.compute)(part, tiles, scratch)
    }

    /// Computes one piece of a band.
    pub(crate) fn decode(&self, piece: Decode) -> Result<(), Error> {
        (self.decode_piece)(piece)
    }

    /// Ends a band that several shares had a part of.
    pub(crate) fn join(&self, join: Join) -> Result<(), Error> {
        (self.join)(join)
    }

    /// Bytes of each state that a share of decode keeps for others; `None` if no machine has as many.
    pub fn kept_bytes(&self, shape: &Shape, tiles: TileSizes) -> Option<usize> {
        (self.kept)(shape, tiles)
    }

    /// Writes integers, scales and zeros, the same whatever the row. Fails only if the row is not available
    /// here.
    pub fn quantize(&self, what: &mut Quantize) -> Result<(), Error> {
        (self.quantize)(what)
    }

    /// Replaces each value by the function's, as the kernels of this row compute it: for tests and benches.
    pub fn map(&self, function: Function, values: &mut [f32]) {
        let (vectors, rest) = values.split_at_mut(values.len() - values.len() % self.lanes);
        (self.map)(function, vectors);
        let mut last = [0.0; MAX_LANES];
        last[..rest.len()].copy_from_slice(rest);
        (self.map)(function, &mut last[..self.lanes]);
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

impl std::fmt::Debug for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.isa.to_string_lossy(), self.family)
    }
}

/// A function of vectors.
#[derive(Clone, Copy, Debug)]
pub enum Function {
    /// 2^x, of the softmax.
    Exp2,
    /// tanh(x), of the softcap.
    Tanh,
}

struct Map<'a>(Function, &'a mut [f32]);

impl Body for Map<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        for vector in self.1.chunks_exact_mut(S::LANES) {
            // SAFETY: a chunk is one vector.
            unsafe {
                let x = s.load(vector.as_ptr());
                let y = match self.0 {
                    Function::Exp2 => s.exp2(x),
                    Function::Tanh => math::tanh(s, x),
                };
                s.store(vector.as_mut_ptr(), y);
            }
        }
    }
}

/// The rows that this machine can run, best first, whatever the limit is.
pub fn available() -> impl Iterator<Item = &'static Row> {
    TABLE.iter().filter(|row| (row.available)())
}

/// The best row under the current limit, whatever it computes.
pub fn best() -> Result<&'static Row, Error> {
    TABLE[limit()?.unwrap_or(0)..].iter().find(|row| (row.available)()).ok_or(Error::Internal)
}

/// The best row under the current limit for problems of a shape; `precise` ones do not round queries or
/// probabilities more than others that compute the same: see [`Row::rounds`].
pub fn select(shape: &Shape, precise: bool) -> Result<&'static Row, Error> {
    let limit = limit()?;
    let fits = |row: &&Row| {
        row.takes(shape)
            && !(precise && row.rounds)
            && (limit.is_some() || row.is_worth_it())
            && (row.available)()
    };
    TABLE[limit.unwrap_or(0)..].iter().find(fits).ok_or(Error::Dtype)
}

/// No limit has been set by [`limit_isa`]; no limit has been read from the environment yet.
const UNSET: usize = usize::MAX;
/// The environment names an instruction set that the table does not have.
const UNKNOWN: usize = usize::MAX - 1;
/// The environment names none.
const NONE: usize = usize::MAX - 2;

/// Index of the first row that may be used: what the program demanded, or [`UNSET`].
static DEMANDED: AtomicUsize = AtomicUsize::new(UNSET);
/// The same from the environment.
static INHERITED: AtomicUsize = AtomicUsize::new(UNSET);

/// Caps the instruction set of all later calls in the process; `None` takes the cap back.
pub fn limit_isa(name: Option<&[u8]>) -> Result<(), Error> {
    let limit = match name {
        None => UNSET,
        Some(name) => rank(name).ok_or(Error::Isa)?,
    };
    DEMANDED.store(limit, Ordering::Relaxed);
    Ok(())
}

/// Index of the first row that may be used, if there is a limit.
fn limit() -> Result<Option<usize>, Error> {
    let limit = match DEMANDED.load(Ordering::Relaxed) {
        UNSET => inherited(),
        demanded => demanded,
    };
    match limit {
        UNKNOWN => Err(Error::Isa),
        NONE => Ok(None),
        limit => Ok(Some(limit)),
    }
}

/// Read once. Two threads that both read it first store the same value; no lock, because a lock
/// held while another thread forks would never be released in the child.
fn inherited() -> usize {
    let known = INHERITED.load(Ordering::Relaxed);
    if known != UNSET {
        return known;
    }
    let limit = machine::max_isa().map_or(NONE, |name| rank(&name).unwrap_or(UNKNOWN));
    INHERITED.store(limit, Ordering::Relaxed);
    limit
}

/// Index of the first row of an instruction set, available here or not.
fn rank(name: &[u8]) -> Option<usize> {
    TABLE.iter().position(|row| row.isa.to_bytes() == name)
}
