//! The kernels of WebAssembly with vectors, best first.
//!
//! The number is the height of the register tile of prefill: keys of a score tile, elements of an
//! output tile. A runtime on x86-64 has 16 registers: of these, 4 x 2 are accumulators, 2 have
//! queries, and broadcasts and products take others.

use super::{Combination, Kernel};
use crate::compute::f32::F32;
use crate::compute::i16::I16;
use crate::simd::wasm::Simd128;

/// simd128.
pub(super) static SIMD128: &[&dyn Kernel] = &[
    &Combination::<Simd128, I16, I16, I16, Simd128, 4>::new(),
    &Combination::<Simd128, F32, F32, F32, Simd128, 4>::new(),
];
