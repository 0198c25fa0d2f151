//! Processors that have the kernels of plain Rust alone.

pub(super) use super::system::caches;
use crate::tuning::Microarch;

pub(super) fn microarch() -> Microarch {
    Microarch::Generic16
}
