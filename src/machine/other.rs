//! Systems of which nothing is known but what Rust's standard library asks.

use super::LEVELS;

pub(super) fn caches() -> [(u32, usize); LEVELS] {
    [(0, 0); LEVELS]
}
