//! Every measured number, in one record per microarchitecture: tile sizes, block sizes, prefetch
//! distances, path borders, the least work for a thread. A new CPU is one record here and one line
//! in [`Microarch::of_x86`] or [`Microarch::of_arm`].
//!
//! Records change speed, and of the results only rounding. [`Tuning::has_fast_bf16_dots`] chooses a
//! kernel, [`DecodeTuning::border`] and [`DecodeTuning::border_short`] a path.
//! [`DecodeTuning::block_keys`], [`DecodeTuning::splits`] and those of prefill's numbers that
//! decide the keys of a block order a row's sums. Nothing else here changes a bit.
//!
//! # What is not here
//!
//! What shapes the generated code is a constant of the instruction set ([`crate::simd::Isa`]) or of
//! a kernel ([`crate::kernel`]): register tiles are unrolled and must fit the registers, whatever
//! the microarchitecture. These are the heights of prefill's register tiles (8, 6, 4, and 12 for
//! outputs on Arm) and their width in vectors (2), the output elements whose tile makes the
//! probabilities (4, or none where exp2 would spill), the query rows and keys of decode's register
//! tiles (4 and 4), its accumulators (16 or 8), the query vectors that it keeps in registers (8 or
//! 4), and whether the loops exist that prefetch a stream: the record decides whether they run.
//!
//! Sizes of cache lines, stacks and the limits of the ABI are not tuned.

use std::fmt;

/// The numbers of one microarchitecture.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// Its name, for `fa info`.
    pub name: &'static str,
    /// Whether a dot product of bfloat16 pairs (VDPBF16PS, BFDOT) takes less time than the two
    /// multiply-adds in its place. Otherwise bf16 is converted to f32, which is exact besides.
    pub has_fast_bf16_dots: bool,
    /// Many query rows.
    pub prefill: PrefillTuning,
    /// Few query rows.
    pub decode: DecodeTuning,
    /// Additive masks, on both paths.
    pub masks: MaskTuning,
    /// Threads.
    pub threads: ThreadTuning,
}

/// Numbers of [`crate::prefill`] and of the tiles that a plan cuts for it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PrefillTuning {
    /// Query rows of a work item, at most, where K and V are in cache: each block of keys is then
    /// used 8 times by tiles of 16 rows, or 4 times by tiles of 32.
    pub tile_rows: usize,
    /// Query rows, at most, where K and V of a head come from memory: they are read half as often.
    pub tile_rows_far: usize,
    /// Query rows, at most, where K or V is packed block by block: packing pays off with reuse.
    pub tile_rows_packed: usize,
    /// Queries and output of a work item take at most 1/n of L2 ...
    pub l2_share: usize,
    /// ... and at most 1/n with the taller tiles for far or packed K and V.
    pub l2_share_tall: usize,
    /// K and V of a head count as far from 1/n of L3 on; other cores have the rest.
    pub l3_share_far: usize,
    /// Keys of a block, at most: more gave nothing.
    pub block_keys: usize,
    /// Keys of a block, at least, however small L1 is.
    pub min_block_keys: usize,
    /// Scores of a tile against a block take at most 1/n of L1: they are written once and read once
    /// for every 8 output elements, while rows of V stream past.
    pub l1_share: usize,
    /// 1/n of L1 where a block's sums are integers: they are converted after each block, so half as
    /// many blocks are worth more than room for V.
    pub l1_share_integers: usize,
    /// Several blocks of block-sparse attention of up to so many keys make one of ours: shorter
    /// ones cost more than skipping saves.
    pub min_sparse_keys: usize,
    /// Rows of K or V at a multiple of so many bytes alias in L1: a set is found by the address
    /// within 4 KiB, and a register tile reads 8 rows at a time.
    pub aliasing_stride: usize,
    /// Query rows from which on aliasing rows are copied: fewer do not hide the copy.
    pub copy_aliasing_from: usize,
    /// Query rows from which on aliasing rows are copied if they lie behind one another, so that
    /// they alias in the first level alone.
    pub copy_dense_from: usize,
    /// K and V of a block take at most 1/n of L2; 0: any part.
    pub l2_share_block: usize,
    /// Keys from which on rows of Q and O are prefetched: packing and epilogue touch 16 rows at a
    /// time, which no hardware prefetcher follows. Below, the prefetches cost more than they hide.
    pub prefetch_queries_from: usize,
    /// Query rows up to which the heads of a group are computed together: with more, K and V are
    /// used often enough, and rows that lie apart cost 1 to 3 %. Their keys are split for threads.
    pub grouped_rows: usize,
    /// Query rows of a tile whose keys several threads share, at most: each split has a state of
    /// all of them.
    pub split_rows: usize,
    /// How their keys are cut. A state has many rows, so that there are few.
    pub splits: SplitLimits,
    /// Prefetch distance in V, in groups of keys: a tile takes a few elements of each row, at a
    /// row's stride, which L2 prefetchers do not track.
    pub prefetch_groups: usize,
}

/// Numbers of [`crate::decode`] and of the splits that a plan cuts for it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DecodeTuning {
    /// How many query rows are few, with vectors of 16 lanes ...
    pub border: Border,
    /// ... and with shorter ones.
    pub border_short: Border,
    /// Keys of a block: its fixed cost is that of tens of keys. 1024 gave one row 2 % and several
    /// rows nothing, and sums of 16-bit integers hold no more.
    pub block_keys: usize,
    /// Query rows that share one pass over K and V, at most: what each keeps besides its keys must
    /// stay near L1.
    pub group_rows: usize,
    /// How keys are cut for threads.
    pub splits: SplitLimits,
    /// Prefetch distance in K, in rows, where reading does not follow memory. 8 does not hide DRAM
    /// latency, 32 overflows L1.
    pub prefetch_rows: usize,
    /// Rows that are prefetched before a block begins: a core tracks only some tens of misses.
    pub prefetch_first: usize,
    /// Prefetch distance in pages of a cache, in bytes of rows: what a core tracks of misses, twice
    /// over. Rows of a page lie far apart, often in the same few sets of L1, so more of them would
    /// displace each other.
    pub prefetch_page_bytes: usize,
    /// Prefetch distance into L2, in bytes of rows, for single keys and for pages that are not
    /// small: L2 tracks more misses than L1. 0 = into L1, as above.
    pub prefetch_page_bytes_l2: usize,
    /// Least bytes of a kv head in a page that is prefetched into L2: finding a smaller one takes
    /// as long as waiting for it.
    pub prefetch_page_l2_from: usize,
    /// Whether L2 prefetches of what is read some keys later pay off, and whether a first pass over
    /// V should read whole rows.
    pub prefetches_stream: bool,
    /// They are made where a call reads more than 1/n of L3 of K and V: neighbours have the rest.
    pub l3_share_stream: usize,
    /// Bytes of K and V of a call above which kv heads are gone through together where the rows of
    /// neighbouring heads lie nearer than those of neighbouring keys.
    pub together_above: usize,
    /// Query rows of these kv heads, at most: each has a state and the scores of a block.
    pub together_rows: usize,
    /// Bytes of K and V of a call from which on rows with scales within them are prefetched while
    /// their scales are gathered, where kernels do not prefetch a stream.
    pub prefetch_scales_above: usize,
}

/// Numbers of [`crate::attend::logits`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct MaskTuning {
    /// Prefetch distance in each row of a mask, in bytes: a tile reads one line of 16 rows.
    pub prefetch_bytes: usize,
}

/// Numbers of [`crate::pool`] and of the plan's number of threads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ThreadTuning {
    /// Multiply-adds that are worth a thread that is awake ...
    pub min_work: usize,
    /// ... and bytes of K and V that decode reads, which a core takes 10 us for, from its caches.
    pub min_bytes: usize,
    /// Multiply-adds that are worth waking a thread ...
    pub min_work_asleep: usize,
    /// ... and bytes of K and V: it comes 20 to 60 us later, and the caller spends 10 us on it.
    pub min_bytes_asleep: usize,
    /// Multiply-adds that are worth a part of a caller whose threads come anyway ...
    pub min_work_of_part: usize,
    /// ... and bytes of K and V: another part costs planning, and states that are combined.
    pub min_bytes_of_part: usize,
    /// Work items for each thread, so that the last ones to finish are short against the whole.
    pub items_per_thread: usize,
    /// Ranges that splits of keys are cut into for that reason, at most: each keeps partial states.
    pub max_ranges: usize,
    /// Bytes of partial states for each thread beyond which there are fewer ranges.
    pub state_bytes: usize,
    /// How long a thread spins for the next call before it sleeps, in microseconds: about as long
    /// as waking it takes, so that a wait never costs more than twice what the better of spinning
    /// and sleeping would (Karlin, Li, Manasse, Owicki: Empirical studies of competitive spinning
    /// for a shared-memory multiprocessor, 1991).
    pub spin_us: usize,
    /// Spins before the core is offered to others: half a microsecond to one and a half.
    pub spins: usize,
}

/// How many lanes of prefill's vectors query rows must fill, or decode is faster: see
/// [`crate::work::query_tiles::DecodeRule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Border {
    /// With K and V as f32.
    pub f32: Few,
    /// With types of 16 bits.
    pub bits16: Few,
    /// With 8-bit integers, and queries and probabilities of 16 bits.
    pub integers: Few,
    /// With 8-bit integers that prefill multiplies by queries and probabilities of 8 bits.
    pub fast: Few,
    /// With blocks that carry scales.
    pub blocks: Few,
    /// With blocks that are repacked.
    pub repacked: Few,
    /// The rows of all heads of a group fill vectors together where those of one head fill more
    /// than so many 16ths of one.
    pub of_head: usize,
}

/// Query rows that are few.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Few {
    /// For one to four vectors, in 16ths of the lanes of one, what very many keys must fill more
    /// than: two vectors cost less than twice as much as one. More vectors always are full enough.
    pub rows: [usize; 4],
    /// What decode does once for a row, such as to round a query to integers, in keys.
    pub row_keys: usize,
}

impl Few {
    /// Of a decode whose time is that of its keys.
    const fn rows(rows: [usize; 4]) -> Few {
        Few { rows, row_keys: 0 }
    }
}

/// What was measured with AVX-512 on Zen 4: see the tables in `docs/kernel-log.md`, "Few query rows
/// with AVX-512" and "Few rows and few keys".
const BORDER_ZEN4: Border = Border {
    f32: Few::rows([15, 30, 45, 59]),
    bits16: Few::rows([15, 30, 42, 55]),
    integers: Few { rows: [17, 32, 46, 60], row_keys: 20 },
    fast: Few::rows([8, 16, 32, 48]),
    blocks: Few::rows([15, 29, 43, 56]),
    repacked: Few { rows: [21, 40, 60, 80], row_keys: 40 },
    of_head: 0,
};

/// What was measured with AVX2 on Zen 3 (many keys) and Zen 4 (few): see the tables in
/// `docs/kernel-log.md`, "Few query rows of grouped heads" and "Few rows and few keys".
const BORDER_ZEN2: Border = Border {
    f32: Few::rows([16, 26, 34, 48]),
    bits16: Few::rows([16, 32, 48, 56]),
    integers: Few { rows: [21, 32, 42, 48], row_keys: 12 },
    fast: Few::rows([8, 16, 32, 48]),
    blocks: Few { rows: [20, 32, 48, 64], row_keys: 20 },
    repacked: Few { rows: [20, 32, 48, 64], row_keys: 20 },
    of_head: 0,
};

/// How the keys of a sequence are split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitLimits {
    /// Splits of a sequence, about: each can be another thread's, and each has a partial state.
    pub max_splits: usize,
    /// Keys of a split, at least: combining a state costs as much as a few keys.
    pub min_split_keys: usize,
}

/// What the detection tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Microarch {
    /// AMD without AVX-512: Zen 2 and 3 (Zen 1 and Hygon's copy of it go with them).
    Zen2,
    /// AMD with AVX-512: Zen 4 and later.
    Zen4,
    /// Intel without matrix tiles.
    Intel,
    /// Intel with matrix tiles: Sapphire Rapids and later.
    IntelAmx,
    /// Any other machine with 16 vector registers.
    Generic16,
    /// Any other machine with 32 vector registers.
    Generic32,
    /// Arm's in-order cores: Cortex-A34 to A55, A510, A520.
    ArmLittle,
    /// All other cores of Arm's instruction set.
    ArmBig,
}

/// What CPUID says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct X86 {
    /// The maker's name.
    pub vendor: [u8; 12],
    /// Family, the extended one added.
    pub family: u32,
    /// Model, with the extended one before it.
    pub model: u32,
    /// AVX512F.
    pub has_avx512: bool,
    /// AMX-TILE.
    pub has_amx: bool,
}

/// What the register MIDR_EL1 says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arm {
    /// Its bits 31 to 24.
    pub implementer: u32,
    /// Its bits 15 to 4.
    pub part: u32,
}

impl Microarch {
    /// All of them.
    pub const ALL: [Microarch; 8] = [
        Microarch::Zen2,
        Microarch::Zen4,
        Microarch::Intel,
        Microarch::IntelAmx,
        Microarch::Generic16,
        Microarch::Generic32,
        Microarch::ArmLittle,
        Microarch::ArmBig,
    ];

    /// That of an x86 machine. A hypervisor may hide AVX-512 of a Zen 4, so family and model count,
    /// too; a maker that is not known is taken for what has as many registers.
    pub fn of_x86(cpu: X86) -> Microarch {
        let X86 { vendor, family, model, has_avx512, has_amx } = cpu;
        match (&vendor, family) {
            (b"GenuineIntel", _) if has_amx => Microarch::IntelAmx,
            (b"GenuineIntel", _) => Microarch::Intel,
            (b"AuthenticAMD" | b"HygonGenuine", 0x17..) => match family {
                _ if has_avx512 => Microarch::Zen4,
                0x17 | 0x18 => Microarch::Zen2,
                // Zen 3 and Zen 4 share a family.
                0x19 if !matches!(model, 0x10..=0x1f | 0x60..=0xaf) => Microarch::Zen2,
                _ => Microarch::Zen4,
            },
            _ if has_avx512 => Microarch::Generic32,
            _ => Microarch::Generic16,
        }
    }

    /// That of a 64-bit Arm machine, of whose cores one was asked, if it says what it is.
    pub fn of_arm(cpu: Option<Arm>) -> Microarch {
        match cpu {
            // Cortex-A34, A53, A35, A55, A510, A520.
            Some(Arm { implementer: 0x41, part: 0xd02..=0xd05 | 0xd46 | 0xd80 }) => Microarch::ArmLittle,
            _ => Microarch::ArmBig,
        }
    }

    /// Its numbers.
    pub fn tuning(self) -> &'static Tuning {
        match self {
            Microarch::Zen2 => &ZEN2,
            Microarch::Zen4 => &ZEN4,
            Microarch::Intel => &INTEL,
            Microarch::IntelAmx => &INTEL_AMX,
            Microarch::Generic16 => &GENERIC16,
            Microarch::Generic32 => &GENERIC32,
            Microarch::ArmLittle => &ARM_LITTLE,
            Microarch::ArmBig => &ARM_BIG,
        }
    }
}

/// Zen 4 (EPYC, two cores of a virtual machine: 32 KiB L1d, 1 MiB L2), where every number was
/// measured first; `docs/kernel-log.md` has the figures. Held on Zen 5.
pub static ZEN4: Tuning = Tuning {
    name: "zen4",
    // Issued once a cycle, as one multiply-add is.
    has_fast_bf16_dots: true,
    prefill: PrefillTuning {
        tile_rows: 128,
        tile_rows_far: 256,
        tile_rows_packed: 512,
        l2_share: 4,
        l2_share_tall: 2,
        l3_share_far: 4,
        block_keys: 256,
        min_block_keys: 64,
        l1_share: 2,
        l1_share_integers: 1,
        min_sparse_keys: 32,
        aliasing_stride: 1 << 10,
        copy_aliasing_from: 64,
        copy_dense_from: 64,
        l2_share_block: 0,
        prefetch_queries_from: 256,
        grouped_rows: 64,
        split_rows: 64,
        splits: SplitLimits { max_splits: 8, min_split_keys: 1000 },
        prefetch_groups: 4,
    },
    decode: DecodeTuning {
        border: BORDER_ZEN4,
        border_short: BORDER_ZEN2,
        block_keys: 512,
        group_rows: 32,
        splits: SplitLimits { max_splits: 32, min_split_keys: 512 },
        prefetch_rows: 16,
        prefetch_first: 8,
        prefetch_page_bytes: 4096,
        prefetch_page_bytes_l2: 8192,
        prefetch_page_l2_from: 512,
        prefetches_stream: true,
        l3_share_stream: 2,
        // Of a model with several layers, so much of each comes from memory.
        together_above: 2 << 20,
        together_rows: 64,
        prefetch_scales_above: 4 << 20,
    },
    masks: MaskTuning { prefetch_bytes: 128 },
    threads: ThreadTuning {
        min_work: 2_000_000,
        min_bytes: 1_000_000,
        min_work_asleep: 2_000_000,
        min_bytes_asleep: 4_000_000,
        min_work_of_part: 125_000,
        min_bytes_of_part: 62_500,
        items_per_thread: 4,
        max_ranges: 64,
        state_bytes: 512 << 10,
        spin_us: 50,
        spins: 32,
    },
};

/// Zen 2 and 3: the six rows of a register tile fit the eight ways of the first level, so that
/// dense ones are not copied; blocks are held to half of the smaller L2. All else is as on Zen 4,
/// not measured anew.
pub static ZEN2: Tuning = Tuning {
    name: "zen2",
    // It has no such instruction.
    has_fast_bf16_dots: false,
    prefill: PrefillTuning { copy_dense_from: usize::MAX, l2_share_block: 2, ..ZEN4.prefill },
    decode: DecodeTuning { together_above: 8 << 20, ..ZEN4.decode },
    ..ZEN4
};

/// Intel without matrix tiles: as with them, not measured by itself.
pub static INTEL: Tuning = Tuning { name: "intel", ..INTEL_AMX };

/// Intel with matrix tiles, measured on Granite Rapids (48 KiB L1d, 2 MiB L2).
pub static INTEL_AMX: Tuning = Tuning {
    name: "intel-amx",
    // One in two cycles, against two multiply-adds in one: f32 is twice as fast, and exact besides.
    has_fast_bf16_dots: false,
    // L2 prefetches compete with demand misses for the L1 fill buffers. Heads in turns were not
    // measured.
    decode: DecodeTuning {
        prefetch_page_bytes_l2: 0,
        prefetches_stream: false,
        together_above: usize::MAX,
        ..ZEN4.decode
    },
    ..ZEN4
};

/// Unknown machines with 16 vector registers: as Zen 3.
pub static GENERIC16: Tuning =
    Tuning { name: "generic-16", prefill: ZEN2.prefill, decode: ZEN2.decode, ..ZEN4 };

/// Unknown machines with 32 vector registers: as Zen 4.
pub static GENERIC32: Tuning = Tuning { name: "generic-32", ..ZEN4 };

/// Arm's in-order cores. Not measured: no such machine was at hand.
pub static ARM_LITTLE: Tuning = Tuning { name: "arm-little", ..GENERIC16 };

/// Arm's out-of-order cores, and others of its instruction set. Not measured, likewise. That dot
/// products of bfloat16 are fast is what the models of Neoverse V1 and V2 say.
pub static ARM_BIG: Tuning = Tuning { name: "arm-big", ..GENERIC16 };

/// Names and values of all fields of a record; one that is forgotten does not compile.
macro_rules! fields {
    ($record:expr, $group:literal, $($field:ident),+) => {{
        let Self { $($field),+ } = $record;
        [$((concat!($group, stringify!($field)), $field.to_string())),+]
    }};
}

impl PrefillTuning {
    fn fields(&self) -> impl IntoIterator<Item = (&'static str, String)> + use<> {
        fields!(
            self,
            "prefill.",
            tile_rows,
            tile_rows_far,
            tile_rows_packed,
            l2_share,
            l2_share_tall,
            l3_share_far,
            block_keys,
            min_block_keys,
            l1_share,
            l1_share_integers,
            min_sparse_keys,
            aliasing_stride,
            copy_aliasing_from,
            copy_dense_from,
            l2_share_block,
            prefetch_queries_from,
            grouped_rows,
            split_rows,
            splits,
            prefetch_groups
        )
    }
}

impl DecodeTuning {
    fn fields(&self) -> impl IntoIterator<Item = (&'static str, String)> + use<> {
        fields!(
            self,
            "decode.",
            border,
            border_short,
            block_keys,
            group_rows,
            splits,
            prefetch_rows,
            prefetch_first,
            prefetch_page_bytes,
            prefetch_page_bytes_l2,
            prefetch_page_l2_from,
            prefetches_stream,
            l3_share_stream,
            together_above,
            together_rows,
            prefetch_scales_above
        )
    }
}

impl MaskTuning {
    fn fields(&self) -> impl IntoIterator<Item = (&'static str, String)> + use<> {
        fields!(self, "masks.", prefetch_bytes)
    }
}

impl ThreadTuning {
    fn fields(&self) -> impl IntoIterator<Item = (&'static str, String)> + use<> {
        fields!(
            self,
            "threads.",
            min_work,
            min_bytes,
            min_work_asleep,
            min_bytes_asleep,
            min_work_of_part,
            min_bytes_of_part,
            items_per_thread,
            max_ranges,
            state_bytes,
            spin_us,
            spins
        )
    }
}

impl Tuning {
    /// Name and value of each number, as `fa info` prints them.
    pub fn values(&self) -> Vec<(&'static str, String)> {
        let Tuning { name, has_fast_bf16_dots, prefill, decode, masks, threads } = self;
        let mut all = vec![
            ("microarchitecture", (*name).to_owned()),
            ("has_fast_bf16_dots", has_fast_bf16_dots.to_string()),
        ];
        all.extend(prefill.fields());
        all.extend(decode.fields());
        all.extend(masks.fields());
        all.extend(threads.fields());
        all
    }
}

impl fmt::Display for Tuning {
    /// One line for each of [`Tuning::values`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.values().iter().try_for_each(|(name, value)| writeln!(f, "{name} {value}"))
    }
}

impl fmt::Debug for Tuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tuning({})", self.name)
    }
}

impl fmt::Display for Border {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Border { f32, bits16, integers, fast, blocks, repacked, of_head } = self;
        let all = [
            ("f32", f32),
            ("16 bits", bits16),
            ("integers", integers),
            ("fast", fast),
            ("blocks", blocks),
            ("repacked", repacked),
        ];
        for (name, Few { rows: [a, b, c, d], row_keys }) in all {
            write!(f, "{name} {a} {b} {c} {d}")?;
            if *row_keys > 0 {
                write!(f, " and {row_keys} keys a row")?;
            }
            write!(f, ", ")?;
        }
        write!(f, "of a head {of_head}")
    }
}

impl fmt::Display for SplitLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of at least {} keys", self.max_splits, self.min_split_keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn x86(vendor: &[u8; 12], [family, model]: [u32; 2], has_avx512: bool, has_amx: bool) -> X86 {
        X86 { vendor: *vendor, family, model, has_avx512, has_amx }
    }

    /// Machines by what CPUID says of them.
    #[test]
    fn each_machine_has_its_record() {
        const AMD: &[u8; 12] = b"AuthenticAMD";
        const INTEL: &[u8; 12] = b"GenuineIntel";
        for (cpu, wanted, what) in [
            (x86(AMD, [0x17, 0x01], false, false), Microarch::Zen2, "Zen 1, Naples"),
            (x86(AMD, [0x17, 0x31], false, false), Microarch::Zen2, "Zen 2, Rome"),
            (x86(AMD, [0x17, 0x71], false, false), Microarch::Zen2, "Zen 2, Matisse"),
            (x86(AMD, [0x19, 0x01], false, false), Microarch::Zen2, "Zen 3, Milan"),
            (x86(AMD, [0x19, 0x21], false, false), Microarch::Zen2, "Zen 3, Vermeer"),
            (x86(AMD, [0x19, 0x50], false, false), Microarch::Zen2, "Zen 3, Cezanne"),
            (x86(AMD, [0x19, 0x44], false, false), Microarch::Zen2, "Zen 3+, Rembrandt"),
            (x86(AMD, [0x19, 0x11], true, false), Microarch::Zen4, "Zen 4, Genoa"),
            (x86(AMD, [0x19, 0x11], false, false), Microarch::Zen4, "Zen 4 whose AVX-512 is hidden"),
            (x86(AMD, [0x19, 0x61], true, false), Microarch::Zen4, "Zen 4, Raphael"),
            (x86(AMD, [0x19, 0x74], true, false), Microarch::Zen4, "Zen 4, Phoenix"),
            (x86(AMD, [0x19, 0xa0], true, false), Microarch::Zen4, "Zen 4c, Bergamo"),
            (x86(AMD, [0x19, 0x01], true, false), Microarch::Zen4, "AVX-512 under a wrong model"),
            (x86(AMD, [0x1a, 0x02], true, false), Microarch::Zen4, "Zen 5, Turin"),
            (x86(AMD, [0x1a, 0x44], false, false), Microarch::Zen4, "Zen 5 whose AVX-512 is hidden"),
            (x86(AMD, [0x1b, 0x00], true, true), Microarch::Zen4, "what AMD makes next"),
            (x86(AMD, [0x15, 0x60], false, false), Microarch::Generic16, "Excavator"),
            (x86(b"HygonGenuine", [0x18, 0x00], false, false), Microarch::Zen2, "Dhyana"),
            (x86(INTEL, [6, 0x3f], false, false), Microarch::Intel, "Haswell"),
            (x86(INTEL, [6, 0x55], true, false), Microarch::Intel, "Skylake, Cascade Lake"),
            (x86(INTEL, [6, 0x6a], true, false), Microarch::Intel, "Ice Lake"),
            (x86(INTEL, [6, 0x97], false, false), Microarch::Intel, "Alder Lake"),
            (x86(INTEL, [6, 0x8f], true, true), Microarch::IntelAmx, "Sapphire Rapids"),
            (x86(INTEL, [6, 0x8f], true, false), Microarch::Intel, "Sapphire Rapids without its tiles"),
            (x86(INTEL, [6, 0xad], true, true), Microarch::IntelAmx, "Granite Rapids"),
            (x86(INTEL, [19, 0x01], true, true), Microarch::IntelAmx, "Diamond Rapids"),
            (x86(b"CentaurHauls", [7, 0x3b], false, false), Microarch::Generic16, "Zhaoxin"),
            (x86(b"CentaurHauls", [6, 0x47], true, false), Microarch::Generic32, "Centaur CNS"),
            (x86(&[0; 12], [0, 0], false, false), Microarch::Generic16, "no name at all"),
        ] {
            assert_eq!(Microarch::of_x86(cpu), wanted, "{what}");
        }
        let arm = |implementer, part| Microarch::of_arm(Some(Arm { implementer, part }));
        for (found, wanted, what) in [
            (arm(0x41, 0xd03), Microarch::ArmLittle, "Cortex-A53"),
            (arm(0x41, 0xd05), Microarch::ArmLittle, "Cortex-A55"),
            (arm(0x41, 0xd46), Microarch::ArmLittle, "Cortex-A510"),
            (arm(0x41, 0xd08), Microarch::ArmBig, "Cortex-A72"),
            (arm(0x41, 0xd0c), Microarch::ArmBig, "Neoverse N1"),
            (arm(0x41, 0xd4f), Microarch::ArmBig, "Neoverse V2"),
            (arm(0x61, 0xd03), Microarch::ArmBig, "somebody else's part number"),
            (Microarch::of_arm(None), Microarch::ArmBig, "a system that does not say"),
        ] {
            assert_eq!(found, wanted, "{what}");
        }
    }

    /// What was asked of the maker's name before there were records, on each machine that has the
    /// instructions it matters for.
    #[test]
    fn records_choose_what_the_name_did() {
        for vendor in [b"AuthenticAMD", b"GenuineIntel", b"HygonGenuine", b"CentaurHauls", b"  Shanghai  "] {
            for family in 0..0x20 {
                for model in 0..0x100 {
                    for has_amx in [false, true] {
                        let cpu = x86(vendor, [family, model], true, has_amx);
                        let tuning = Microarch::of_x86(cpu).tuning();
                        let is_intel = vendor == b"GenuineIntel";
                        let known = vendor == b"AuthenticAMD" && family >= 0x17;
                        assert_eq!(tuning.decode.prefetches_stream, !is_intel, "{cpu:?}");
                        assert_eq!(tuning.has_fast_bf16_dots, !is_intel, "{cpu:?}");
                        assert!(!known || tuning.name == "zen4", "{cpu:?}");
                    }
                }
            }
        }
    }

    /// All but what the test above is about, and what was measured with AVX2, is the same number
    /// everywhere, until it is measured.
    #[test]
    fn other_numbers_are_those_of_zen4() {
        for tuning in Microarch::ALL.map(Microarch::tuning) {
            let Tuning { name, has_fast_bf16_dots: _, prefill, decode, masks, threads } = *tuning;
            let mut expected = ZEN4;
            if ["zen2", "generic-16", "arm-little", "arm-big"].contains(&name) {
                expected.decode.together_above = 8 << 20;
                expected.prefill.copy_dense_from = usize::MAX;
                expected.prefill.l2_share_block = 2;
            }
            if name.starts_with("intel") {
                expected.decode.together_above = usize::MAX;
                expected.decode.prefetch_page_bytes_l2 = 0;
            }
            let decode = DecodeTuning { prefetches_stream: true, ..decode };
            assert!(prefill == expected.prefill && decode == expected.decode, "{tuning:?}");
            assert!(masks == ZEN4.masks && threads == ZEN4.threads, "{tuning:?}");
        }
    }

    #[test]
    fn values_have_names_of_their_own() {
        let mut names: Vec<_> = ZEN4.values().into_iter().map(|(name, _)| name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(ZEN4.to_string().lines().any(|line| line == "prefill.tile_rows 128"));
    }
}
