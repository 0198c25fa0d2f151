//! The table of kernels: an instruction set and the compute types of both paths each, best first.
//!
//! A new instruction set is one file in `simd/` and its kernels here; a new compute type is one
//! file in `compute/` and its kernels here. Nothing else names either.

#[cfg(all(target_arch = "aarch64", not(test)))]
mod aarch64;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128", not(test)))]
mod wasm32;
#[cfg(all(target_arch = "x86_64", not(test)))]
mod x86_64;

use std::any::TypeId;
use std::ffi::CStr;
use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::compute::f32::F32;
#[cfg(test)]
use crate::compute::{half::Half, pairs::Pairs, tiles::Tiles};
use crate::decode::gemv::Gemv;
use crate::decode::{self, By, Decode};
use crate::dtype::Dtype;
use crate::error::{Error, Refusal};
use crate::machine;
use crate::prefill::gemm::Gemm;
use crate::prefill::{self, Prefill, Splits};
use crate::problem::{Accuracy, Shape, Storage};
use crate::quantize::{Quantize, Round};
#[cfg(all(test, target_arch = "x86_64"))]
use crate::simd::avx2::Avx2;
use crate::simd::tiles::{Configured, SIDE};
use crate::simd::{Body, Isa, MAX_LANES, math, scalar::Scalar};
use crate::work::query_tiles::{QueryTile, TileSizes, Way};
use crate::work::split_kv::Combine;
use crate::workspace::Scratch;

/// The kernels of this build, best first, a list for each instruction set or its levels. Those of
/// the last list run everywhere. The crate's own unit tests have the scalar kernels alone, because
/// compiling the others takes minutes; the tests in `tests/` have all.
static TABLE: &[&[&dyn Kernel]] = &[
    #[cfg(all(target_arch = "x86_64", not(test), not(fa_skip_avx512)))]
    x86_64::AVX512,
    #[cfg(all(target_arch = "x86_64", not(test)))]
    x86_64::AVX2,
    #[cfg(all(target_arch = "aarch64", not(test)))]
    aarch64::NEON,
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128", not(test)))]
    wasm32::SIMD128,
    // A matrix unit in plain Rust, with vectors of several lengths.
    #[cfg(all(test, target_arch = "x86_64"))]
    &[&Combination::<Avx2, Tiles<Half>, Half, Half, Avx2, 32>::new()],
    // Products of pairs of rows in plain Rust, for queries of bfloat16, and the unit for others.
    #[cfg(test)]
    &[
        &Combination::<Scalar, Pairs<Half>, Half, Half, Scalar, 12>::new().only_for(
            usize::MAX,
            <Half as Gemm>::ACCURACY,
            |storage| Half::takes(storage) && storage.dtypes[0] == Dtype::Bf16,
        ),
        &Combination::<Scalar, Tiles<Half>, Half, Half, Scalar, 32>::new(),
    ],
    &[&Combination::<Scalar, F32, F32, F32, Scalar, 4>::new()],
];

/// The two paths of computing, prefill and decode: both give the same results within rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// For many query rows: lanes are query rows.
    Prefill,
    /// For few query rows: lanes are elements of a head.
    Decode,
}

impl Path {
    /// The other path.
    pub fn other(self) -> Path {
        match self {
            Path::Prefill => Path::Decode,
            Path::Decode => Path::Prefill,
        }
    }
}

/// An instruction set with the compute types of its two paths.
///
/// What computes fails with [`Error::Internal`] on a machine without the instruction set, and in no
/// other case.
pub trait Kernel: Sync {
    /// The instruction set, as `fa_isa` reports it.
    fn isa(&self) -> &'static CStr;
    /// Whether this machine has the instruction set.
    fn is_available(&self) -> bool;
    /// Whether [`select`] takes it where no instruction set is named: it is faster than those below
    /// it.
    fn is_worth_it(&self) -> bool;
    /// The compute type of a path, for people.
    fn compute_type(&self, path: Path) -> &'static str;
    /// Whether it computes problems that are stored so.
    fn takes_storage(&self, storage: &Storage) -> bool;
    /// [`select`] takes it for as many query rows of all heads of a kv head, at least: it is faster
    /// there than those below it.
    fn min_rows(&self) -> usize;
    /// Elements of a row of Q and K, at most.
    fn max_dim(&self) -> usize;
    /// Keys of a block, at most.
    fn max_keys(&self, path: Path) -> usize;
    /// The strictest demand on the rounding of queries and probabilities that it meets.
    fn accuracy(&self) -> Accuracy;
    /// Whether prefill sums integers, one block of keys at a time.
    fn sums_integers(&self) -> bool;
    /// Whether decode repacks K and V.
    fn repacks(&self) -> bool;
    /// f32 lanes of a vector.
    fn lanes(&self) -> usize;
    /// Query rows of a whole tile of prefill.
    fn tile_rows(&self) -> usize;
    /// Keys of a register tile of prefill.
    fn tile_keys(&self) -> usize;
    /// Whether K, and V, are read in place, as far as their types and scales decide that.
    fn reads_kv(&self, path: Path, shape: &Shape) -> [bool; 2];
    /// Bytes of scratch memory of one work item; `None` if no machine has as many.
    fn scratch_bytes(&self, path: Path, shape: &Shape, tiles: TileSizes) -> Option<usize>;
    /// Bytes of a partial state that one thread keeps for another; `None` if no machine has as
    /// many.
    fn state_bytes(&self, path: Path, shape: &Shape, tiles: TileSizes) -> Option<usize>;
    /// Computes a query tile, or some splits of its keys.
    fn prefill(
        &self,
        tile: &QueryTile,
        tiles: TileSizes,
        splits: Option<Splits>,
        scratch: Scratch,
    ) -> Result<(), Error>;
    /// Computes some splits of the keys of a group of query heads.
    #[doc(hidden)]
    fn decode(&self, work: Decode) -> Result<(), Error>;
    /// Combines the partial states of a group whose splits several threads had, and writes its
    /// output.
    #[doc(hidden)]
    fn combine(&self, work: Combine) -> Result<(), Error>;
    /// Writes integers, scales and zeros: the same bits with every kernel.
    fn quantize(&self, what: &mut Quantize) -> Result<(), Error>;
    /// Writes numbers as those of another type: the same bits with every kernel.
    fn round(&self, what: &Round) -> Result<(), Error>;
    /// Replaces each value by the function's: `values` are whole vectors.
    fn map_vectors(&self, function: Function, values: &mut [f32]);
}

impl dyn Kernel + '_ {
    /// Whether it computes problems of a shape.
    pub fn takes(&self, shape: &Shape) -> bool {
        self.takes_storage(&shape.storage) && shape.dim_qk <= self.max_dim()
    }

    /// Whether it computes problems whose Q, K and V are of these types, with one scale a head.
    pub fn takes_types(&self, dtypes: [Dtype; 3]) -> bool {
        self.takes_storage(&Storage::plain(dtypes))
    }

    /// Replaces each value by the function's, as this kernel computes it: for tests and benches.
    pub fn map(&self, function: Function, values: &mut [f32]) {
        let (vectors, rest) = values.split_at_mut(values.len() - values.len() % self.lanes());
        self.map_vectors(function, vectors);
        let mut last = [0.0; MAX_LANES];
        last[..rest.len()].copy_from_slice(rest);
        self.map_vectors(function, &mut last[..self.lanes()]);
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

impl fmt::Debug for dyn Kernel + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.isa().to_string_lossy(), self.compute_type(Path::Prefill))
    }
}

/// Names types without values of them, so that threads can share what has it.
type Types<P, F, Few, One, D> = PhantomData<fn() -> (P, F, Few, One, D)>;

/// The kernel of prefill with `F` on the instruction set `P`, and of decode with `Few`, or `One`
/// for a single query row, on `D`. `P` is `D` or a part of it, with as many lanes; on tiles
/// `D` may be the part. `One` gives the bits of `Few`. `R` is the height of prefill's tiles.
struct Combination<P, F, Few, One, D, const R: usize> {
    /// The compute type of prefill, for people.
    name: &'static str,
    /// What the machine needs besides the instruction sets.
    is_there: fn() -> bool,
    is_worth_it: fn() -> bool,
    takes: fn(&Storage) -> bool,
    /// Query rows of all heads of a kv head, at least.
    min_rows: usize,
    max_dim: usize,
    accuracy: Accuracy,
    types: Types<P, F, Few, One, D>,
}

impl<P: Isa, F: Gemm, Few: Gemv, One: Gemv, D: Isa, const R: usize> Combination<P, F, Few, One, D, R> {
    const fn new() -> Self {
        const { assert!(P::LANES == D::LANES) };
        Combination {
            name: F::NAME,
            is_there: || true,
            is_worth_it: || true,
            takes: F::takes,
            min_rows: 0,
            max_dim: F::MAX_DIM,
            accuracy: F::ACCURACY,
            types: PhantomData,
        }
    }

    /// For machines on which it is worth it: on others it is taken if its instruction set is named.
    #[cfg(any(
        all(target_arch = "x86_64", not(test), not(fa_skip_avx512)),
        all(target_arch = "aarch64", not(test))
    ))]
    const fn only_where(self, is_worth_it: fn() -> bool) -> Self {
        Combination { is_worth_it, ..self }
    }

    /// For another type of numbers, with the code of `F`.
    #[cfg(all(target_arch = "x86_64", not(test), not(fa_skip_avx512)))]
    const fn named(self, name: &'static str) -> Self {
        Combination { name, ..self }
    }

    /// For machines that have something that no token stands for: [`Gemm::on`] asks for it.
    #[cfg(all(target_arch = "x86_64", not(test), not(fa_skip_avx512)))]
    const fn only_if(self, is_there: fn() -> bool) -> Self {
        Combination { is_there, ..self }
    }

    /// For problems with at least so many query rows of all heads of a kv head.
    #[cfg(all(target_arch = "x86_64", not(test), not(fa_skip_avx512)))]
    const fn only_from_rows(self, min_rows: usize) -> Self {
        Combination { min_rows, ..self }
    }

    /// For problems that are stored so, with heads of at most `max_dim` elements, and for demands
    /// up to `accuracy`: a kernel below meets others.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64", test))]
    const fn only_for(self, max_dim: usize, accuracy: Accuracy, takes: fn(&Storage) -> bool) -> Self {
        Combination { takes, max_dim, accuracy, ..self }
    }
}

impl<P: Isa, F: Gemm, Few: Gemv, One: Gemv, D: Isa, const R: usize> Kernel
    for Combination<P, F, Few, One, D, R>
{
    fn isa(&self) -> &'static CStr {
        if F::HAS_TILES { P::NAME } else { D::NAME }
    }

    fn is_available(&self) -> bool {
        P::detect().is_some() && D::detect().is_some() && (self.is_there)()
    }

    fn is_worth_it(&self) -> bool {
        (self.is_worth_it)()
    }

    fn compute_type(&self, path: Path) -> &'static str {
        match path {
            Path::Prefill => self.name,
            Path::Decode => Few::NAME,
        }
    }

    fn takes_storage(&self, storage: &Storage) -> bool {
        (self.takes)(storage)
    }

    fn min_rows(&self) -> usize {
        self.min_rows
    }

    fn max_dim(&self) -> usize {
        self.max_dim
    }

    fn max_keys(&self, path: Path) -> usize {
        match path {
            Path::Prefill => F::MAX_KEYS,
            Path::Decode => Few::MAX_KEYS,
        }
    }

    fn accuracy(&self) -> Accuracy {
        self.accuracy
    }

    fn sums_integers(&self) -> bool {
        F::INT_ACC
    }

    fn repacks(&self) -> bool {
        Few::reading(0).is_repacked
    }

    fn lanes(&self) -> usize {
        D::LANES
    }

    fn tile_rows(&self) -> usize {
        prefill::tile_rows::<P>()
    }

    fn tile_keys(&self) -> usize {
        R
    }

    fn reads_kv(&self, path: Path, shape: &Shape) -> [bool; 2] {
        let [_, k, v] = shape.storage.dtypes;
        match path {
            Path::Prefill => [F::reads_k(k, shape.dim_qk), F::reads_v(v)],
            Path::Decode => decode::reads_kv::<Few>(&shape.storage),
        }
    }

    fn scratch_bytes(&self, path: Path, shape: &Shape, tiles: TileSizes) -> Option<usize> {
        match path {
            Path::Prefill => prefill::scratch_bytes::<P, F>(shape, tiles),
            Path::Decode => {
                let several = decode::scratch_bytes::<D, Few>(shape, tiles)?;
                if is_same::<Few, One>() {
                    return Some(several);
                }
                Some(several.max(decode::scratch_bytes::<D, One>(shape, tiles)?))
            }
        }
    }

    fn state_bytes(&self, path: Path, shape: &Shape, tiles: TileSizes) -> Option<usize> {
        if path == Path::Prefill {
            return prefill::state_bytes::<P>(shape, tiles);
        }
        let several = decode::state_bytes::<D, Few>(shape, tiles)?;
        if is_same::<Few, One>() {
            return Some(several);
        }
        Some(several.max(decode::state_bytes::<D, One>(shape, tiles)?))
    }

    fn prefill(
        &self,
        tile: &QueryTile,
        tiles: TileSizes,
        splits: Option<Splits>,
        scratch: Scratch,
    ) -> Result<(), Error> {
        let s = P::detect().and_then(|s| F::on(s, &tile.problem().shape().storage));
        let s = s.ok_or(Error::Internal)?;
        // I11: released when this ends, however it does.
        let _configured = F::HAS_TILES.then(|| Configured::new(s.tiles(SIDE)));
        s.enter(Prefill::<F, R>::new(tile, tiles, splits, scratch));
        Ok(())
    }

    fn decode(&self, work: Decode) -> Result<(), Error> {
        let s = D::detect().ok_or(Error::Internal)?;
        if work.work.count() == 1 {
            enter::<D, _, One>(s, work);
        } else {
            enter::<D, _, Few>(s, work);
        }
        Ok(())
    }

    fn combine(&self, work: Combine) -> Result<(), Error> {
        if work.work.way != Way::Decode {
            let s = P::detect().ok_or(Error::Internal)?;
            s.core().enter(prefill::splits::Finish { work, sums_integers: F::INT_ACC });
            return Ok(());
        }
        let s = D::detect().ok_or(Error::Internal)?;
        if work.work.count() == 1 {
            enter::<D, _, One>(s, work);
        } else {
            enter::<D, _, Few>(s, work);
        }
        Ok(())
    }

    fn quantize(&self, what: &mut Quantize) -> Result<(), Error> {
        let s = P::detect().ok_or(Error::Internal)?;
        s.core().enter(what);
        Ok(())
    }

    fn round(&self, what: &Round) -> Result<(), Error> {
        let s = P::detect().ok_or(Error::Internal)?;
        s.core().enter(what);
        Ok(())
    }

    fn map_vectors(&self, function: Function, values: &mut [f32]) {
        if let Some(s) = P::detect() {
            s.core().enter(Map(function, values));
        }
    }
}

/// Whether both are one type; known when the code is compiled.
#[inline(always)]
fn is_same<A: 'static, B: 'static>() -> bool {
    TypeId::of::<A>() == TypeId::of::<B>()
}

/// Computes `work` with the compute type `P`. Kept out of line, so that the code exists once where
/// one row and several have the same compute type.
#[inline(never)]
fn enter<S: Isa, T, P>(s: S, work: T)
where
    By<T, P>: Body<Out = ()>,
{
    s.enter(By(work, PhantomData));
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

/// The kernels of this build, best first, whether this machine can run them or not.
pub fn all() -> impl Iterator<Item = &'static dyn Kernel> {
    TABLE.iter().copied().flatten().copied()
}

/// The kernels that this machine can run, best first, whatever the limit is.
pub fn available() -> impl Iterator<Item = &'static dyn Kernel> {
    all().filter(|kernel| kernel.is_available())
}

/// The kernels under the current limit that this machine can run, and whether there is a limit.
fn allowed() -> Result<(impl Iterator<Item = &'static dyn Kernel>, bool), Error> {
    let limit = limit()?;
    let below = all().skip(limit.unwrap_or(0));
    Ok((below.filter(|kernel| kernel.is_available()), limit.is_some()))
}

/// The best kernel under the current limit, whatever it computes.
pub fn best() -> Result<&'static dyn Kernel, Error> {
    allowed()?.0.next().ok_or(Error::Internal)
}

/// The best kernel under the current limit for problems of a shape, of those that meet a demand.
pub fn select(shape: &Shape, accuracy: Accuracy) -> Result<&'static dyn Kernel, Error> {
    let (mut kernels, is_limited) = allowed()?;
    let heads = shape.queries[1].checked_div(shape.heads_kv).unwrap_or(0);
    let rows = shape.queries[2].saturating_mul(heads);
    let fits = |kernel: &&'static dyn Kernel| {
        let is_for_it = kernel.takes(shape) && rows >= kernel.min_rows() && kernel.accuracy() >= accuracy;
        is_for_it && (is_limited || kernel.is_worth_it())
    };
    kernels.find(fits).ok_or(Error::Dtype)
}

/// No limit has been set by [`limit_isa`]; no limit has been read from the environment yet.
const UNSET: usize = usize::MAX;
/// The environment names an instruction set that the table does not have.
const UNKNOWN: usize = usize::MAX - 1;
/// The environment names none.
const NONE: usize = usize::MAX - 2;

/// Index of the first kernel that may be used: what the program demanded, or [`UNSET`].
static DEMANDED: AtomicUsize = AtomicUsize::new(UNSET);
/// Index of the first kernel that may be used: what the environment says.
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

/// Lets later calls in the process use AMX; a refusal says why they cannot.
///
/// AMX is 64-bit Intel's matrix unit. Linux gives it to processes that ask for it, because it makes
/// the frames of their signals 8 KiB larger: so the library asks only here, or if the environment
/// variable `FA_AMX` is 1 at the first call. Where another library has asked, as PyTorch does, AMX
/// is not used unasked either. Doing this again changes nothing. `FA_AMX=0` forbids it.
pub fn enable_amx() -> Result<(), Refusal> {
    machine::enable_amx().map_err(|why| Refusal::about(Error::Isa, "AMX", why))
}

/// Index of the first kernel that may be used, if there is a limit.
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

/// Index of the first kernel of an instruction set, available here or not.
fn rank(name: &[u8]) -> Option<usize> {
    all().position(|kernel| kernel.isa().to_bytes() == name)
}
