#![doc = include_str!("README.md")]
//!
//! # The interface
//!
//! What is re-exported here follows semantic versioning. The C
//! interface is `include/flash_attention.h`. Modules are hidden: they are public for the library's
//! own tests and benches only, and anything in them may change in any version.

// One call, top to bottom:
//
// | module | question it answers |
// |---|---|
// | capi | which C arguments came in, and are they usable? |
// | attention | which slices came in, and do they fit? The same boundary, for Rust |
// | prepared | the problem with its plan and the place of its scratch memory, ready to run |
// | problem | *what* is computed: tensors and semantics, consistent by construction |
// | plan | *how*: kernel, tile sizes, threads |
// | schedule | *who*: work items over threads |
// | work | the work items: query tiles for prefill, splits of the keys for decode |
// | kernel | the table of kernels: an instruction set and a compute type each |
// | prefill | one query tile, many queries: lanes are query rows |
// | decode | some keys of a group of query heads, few queries: lanes are elements of a head |
// | attend | what both paths share: blocks of keys, logits, the end of a row, merging of results |
// | compute | compute types: how scores and weighted sums of values are multiplied |
//
// Beside it quantize: numbers to 8-bit integers, what is stored in a cache before such a call;
// sparse: from partitions of a text to lists of blocks, before such a call, too; and fixed:
// attention in integers alone, which uses nothing else of the library.
//
// What the path consults: dtype (how bytes become numbers), view, simd, machine, tuning, pool,
// workspace, error. reference is the mathematics in a page of f64: read it first.

// Modules are hidden; whoever reads their pages has asked for private items, too.
#![allow(
    rustdoc::private_intra_doc_links,
    reason = "modules are hidden, and public for tests and benches alone"
)]
// Unit tests leave out most of the kernels; see kernel.rs.
#![cfg_attr(
    any(test, fa_skip_avx512, not(target_arch = "x86_64")),
    allow(dead_code, reason = "what only the rest of the table uses")
)]

// The random descriptions of the integration tests, which name the crate.
#[cfg(test)]
extern crate self as flash_attention;

#[cfg(test)]
#[path = "../tests/common"]
mod common_tests {
    #[path = "mod.rs"]
    pub(crate) mod common;
    #[path = "definition.rs"]
    pub(crate) mod definition;
    #[path = "description.rs"]
    pub(crate) mod description;
}

#[doc(hidden)]
#[forbid(unsafe_code)]
pub mod append;
#[doc(hidden)]
pub mod attend;
#[doc(hidden)]
#[forbid(unsafe_code)]
pub mod attention;
#[doc(hidden)]
pub mod capi;
#[doc(hidden)]
pub mod compute;
#[doc(hidden)]
pub mod decode;
#[forbid(unsafe_code)]
pub mod fixed;
#[doc(hidden)]
pub mod kernel;
#[doc(hidden)]
#[forbid(unsafe_code)]
pub mod plan;
#[doc(hidden)]
pub mod prefill;
#[doc(hidden)]
#[forbid(unsafe_code)]
pub mod prepared;
#[doc(hidden)]
#[forbid(unsafe_code)]
pub mod problem;
#[doc(hidden)]
pub mod quantize;
#[doc(hidden)]
#[forbid(unsafe_code)]
pub mod schedule;
#[doc(hidden)]
#[forbid(unsafe_code)]
pub mod sparse;

#[doc(hidden)]
pub mod dtype;
#[doc(hidden)]
#[forbid(unsafe_code)]
pub mod error;
#[doc(hidden)]
pub mod machine;
#[doc(hidden)]
pub mod pool;
#[doc(hidden)]
#[forbid(unsafe_code)]
pub mod reference;
#[doc(hidden)]
pub mod simd;
#[doc(hidden)]
#[forbid(unsafe_code)]
pub mod tuning;
#[doc(hidden)]
pub mod view;
#[doc(hidden)]
#[forbid(unsafe_code)]
pub mod work;
#[doc(hidden)]
pub mod workspace;

pub use attention::{
    Append, Attention, Columns, Data, DataMut, KeptBlocks, Parts, Pool, Task, Tensor, TensorMut, Workspace,
    isa, limit_isa, merge, quantize, quantize_smoothed, version,
};
pub use error::{Error, Refusal};
pub use kernel::Path as ComputePath;
pub use kernel::enable_amx;
pub use prepared::PlanSummary;
pub use problem::Accuracy;
pub use sparse::{Partitions, Schedule, SparseLists, Sparsity};
pub use view::{Array, ArrayMut, Quant, QuantMut};
