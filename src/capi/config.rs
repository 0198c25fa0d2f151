//! `fa_config` and its constructors.

use std::ptr;

use super::guard;
use super::status::fa_status;
use crate::error::Error;
use crate::machine;
use crate::pool::MAX_THREADS;
use crate::problem::Semantics;

/// fa_attention.scale, fa_config.softmax_scale: stands for a scale of 0, as 0 itself means the
/// default scale. Its value is 2 to the power of -100. Keys whose dot products are below 1e22 weigh
/// exactly the same.
#[allow(clippy::excessive_precision, reason = "exact as a double, too, which C takes it for")]
pub const FA_SCALE_ZERO: f32 = 7.888609052210118e-31;

/// How fa_forward_f32, fa_forward_i8 and fa_mha compute. Frozen: this struct never changes. Fill
/// all fields, or call a constructor and change what you like.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct fa_config {
    /// Query rows per tile; 0 = chosen from this machine's caches. Any value is honoured. Results
    /// do not depend on it.
    pub block_size_q: usize,
    /// Keys per tile; 0 = chosen from this machine's caches. Any value is honoured. Different
    /// values give results that differ within rounding. Set it to get the same bits on machines
    /// with different cache sizes and the same instruction set.
    pub block_size_kv: usize,
    /// Elements of one row of query, key, value and output; at least 1.
    pub head_dim: usize,
    /// true: key j is visible to query i if and only if j <= i + (seq_len_kv - seq_len_q), so the
    /// last query sees all keys. A query that sees no key has an output of zeros. false: every
    /// query sees every key.
    pub causal: bool,
    /// The softmax scale, by which every dot product of a query and a key is multiplied. Finite;
    /// may be negative; 0 = 1/sqrt(head_dim). With FA_SCALE_ZERO all visible keys weigh the same.
    pub softmax_scale: f32,
    /// The number of threads that may compute at the same time, the calling thread included. 1 =
    /// only the calling thread. 0 = one per core that the process may use; CPU affinity and control
    /// groups count, as they are at the first call that needs the number. The other threads belong
    /// to a pool of the library's own. The first call that needs the pool creates it, and it stays.
    /// Small problems use fewer threads, no call uses more than 256, and if threads cannot be
    /// created, fewer work. Every value gives the same bits.
    pub num_threads: u32,
    /// 0.
    pub reserved: u32,
}

/// Fills a configuration: 64 x 64 tiles, not causal, softmax_scale 1/sqrt(head_dim), all cores.
///
/// @param[out] cfg   not NULL
/// @param head_dim   at least 1
/// @return FA_OK; FA_ERR_NULL; FA_ERR_ZERO_EXTENT. cfg is untouched on errors.
///
/// Thread-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fa_config_for_head_dim(cfg: *mut fa_config, head_dim: usize) -> fa_status {
    // SAFETY: I1: `cfg` is NULL or leads to an fa_config.
    unsafe { fill(cfg, head_dim, 64, 64) }
}

/// Like fa_config_for_head_dim, but with tiles of 32 queries x 128 keys: fewer, longer passes over
/// the keys.
///
/// @param[out] cfg   not NULL
/// @param head_dim   at least 1
/// @return as fa_config_for_head_dim
///
/// Thread-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fa_config_for_long_sequence(cfg: *mut fa_config, head_dim: usize) -> fa_status {
    // SAFETY: I1: `cfg` is NULL or leads to an fa_config.
    unsafe { fill(cfg, head_dim, 32, 128) }
}

/// Like fa_config_for_head_dim, but with tile sizes of 0: chosen from this machine's caches at each
/// call. This is the fastest choice.
///
/// @param[out] cfg   not NULL
/// @param head_dim   at least 1
/// @return as fa_config_for_head_dim
///
/// Thread-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fa_config_auto(cfg: *mut fa_config, head_dim: usize) -> fa_status {
    // SAFETY: I1: `cfg` is NULL or leads to an fa_config.
    unsafe { fill(cfg, head_dim, 0, 0) }
}

/// Fills a configuration with tiles of these sizes.
///
/// # Safety
/// `cfg` is NULL or writable.
unsafe fn fill(cfg: *mut fa_config, head_dim: usize, block_size_q: usize, block_size_kv: usize) -> fa_status {
    guard(|| {
        if cfg.is_null() {
            return Err(Error::Null);
        }
        if head_dim == 0 {
            return Err(Error::ZeroExtent);
        }
        let filled = fa_config {
            block_size_q,
            block_size_kv,
            head_dim,
            causal: false,
            softmax_scale: Semantics::usual_scale(head_dim),
            num_threads: 0,
            reserved: 0,
        };
        // SAFETY: I1: not NULL, so it is writable; no alignment is assumed.
        unsafe { cfg.write_unaligned(filled) };
        Ok(())
    })
}

/// An `fa_config` whose fields have been checked, as far as they can be without the tensors.
pub(super) struct Config {
    pub(super) head_dim: usize,
    pub(super) semantics: Semantics,
    pub(super) causal: bool,
    pub(super) threads: usize,
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Safety
    /// `cfg` is NULL or readable.
    pub(super) unsafe fn read(cfg: *const fa_config) -> Result<Config, Error> {
        if cfg.is_null() {
            return Err(Error::Null);
        }
        // SAFETY: I1: not NULL, so it is readable; no alignment is assumed. I9: fields are read one
        // by one, and `causal` as a byte: C code can leave values in a bool that Rust forbids.
        let (block_q, block_kv, head_dim, causal, softmax_scale, num_threads, reserved) = unsafe {
            (
                ptr::addr_of!((*cfg).block_size_q).read_unaligned(),
                ptr::addr_of!((*cfg).block_size_kv).read_unaligned(),
                ptr::addr_of!((*cfg).head_dim).read_unaligned(),
                ptr::addr_of!((*cfg).causal).cast::<u8>().read() != 0,
                ptr::addr_of!((*cfg).softmax_scale).read_unaligned(),
                ptr::addr_of!((*cfg).num_threads).read_unaligned(),
                ptr::addr_of!((*cfg).reserved).read_unaligned(),
            )
        };
        if reserved != 0 {
            return Err(Error::Reserved);
        }
        if head_dim == 0 {
            return Err(Error::ZeroExtent);
        }
        let scale = if softmax_scale == 0.0 { Semantics::usual_scale(head_dim) } else { softmax_scale };
        let semantics = Semantics { block_q, block_kv, ..Semantics::with_scale(scale) };
        Ok(Config { head_dim, semantics, causal, threads: threads(num_threads) })
    }

    /// Scale, blocks and causality.
    pub(super) fn semantics(&self) -> Semantics {
        if self.causal { self.semantics.causal() } else { self.semantics }
    }
}

/// Threads of a call, at most, for a field num_threads; see [`fa_config::num_threads`].
pub(super) fn threads(num_threads: u32) -> usize {
    let threads = match num_threads {
        1 => 1,
        0 => machine::cores(),
        n => n as usize,
    };
    threads.min(MAX_THREADS)
}
