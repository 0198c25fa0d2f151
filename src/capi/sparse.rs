//! `fa_sparse_config_init`, `fa_sparse_from_partitions`.

use std::ffi::c_char;
use std::ptr;

use super::abi::{STRUCT_SIZE, check_size, read_sized};
use super::attention::FA_NO_LIMIT;
use super::describe::{MOST_VALUES, extent};
use super::guard;
use super::run::Words;
use super::status::fa_status;
use crate::error::{Error, Refusal};
use crate::sparse::{Partitions, Schedule, Sparsity};
use crate::view::{Array, ArrayMut};

/// fa_sparse_config.schedule: the coherence decides nothing. Partitions stay whole, unless
/// min_density or max_density demands otherwise.
pub const FA_SCHEDULE_NONE: i32 = 0;
/// fa_sparse_config.schedule: the density rises in a line, from min_density at coherence_low to
/// max_density at coherence_high.
pub const FA_SCHEDULE_LINEAR: i32 = 1;
/// fa_sparse_config.schedule: max_density from coherence_high on, min_density below it.
pub const FA_SCHEDULE_THRESHOLD: i32 = 2;
/// fa_sparse_config.schedule: 0.1, and up to 0.6 more as the coherence rises to half of
/// coherence_high; up to 0.2 more by concentration; 0.05 less for each partition, up to four of
/// them. At least 0.1, at most 0.9, and within min_density and max_density.
pub const FA_SCHEDULE_ADAPTIVE: i32 = 3;

/// A text in partitions, and how much of the attention is kept: see fa_sparse_from_partitions. To
/// be initialised by fa_sparse_config_init. Later versions may append fields.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct fa_sparse_config {
    /// sizeof(fa_sparse_config).
    pub struct_size: usize,
    /// Query rows: the last tokens of the text. 0 to len_kv.
    pub len_q: i64,
    /// Keys: all tokens of the text. 0 to 2^31 - 1.
    pub len_kv: i64,
    /// Query rows of a block, as in fa_attention; at least 1. Initially 64.
    pub kept_q: i64,
    /// Keys of a block, as in fa_attention; at least 1. Initially 64. Attention is fastest with
    /// blocks of 64 and larger.
    pub kept_kv: i64,
    /// [num_partitions]: the token at which each partition begins. The first one is 0; ascending,
    /// each once, below len_kv. May be NULL if there are none.
    pub partitions: *const i32,
    /// Entries of partitions. 0: all of the text is one partition.
    pub num_partitions: i64,
    /// [num_boundary_tokens]: tokens that see each other, and that are seen across partitions;
    /// often the first token of each partition. Ascending, each once, below len_kv. May be NULL if
    /// there are none.
    pub boundary_tokens: *const i32,
    /// Entries of boundary_tokens.
    pub num_boundary_tokens: i64,
    /// How many boundary tokens are kept, at most; FA_NO_LIMIT = all. If there are more, so many
    /// are taken that are evenly spread over their list. Initially 20.
    pub max_edges: i64,
    /// Tokens before each row that it sees, whatever the partitions are; if causal is 0, as many
    /// behind it, too. At least 0.
    pub window: i64,
    /// Not 0: no row sees a key behind it. Initially 1.
    pub causal: u32,
    /// FA_SCHEDULE_NONE (initially), FA_SCHEDULE_LINEAR, FA_SCHEDULE_THRESHOLD or
    /// FA_SCHEDULE_ADAPTIVE.
    pub schedule: i32,
    /// How coherent the text is: the value of the least cut, or what your schedule is made for.
    pub coherence: u32,
    /// With a schedule, partitions are not relied on if the coherence is less: everything is
    /// listed. So it is if there are less than two partitions. Initially 30.
    pub coherence_low: u32,
    /// Where the schedule has its largest density; at least coherence_low. Initially 300.
    pub coherence_high: u32,
    /// To how few boundaries the edges between partitions are concentrated: 0 to 32768, which is 1.
    pub concentration: u32,
    /// The least density to aim at: 0 to 32768, which is 1. Initially 0.
    pub min_density: u32,
    /// The largest density to aim at: min_density to 32768, which is 1. Initially 32768.
    pub max_density: u32,
}

/// What fa_sparse_from_partitions has made: fields that fa_attention has, too, and how much they
/// keep. All of it is output, but struct_size. Later versions may append fields.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct fa_sparse_lists {
    /// sizeof(fa_sparse_lists), which the caller sets.
    pub struct_size: usize,
    /// For fa_attention.kept_start, with both strides 0: [num_starts]. NULL if memory was NULL, as
    /// the three below.
    pub kept_start: *const i32,
    /// For fa_attention.kept_blocks: [num_blocks].
    pub kept_blocks: *const i32,
    /// For fa_attention.column_start, with both strides 0: 0 and num_columns.
    pub column_start: *const i32,
    /// For fa_attention.columns: [num_columns], the boundary tokens that are kept.
    pub columns: *const i32,
    /// Blocks of query rows, and one more.
    pub num_starts: i64,
    /// Listed blocks.
    pub num_blocks: i64,
    /// Columns.
    pub num_columns: i64,
    /// int32_t that memory must have room for.
    pub room: i64,
    /// Pairs of a row and a key that it sees, exactly.
    pub pairs: i64,
    /// Of these, the ones that are in no listed block: columns elsewhere.
    pub column_pairs: i64,
    /// Pairs of dense attention, which is causal if that was asked for.
    pub all_pairs: i64,
    /// The window that was chosen: at least that of the configuration.
    pub window: i64,
    /// How many tokens of its own partition a row sees to each side; FA_NO_LIMIT = all.
    pub reach: i64,
    /// pairs / all_pairs; 1 if there are none.
    pub density: f64,
    /// An estimate of the share of the time of dense attention that is saved in prefill, 0 to 1: a
    /// pair in a listed block of 64 or more costs 1.1 times what a dense one does, a pair of a
    /// column 1.3 times.
    pub time_saved: f64,
    /// The density that was aimed at: 32768 is 1.
    pub target_density: u32,
    /// 1: the schedule did not rely on the partitions, and everything is listed; then dense
    /// attention, without lists, is as good. Else 0.
    pub dense: u32,
}

/// Sets struct_size, kept_q = kept_kv = 64, max_edges = 20, causal = 1, coherence_low = 30,
/// coherence_high = 300, max_density = 32768, and everything else to 0.
///
/// @param[out] cfg     not NULL
/// @param struct_size  sizeof(fa_sparse_config)
/// @return FA_OK; FA_ERR_NULL; FA_ERR_STRUCT_SIZE. *cfg is untouched on errors.
///
/// Thread-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fa_sparse_config_init(cfg: *mut fa_sparse_config, struct_size: usize) -> fa_status {
    guard(|| {
        if cfg.is_null() {
            return Err(Error::Null);
        }
        check_size::<fa_sparse_config>(STRUCT_SIZE, struct_size)?;
        let initial = fa_sparse_config { struct_size, ..INITIAL };
        // SAFETY: I1: not NULL, so it is writable for `struct_size` bytes; no alignment is assumed.
        // What a later version of the structure has beyond ours is 0.
        unsafe {
            cfg.cast::<u8>().write_bytes(0, struct_size);
            cfg.write_unaligned(initial);
        }
        Ok(())
    })
}

/// Turns partitions of a text into lists for block-sparse attention, which are the same for all
/// heads: dense within partitions, sparse across them.
///
/// Row i is token p = len_kv - len_q + i. It sees the keys of its own partition, those at most
/// window tokens before it (and behind it, if causal is 0), and the columns: boundary tokens that
/// are kept, wherever it is. What it sees of the first two is listed in whole blocks.
///
/// Then the density, which is the share of all pairs (causal ones, if causal is not 0) that is
/// seen, is brought to a target: what the schedule makes of the coherence, or, without a schedule,
/// the density that there is, within min_density and max_density. If there is too much, rows see
/// less far within their partitions; if there is too little, the window becomes wider. So the
/// density comes as near to the target as blocks permit, and not beyond it. What remains in any
/// case are the blocks within the configured window and the columns, even if they alone are more
/// than the target.
///
/// The meaning of partitions, boundary tokens, edges, coherence and schedules is that of the crate
/// ruvector-mincut-gated-transformer, whose limits of the density are 3277 and 29491. There, only
/// boundary tokens and the next three see boundary tokens, and the target density is not used.
///
/// @param[in] cfg      not NULL
/// @param[out] memory  NULL = only sizes and densities are found; or room for as many int32_t as
///                     lists->room says then: all lists, one behind another. What is written must
///                     not overlap partitions or boundary_tokens.
/// @param room         int32_t at memory, at least as many as needed; of no matter if it is NULL
/// @param[in,out] lists  not NULL; struct_size must be set. Its pointers lead into memory.
/// @param[out] why     NULL, or room for why_size bytes: a sentence in English that says what was
///                     refused, empty if nothing was, ended by a zero byte
/// @param why_size     bytes at why
/// @return FA_OK; FA_ERR_NULL; FA_ERR_STRUCT_SIZE; FA_ERR_RESERVED (an unknown schedule);
///         FA_ERR_SHAPE (also if room is too small, and for densities, coherences and max_edges);
///         FA_ERR_ZERO_EXTENT; FA_ERR_OVERFLOW (also if there are 2^31 blocks or more);
///         FA_ERR_LENGTHS (partitions or boundary_tokens); FA_ERR_WINDOW; FA_ERR_OVERLAP. On errors
///         nothing has been written but why.
///
/// Everything but density and time_saved is computed in integers, so it is the same on every
/// machine. Takes time in proportion to the lists, and to partitions, boundary tokens and blocks of
/// query rows times the logarithm of len_kv. Computes on the calling thread and allocates nothing.
/// Thread-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fa_sparse_from_partitions(
    cfg: *const fa_sparse_config,
    memory: *mut i32,
    room: i64,
    lists: *mut fa_sparse_lists,
    why: *mut c_char,
    why_size: usize,
) -> fa_status {
    guard(|| {
        let words = Words::new(why, why_size);
        // SAFETY: I1: configuration, memory and lists are as documented.
        let found = unsafe { run(cfg, memory, room, lists) };
        Ok(words.end(found)?)
    })
}

/// What `fa_sparse_config_init` leaves.
const INITIAL: fa_sparse_config = {
    let of = Partitions::NONE;
    fa_sparse_config {
        struct_size: size_of::<fa_sparse_config>(),
        len_q: 0,
        len_kv: 0,
        kept_q: of.kept_q as i64,
        kept_kv: of.kept_kv as i64,
        partitions: ptr::null(),
        num_partitions: 0,
        boundary_tokens: ptr::null(),
        num_boundary_tokens: 0,
        max_edges: of.max_edges as i64,
        window: 0,
        causal: of.causal as u32,
        schedule: FA_SCHEDULE_NONE,
        coherence: 0,
        coherence_low: of.coherence_low,
        coherence_high: of.coherence_high,
        concentration: 0,
        min_density: 0,
        max_density: of.max_density,
    }
};

/// Checks the arguments, and writes the lists.
///
/// # Safety
/// As the header says of [`fa_sparse_from_partitions`].
unsafe fn run(
    cfg: *const fa_sparse_config,
    memory: *mut i32,
    room: i64,
    lists: *mut fa_sparse_lists,
) -> Result<(), Refusal> {
    for (what, is_null) in [("cfg", cfg.is_null()), ("lists", lists.is_null())] {
        if is_null {
            return Err(Refusal::about(Error::Null, what, "NULL"));
        }
    }
    // SAFETY: I1: not NULL, so both have this field; no alignment is assumed.
    let struct_size = unsafe { ptr::addr_of!((*lists).struct_size).read_unaligned() };
    check_size::<fa_sparse_lists>("lists->struct_size", struct_size)?;
    // SAFETY: I1: not NULL, so it is a configuration of the size that it says. I9: of integers.
    let partitions = unsafe { read(&read_sized(STRUCT_SIZE, cfg)?)? };
    let (sparsity, is_written) = if memory.is_null() {
        (partitions.measure()?, false)
    } else {
        let room = extent("room", room, 0)?.min(MOST_VALUES);
        // SAFETY: I1: not NULL, so it has this room, of which only what is needed is used.
        (partitions.write(unsafe { ArrayMut::new(memory, room) })?, true)
    };
    let Sparsity { starts, blocks, columns, window, reach, pairs, column_pairs, all_pairs, .. } = sparsity;
    let place = sparsity.places().map(|place| match is_written {
        true => memory.wrapping_add(place.start).cast_const(),
        false => ptr::null(),
    });
    let found = fa_sparse_lists {
        struct_size,
        kept_start: place[0],
        column_start: place[1],
        columns: place[2],
        kept_blocks: place[3],
        num_starts: starts as i64,
        num_blocks: blocks as i64,
        num_columns: columns as i64,
        room: sparsity.entries().ok_or(Error::Internal)? as i64,
        // Less than 2^62: pairs of two numbers below 2^31.
        pairs: pairs as i64,
        column_pairs: column_pairs as i64,
        all_pairs: all_pairs as i64,
        window: window as i64,
        reach: if reach >= partitions.len_kv { FA_NO_LIMIT } else { reach as i64 },
        density: sparsity.density(),
        time_saved: sparsity.time_saved(),
        target_density: sparsity.target,
        dense: u32::from(sparsity.is_dense),
    };
    // SAFETY: I1: not NULL, and of a size that covers it, so it is writable.
    unsafe { lists.write_unaligned(found) };
    Ok(())
}

/// Reads a configuration, as far as it can be wrong in C alone.
///
/// # Safety
/// Its lists have as many entries as it says, which do not change while the result lives.
unsafe fn read<'a>(cfg: &fa_sparse_config) -> Result<Partitions<'a>, Refusal> {
    let schedule = match cfg.schedule {
        FA_SCHEDULE_NONE => Schedule::None,
        FA_SCHEDULE_LINEAR => Schedule::Linear,
        FA_SCHEDULE_THRESHOLD => Schedule::Threshold,
        FA_SCHEDULE_ADAPTIVE => Schedule::Adaptive,
        other => return Err(Refusal::of("schedule", i64::from(other)).but(Error::Reserved, "unknown")),
    };
    let len_kv = extent("len_kv", cfg.len_kv, 0)?;
    let list = |what, data: *const i32, n| {
        let len = extent(what, n, 0)?;
        if len > len_kv {
            // As each token is there at most once.
            return Err(Refusal::of(what, n).against(Error::Lengths, "more than len_kv", cfg.len_kv));
        }
        if len > 0 && data.is_null() {
            return Err(Refusal::of(what, n).but(Error::Null, "but the list is NULL"));
        }
        if len > MOST_VALUES {
            return Err(Refusal::of(what, n).but(Error::Overflow, "more than an address space holds"));
        }
        // SAFETY: I1: not NULL, or without entries.
        Ok(unsafe { Array::new(data, len) })
    };
    if cfg.window < 0 {
        return Err(Refusal::of("window", cfg.window).but(Error::Window, "negative"));
    }
    Ok(Partitions {
        len_q: extent("len_q", cfg.len_q, 0)?,
        len_kv,
        kept_q: extent("kept_q", cfg.kept_q, 1)?,
        kept_kv: extent("kept_kv", cfg.kept_kv, 1)?,
        partitions: list("num_partitions", cfg.partitions, cfg.num_partitions)?,
        boundary_tokens: list("num_boundary_tokens", cfg.boundary_tokens, cfg.num_boundary_tokens)?,
        max_edges: match cfg.max_edges {
            FA_NO_LIMIT => usize::MAX,
            n => extent("max_edges", n, 0)?,
        },
        window: usize::try_from(cfg.window).unwrap_or(usize::MAX),
        causal: cfg.causal != 0,
        schedule,
        coherence: cfg.coherence,
        coherence_low: cfg.coherence_low,
        coherence_high: cfg.coherence_high,
        concentration: cfg.concentration,
        min_density: cfg.min_density,
        max_density: cfg.max_density,
    })
}
