//! Compute types: how scores and weighted sums of values are multiplied, whatever the tensors
//! store.
//!
//! One file for each type, with both of its traits: [`Gemm`](crate::prefill::gemm::Gemm) for many
//! query rows, [`Gemv`](crate::decode::gemv::Gemv) for few. A new compute type is one file here and
//! its kernels in [`crate::kernel`].

#[cfg_attr(not(any(test, target_arch = "x86_64")), allow(dead_code, reason = "only AVX2 has kernels of it"))]
pub(crate) mod blocks16;
pub(crate) mod f32;
pub(crate) mod half;
pub(crate) mod i16;
pub(crate) mod i8;
pub(crate) mod integers;
#[cfg_attr(not(any(test, target_arch = "aarch64")), allow(dead_code, reason = "only NEON has kernels of it"))]
pub(crate) mod pairs;
pub(crate) mod repacked;
mod span;
pub(crate) mod split16;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only AVX-512 has kernels of it"))]
pub(crate) mod tiles;
