//! The kernels of x86-64, best first.
//!
//! The number is the height of the register tile of prefill: keys of a score tile, elements of an
//! output tile. With 32 registers, 8 x 2 accumulators hide the latency of FMA twice over and leave
//! room for exp2. With 16 registers, 6 x 2 accumulators, 2 query vectors and 1 broadcast fit; one
//! more would spill.

use super::{Combination, Kernel};
use crate::compute::blocks16::Blocks16;
use crate::compute::f32::F32;
#[cfg(not(fa_skip_avx512))]
use crate::compute::half::Half;
use crate::compute::i16::I16;
use crate::compute::{i8::I8, split16::Split16};
#[cfg(not(fa_skip_avx512))]
use crate::compute::{repacked::Repacked, tiles::Tiles};
use crate::dtype;
#[cfg(not(fa_skip_avx512))]
use crate::dtype::Dtype;
use crate::dtype::q8_0::Q8_0;
#[cfg(not(fa_skip_avx512))]
use crate::machine;
use crate::prefill::gemm::Gemm;
use crate::problem::{Accuracy, Storage};
use crate::simd::avx2::{self, Avx2};
#[cfg(not(fa_skip_avx512))]
use crate::simd::avx512::{self, Avx512};

#[cfg(not(fa_skip_avx512))]
type Vnni = Avx512<avx512::Vnni>;
type AvxVnni = Avx2<avx2::Vnni>;
#[cfg(not(fa_skip_avx512))]
type AvxBf16 = Avx512<avx512::Bf16>;
#[cfg(not(fa_skip_avx512))]
type Amx = Avx512<avx512::Amx>;

/// Whether K and V are blocks that carry their own scales: those of Q8_0 as they are, others
/// unpacked to these.
fn in_blocks(storage: &Storage) -> bool {
    storage.dtypes[1..].iter().all(|dtype| dtype.has_blocks())
}

/// Whether K and V are stored as f16: 8-bit numbers that are read as such may have scales.
#[cfg(not(fa_skip_avx512))]
fn in_f16(storage: &Storage) -> bool {
    storage.stored == [Dtype::F16; 2]
}

/// [`in_blocks`], some of which are of 4 or 5 bits.
#[cfg(not(fa_skip_avx512))]
fn in_nibbles(storage: &Storage) -> bool {
    in_blocks(storage) && storage.dtypes[1..].iter().any(|dtype| dtype.is_nibbles())
}

/// Query rows from which on Q8_0 is repacked. Of 4 rows from memory it takes 0.75 to 1.07 of the
/// time, from the third-level cache 1.03; of 8 rows 0.67 to 0.82 (Zen 4).
#[cfg(not(fa_skip_avx512))]
const ROWS_OF_REPACKED: usize = 6;

/// AVX-512 and its levels. `RUSTFLAGS="--cfg fa_skip_avx512"` leaves them out of development
/// builds, which then take a third of the time.
#[cfg(not(fa_skip_avx512))]
pub(super) static AVX512: &[&dyn Kernel] = &[
    // On tiles, 32 keys or elements by 32 rows. Decode is bound by memory.
    &Combination::<Amx, Tiles<Half>, F32, F32, Avx512, 32>::new(),
    // K and V of f16, by the code of bf16, where the processor multiplies them.
    &Combination::<Amx, Tiles<Half>, F32, F32, Avx512, 32>::new()
        .only_for(usize::MAX, Accuracy::AsStored, in_f16)
        .named("f16")
        .only_if(machine::amx::has_f16),
    &Combination::<Amx, Tiles<I8>, I16, Split16<dtype::i8::I8>, Vnni, 32>::new(),
    &Combination::<AvxBf16, Half, Half, Half, AvxBf16, 8>::new().only_where(machine::has_fast_bf16_dots),
    &Combination::<Vnni, I8, I16, Split16<dtype::i8::I8>, Vnni, 8>::new(),
    &Combination::<Vnni, I16, I16, Split16<dtype::i8::I8>, Vnni, 8>::new(),
    // Its prefill uses nothing that the base level does not have.
    &Combination::<Avx512, F32, Repacked, Repacked, Vnni, 8>::new().only_for(
        <I16 as Gemm>::MAX_DIM,
        Accuracy::AsStored,
        in_nibbles,
    ),
    // Q8_0 of many query rows, which share what repacking takes. Repacked and Split16 give the same
    // bits.
    &Combination::<Avx512, F32, Repacked, Repacked, Vnni, 8>::new()
        .only_for(<I16 as Gemm>::MAX_DIM, Accuracy::AsStored, in_blocks)
        .only_from_rows(ROWS_OF_REPACKED),
    &Combination::<Avx512, F32, Split16<Q8_0>, Split16<Q8_0>, Vnni, 8>::new().only_for(
        <I16 as Gemm>::MAX_DIM,
        Accuracy::AsStored,
        in_blocks,
    ),
    &Combination::<Avx512, I16, I16, I16, Avx512, 8>::new(),
    &Combination::<Avx512, F32, F32, F32, Avx512, 8>::new(),
];

/// AVX2 with FMA, and its level, whose dot products of bytes do not fit the blocks of Q8_0: these
/// fill half of a vector with 16 lanes, and a whole one here.
pub(super) static AVX2: &[&dyn Kernel] = &[
    &Combination::<AvxVnni, I8, I16, Split16<dtype::i8::I8>, AvxVnni, 6>::new(),
    &Combination::<AvxVnni, I16, I16, Split16<dtype::i8::I8>, AvxVnni, 6>::new(),
    &Combination::<Avx2, I16, I16, I16, Avx2, 6>::new(),
    &Combination::<Avx2, F32, Blocks16<Q8_0>, Blocks16<Q8_0>, Avx2, 6>::new().only_for(
        <I16 as Gemm>::MAX_DIM,
        Accuracy::AsStored,
        in_blocks,
    ),
    &Combination::<Avx2, F32, F32, F32, Avx2, 6>::new(),
];
