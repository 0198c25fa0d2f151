//! Outliers among the scores of a block, where probabilities are integers.
//!
//! Real models have attention sinks: a key, often the first one, whose probability is a hundred or
//! a thousand times that of all others, with a value near 0 (Xiao et al. 2023, arXiv:2309.17453).
//! If integer probabilities were relative to its score, those of the other keys would round to 0,
//! and they make the output. So integers are relative to a *reference*, which few scores exceed: an
//! order statistic of the maxima of groups of keys, and [`HEADROOM`] more. What a score is above
//! the reference counts as f32, key by key: 2^(s - m) - 2^(reference - m) times its value, with the
//! running maximum m.
//!
//! The reference of a row depends on its own scores alone, so its bits do not depend on the rows
//! around it.

/// How far a score may exceed the order statistic, in log2 units, before it counts apart. It costs
/// integers as many bits, and saves most ordinary rows the work.
pub(crate) const HEADROOM: f32 = 2.0;
