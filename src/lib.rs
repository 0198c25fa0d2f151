//! Exact attention on CPUs, `softmax(Q·Kᵀ·scale + bias)·V`, in O(n) memory, behind a C ABI.
//!
//! The contract is the C header `include/flash_attention.h`, generated from [`capi`]. The Rust
//! modules are public for tests, benches and readers; their names may change in any version.
//!
//! One call, top to bottom:
//!
//! | module | question it answers |
//! |---|---|
//! | [`capi`] | which C arguments came in, and are they usable? |
//! | [`problem`] | *what* is computed: views of Q, K, V, O and the semantics, consistent by construction |
//! | [`plan`] | *how*: kernel row, tile sizes, number of parts |
//! | [`schedule`] | *who*: parts over threads |
//! | [`kernel`] | the table of instruction sets and compute families |
//! | [`prefill`] | one part, many queries: lanes = queries |
//! | [`attend`] | its steps: stage, scores, logits, mask, softmax, accumulate, epilogue; and merging of results |
//! | [`decode`] | some keys of a band, few queries: lanes = elements of a head |
//!
//! Beside it [`quantize`]: numbers to 8-bit integers, what is stored in a cache before such a call.
//!
//! What the path consults: [`work`], [`part`], [`band`], [`family`] (how scores and outputs are made), [`dtype`] (how bytes become
//! numbers), [`view`], [`simd`], [`machine`], [`pool`],
//! [`workspace`], [`error`]. [`reference`](mod@reference) is the same mathematics in a page of f64: read it
//! first.

pub mod attend;
#[forbid(unsafe_code)]
pub mod band;
pub mod capi;
pub mod decode;
pub mod kernel;
#[forbid(unsafe_code)]
pub mod plan;
pub mod prefill;
#[forbid(unsafe_code)]
pub mod problem;
pub mod quantize;
#[forbid(unsafe_code)]
pub mod schedule;

pub mod dtype;
#[forbid(unsafe_code)]
pub mod error;
pub mod family;
#[forbid(unsafe_code)]
pub mod machine;
#[forbid(unsafe_code)]
pub mod part;
#[forbid(unsafe_code)]
pub mod pool;
#[forbid(unsafe_code)]
pub mod reference;
pub mod simd;
pub mod view;
#[forbid(unsafe_code)]
pub mod work;
pub mod workspace;
