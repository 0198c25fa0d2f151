//! `fa_forward_q15`, `fa_mha_q15`: attention of 16-bit fixed-point numbers in integers alone.

use std::ops::Range;
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::abi::{STRUCT_SIZE, read_sized};
use super::config::threads;
use super::status::fa_status;
use super::{Quiet, guard};
use crate::error::Error;
use crate::fixed::{Config, Flaw, Plan, Scale};
use crate::pool::{Concurrency, Own, Threads};
use crate::view::overlap;
use crate::workspace::{Arena, Measure, Scratch, Size, StatesSize, Workspace};

/// Multiplications that are worth a thread: what takes as long as waking one.
const LEAST_WORK: usize = 1 << 19;

/// How fa_forward_q15 and fa_mha_q15 compute. Fill it with zeros, then struct_size, head_dim and
/// what you like. Later versions may append fields.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct fa_q15_config {
    /// sizeof(fa_q15_config).
    pub struct_size: usize,
    /// Elements of one row of query, key, value and output; 1 to 65,536.
    pub head_dim: usize,
    /// The softmax scale is scale_mantissa / 2^scale_shift; 0 = 1/sqrt(head_dim). May be negative.
    /// Its size is at most 2^18 divided by head_dim, rounded up to a power of two (so 4096 for 64
    /// elements): larger ones would cost accuracy.
    pub scale_mantissa: i32,
    /// 0 to 63.
    pub scale_shift: i32,
    /// Not 0: key j is visible to query i if and only if j <= i + (seq_len_kv - seq_len_q), as in
    /// fa_config. 0: every query sees every key.
    pub causal: u32,
    /// As in fa_config: 1 = only the calling thread, 0 = one per core.
    pub num_threads: u32,
}

/// Attention of one head of 16-bit fixed-point numbers, computed in integers alone:
/// out = softmax(scale * q * k^T) * v.
///
/// @param[in] cfg   not NULL
/// @param[in] q     [seq_len_q][head_dim]
/// @param[in] k     [seq_len_kv][head_dim]
/// @param[in] v     [seq_len_kv][head_dim]
/// @param seq_len_q   rows of q and out; at least 0
/// @param seq_len_kv  rows of k and v; 0 to 2,097,152
/// @param[out] out  [seq_len_q][head_dim]; overlaps no input. Written completely; what was in it
///                  does not matter.
/// @return FA_OK; FA_ERR_NULL; FA_ERR_STRUCT_SIZE; FA_ERR_ZERO_EXTENT; FA_ERR_OVERFLOW;
///         FA_ERR_SOFTMAX_SCALE; FA_ERR_STRIDE (an odd address); FA_ERR_OVERLAP; FA_ERR_MEMORY;
///         FA_ERR_INTERNAL
///
/// A stored number stands for itself divided by 32,768, in q, k, v and out alike. If yours have
/// other units, they belong into the scale (those of q and k), or are those of the output (v's).
///
/// The output is the same bits on every machine, with every instruction set and number of threads,
/// and in every later version: docs/fixed-point.md defines it. Relative to the largest |v|, and
/// besides half a step of the output, it is within 6e-4 of attention of the stored numbers in exact
/// arithmetic for up to 8,192 keys, and within 2e-3 for up to 190,000.
///
/// All arrays are dense and row-major, at even addresses, and one without elements may be NULL.
/// seq_len_q = 0 does nothing; a row that sees no key is zeros.
///
/// Thread-safe: any number of calls may run at once, on arrays of their own or with inputs in
/// common. Scratch memory is allocated for the time of the call: 640 * head_dim bytes a thread, or
/// 64 more, and less for few queries.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fa_forward_q15(
    cfg: *const fa_q15_config,
    q: *const i16,
    k: *const i16,
    v: *const i16,
    seq_len_q: usize,
    seq_len_kv: usize,
    out: *mut i16,
) -> fa_status {
    // SAFETY: I1: arrays and configuration are as documented, there and here.
    unsafe { fa_mha_q15(cfg, q, k, v, 1, 1, seq_len_q, seq_len_kv, out) }
}

/// Multi-head attention of 16-bit fixed-point numbers: fa_forward_q15 for each of num_heads heads
/// (to get a batch, pass batch * heads, of both kinds).
///
/// @param[in] cfg   not NULL
/// @param[in] q     [num_heads][seq_len_q][head_dim]
/// @param[in] k     [num_kv_heads][seq_len_kv][head_dim]
/// @param[in] v     [num_kv_heads][seq_len_kv][head_dim]
/// @param num_heads     at least 1, a multiple of num_kv_heads
/// @param num_kv_heads  at least 1; query head h reads kv head h / (num_heads / num_kv_heads)
/// @param seq_len_q   rows of q and out; at least 0
/// @param seq_len_kv  rows of k and v; 0 to 2,097,152
/// @param[out] out  [num_heads][seq_len_q][head_dim]
/// @return as fa_forward_q15, and FA_ERR_SHAPE (heads)
///
/// The bits of a head are those of fa_forward_q15 on that head alone. Everything else is as for
/// fa_forward_q15.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fa_mha_q15(
    cfg: *const fa_q15_config,
    q: *const i16,
    k: *const i16,
    v: *const i16,
    num_heads: usize,
    num_kv_heads: usize,
    seq_len_q: usize,
    seq_len_kv: usize,
    out: *mut i16,
) -> fa_status {
    let sizes = Sizes { heads: num_heads, heads_kv: num_kv_heads, seq_len_q, seq_len_kv };
    // SAFETY: I1: arrays and configuration are as documented.
    guard(|| unsafe { run(cfg, [q, k, v], sizes, out) })
}

/// Sizes of dense `[heads][seq][head_dim]` arrays.
#[derive(Clone, Copy)]
struct Sizes {
    heads: usize,
    heads_kv: usize,
    seq_len_q: usize,
    seq_len_kv: usize,
}

/// Where the output is.
struct Output(*mut i16);

// SAFETY: I3: tiles are handed out once, and rows of different tiles share nothing.
unsafe impl Sync for Output {}

impl From<Flaw> for Error {
    fn from(flaw: Flaw) -> Error {
        match flaw {
            Flaw::HeadDim | Flaw::Keys => Error::Overflow,
            Flaw::Scale => Error::SoftmaxScale,
            Flaw::Slice => Error::Internal,
        }
    }
}

/// Checks the arguments, and computes.
///
/// # Safety
/// `cfg` is NULL or readable, as far as it says; the arrays are NULL or have the elements that the
/// sizes say, and nobody writes to them, nor uses `out`, during the call.
unsafe fn run(
    cfg: *const fa_q15_config,
    inputs: [*const i16; 3],
    sizes: Sizes,
    out: *mut i16,
) -> Result<(), Error> {
    if cfg.is_null() {
        return Err(Error::Null);
    }
    // SAFETY: I1: not NULL, so it is a configuration of the size that it says. I9: of integers.
    let config = unsafe { read_sized(STRUCT_SIZE, cfg)? };
    let Sizes { heads, heads_kv, seq_len_q, seq_len_kv } = sizes;
    let head_dim = config.head_dim;
    if head_dim == 0 || heads == 0 || heads_kv == 0 {
        return Err(Error::ZeroExtent);
    }
    if !heads.is_multiple_of(heads_kv) {
        return Err(Error::Shape);
    }
    let shift = u32::try_from(config.scale_shift).map_err(|_| Error::SoftmaxScale)?;
    let scale = Scale { mantissa: config.scale_mantissa, shift };
    let plan = Plan::new(Config { head_dim, scale, is_causal: config.causal != 0 }, seq_len_q, seq_len_kv)?;

    let len = |heads: usize, tokens: usize| {
        let elements = head_dim.checked_mul(tokens)?.checked_mul(heads)?;
        (elements <= isize::MAX as usize / size_of::<i16>()).then_some(elements)
    };
    let of_queries = len(heads, seq_len_q).ok_or(Error::Overflow)?;
    let of_keys = len(heads_kv, seq_len_kv).ok_or(Error::Overflow)?;
    let to = addresses(out, of_queries)?;
    for (input, n) in inputs.into_iter().zip([of_queries, of_keys, of_keys]) {
        if overlap(&to, &addresses(input, n)?) {
            return Err(Error::Overlap);
        }
    }
    if of_queries == 0 {
        return Ok(());
    }
    // SAFETY: I1: checked just above; a slice without elements needs no memory.
    let [q, k, v] = unsafe {
        [(inputs[0], of_queries), (inputs[1], of_keys), (inputs[2], of_keys)]
            .map(|(data, n)| if n == 0 { &[][..] } else { slice::from_raw_parts(data, n) })
    };
    let heads = Heads { plan, group: heads / heads_kv, sizes, head_dim, q, k, v, out: Output(out) };
    let items = heads.tiles();
    let work = of_queries.saturating_mul(seq_len_kv) / LEAST_WORK;
    let threads = threads(config.num_threads).min(items).min(work.max(1));
    heads.compute_on(threads)
}

/// The addresses of an array, which is there if it has elements.
fn addresses(data: *const i16, n: usize) -> Result<Range<usize>, Error> {
    match data.addr() {
        at if n == 0 => Ok(at..at),
        0 => Err(Error::Null),
        at if !at.is_multiple_of(align_of::<i16>()) => Err(Error::Stride),
        at => Ok(at..at.saturating_add(n * size_of::<i16>())),
    }
}

/// A problem of several heads, whose tiles any thread may compute.
struct Heads<'a> {
    plan: Plan,
    /// Query heads of a kv head.
    group: usize,
    sizes: Sizes,
    head_dim: usize,
    q: &'a [i16],
    k: &'a [i16],
    v: &'a [i16],
    out: Output,
}

impl Heads<'_> {
    /// Tiles of all heads: no more than the output has rows.
    fn tiles(&self) -> usize {
        self.sizes.heads * self.plan.tiles()
    }

    /// Computes all tiles on the threads of the library, so many at most, with scratch memory that
    /// is allocated for the call. Where there is not enough for all, the calling one computes
    /// alone.
    fn compute_on(&self, threads: usize) -> Result<(), Error> {
        let bytes_per_thread = Measure::of(|arena| self.scratch(arena)).ok_or(Error::Overflow)?;
        let size = |threads| Size { threads, bytes_per_thread, states: StatesSize::default() };
        let (workspace, threads) = match Workspace::allocate(size(threads)) {
            Ok(workspace) => (workspace, threads),
            Err(_) => (Workspace::allocate(size(1))?, 1),
        };
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let task = || {
            let done = workspace.take().map_or(Ok(()), |scratch| self.compute(&next, scratch));
            if done.is_err() {
                failed.store(true, Ordering::Relaxed);
            }
        };
        Quiet(&Own).run(Concurrency::of(threads), &task);
        if failed.into_inner() { Err(Error::Internal) } else { Ok(()) }
    }

    /// The scratch arrays of a thread.
    fn scratch<A: Arena>(&self, arena: &mut A) -> (*mut i64, *mut i16) {
        (arena.take(self.plan.wide_len()), arena.take(self.plan.narrow_len()))
    }

    /// Computes tiles until there are none left.
    fn compute(&self, next: &AtomicUsize, mut scratch: Scratch) -> Result<(), Flaw> {
        let (wide, narrow) = self.scratch(&mut scratch);
        // SAFETY: I5: arrays of these sizes, this thread's, which zeros initialise.
        let (wide, narrow) = unsafe {
            wide.write_bytes(0, self.plan.wide_len());
            narrow.write_bytes(0, self.plan.narrow_len());
            (
                slice::from_raw_parts_mut(wide, self.plan.wide_len()),
                slice::from_raw_parts_mut(narrow, self.plan.narrow_len()),
            )
        };
        let of_keys = self.sizes.seq_len_kv * self.head_dim;
        loop {
            // Relaxed: only that each is taken once matters. Each thread goes one beyond the end,
            // so that this does not overflow.
            let item = next.fetch_add(1, Ordering::Relaxed);
            if item >= self.tiles() {
                return Ok(());
            }
            let (head, tile) = (item / self.plan.tiles(), item % self.plan.tiles());
            let rows = self.plan.rows(tile);
            let first = (head * self.sizes.seq_len_q + rows.start) * self.head_dim;
            let q = &self.q[first..][..rows.len() * self.head_dim];
            let [k, v] = [self.k, self.v].map(|x| &x[head / self.group * of_keys..][..of_keys]);
            // SAFETY: I1, I3: as many elements of the output as of the queries, which are there;
            // this thread has taken the tile, and nobody else uses its rows.
            let out = unsafe { slice::from_raw_parts_mut(self.out.0.wrapping_add(first), q.len()) };
            self.plan.tile(tile, q, k, v, out, narrow, wide)?;
        }
    }
}
