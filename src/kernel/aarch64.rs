//! The kernels of 64-bit Arm, best first.
//!
//! The number is the height of the register tile of prefill: keys of a score tile, elements of an
//! output tile. Of 32 registers, 8 x 2 are accumulators, 8 have four words of each key, of which
//! multiplications take one lane, and 2 have queries. By pairs of rows, 6 x 4 are accumulators of
//! 2 x 2 sums, 4 have queries, and 2 pairs of keys.
//!
//! There is no kernel of i16: its products would take as many instructions as those of f32, without
//! the conversion of 8-bit integers that f32 needs once a block in prefill. Decode, which converts
//! them as they are read, multiplies bytes.

use super::{Combination, Kernel};
use crate::compute::f32::F32;
use crate::compute::half::Half;
use crate::compute::i8::I8;
use crate::compute::i16::I16;
use crate::compute::integers;
use crate::compute::pairs::Pairs;
use crate::compute::split16::Split16;
use crate::dtype;
use crate::machine;
use crate::prefill::gemm::Gemm;
use crate::simd::neon::{self, Neon};

type NeonBf16 = Neon<neon::Bf16>;
type NeonI8mm = Neon<neon::I8mm>;
type NeonDotProd = Neon<neon::DotProd>;
type Bytes = Split16<dtype::i8::I8>;

/// NEON and its levels.
pub(super) static NEON: &[&dyn Kernel] = &[
    &Combination::<NeonBf16, Pairs<Half>, Half, Half, NeonBf16, 12>::new()
        .only_where(machine::has_fast_bf16_dots),
    &Combination::<NeonI8mm, Pairs<I8>, Bytes, Bytes, NeonI8mm, 12>::new(),
    &Combination::<Neon, F32, Bytes, Bytes, NeonI8mm, 8>::new().only_for(
        <I16 as Gemm>::MAX_DIM,
        <I16 as Gemm>::ACCURACY,
        integers::takes,
    ),
    &Combination::<NeonDotProd, I8, Bytes, Bytes, NeonDotProd, 8>::new(),
    &Combination::<Neon, F32, Bytes, Bytes, NeonDotProd, 8>::new().only_for(
        <I16 as Gemm>::MAX_DIM,
        <I16 as Gemm>::ACCURACY,
        integers::takes,
    ),
    &Combination::<Neon, F32, F32, F32, Neon, 8>::new(),
];
