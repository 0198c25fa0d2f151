//! Attention of 16-bit fixed-point numbers in integers alone, for machines that have neither `std`
//! nor floating point: the module `fixed` of the package `flash_attention`, by itself.
//!
//! ```
//! use flash_attention_fixed::{Config, Flaw, Plan, Scale};
//!
//! // One query and two keys that weigh alike; the values are 0.5 and -0.25.
//! let (q, k, v) = ([8192, 0], [0, 1, 0, 1], [16384, 16384, -8192, -8192]);
//! let mut out = [7; 2];
//! let plan = Plan::new(Config { head_dim: 2, scale: Scale::USUAL, is_causal: false }, 1, 2)?;
//! let (mut narrow, mut wide) = ([0; 512], [0; 8]);
//! assert!(plan.narrow_len() <= narrow.len() && plan.wide_len() <= wide.len());
//! plan.run(&q, &k, &v, &mut out, &mut narrow, &mut wide)?;
//! assert_eq!(out, [4096; 2]); // 0.125
//! # Ok::<(), Flaw>(())
//! ```

#![no_std]
#![forbid(unsafe_code)]

#[path = "../../src/fixed.rs"]
mod fixed;

pub use fixed::*;
