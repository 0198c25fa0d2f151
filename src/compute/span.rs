//! What compute types share that have the numbers of another one, `F`, and multiply them in other
//! pieces: matrix units, and instructions on pairs of rows.

use crate::attend::fold::Folding;
use crate::attend::rows::Source;
use crate::compute::integers::clear;
use crate::prefill::gemm::Gemm;
use crate::simd::Isa;

/// The items of [`Gemm`] that are those of the type `$F`: its words, what they are made of, and how
/// one is multiplied. V is staged behind so many groups.
macro_rules! with_words_of {
    ($F:ident, $spare_groups:expr) => {
        const NAME: &'static str = $F::NAME;
        const ACCURACY: $crate::problem::Accuracy = $F::ACCURACY;
        const PACK: usize = $F::PACK;
        const PANEL_HEADER: usize = $F::PANEL_HEADER;
        const MAX_KEYS: usize = $F::MAX_KEYS;
        const MAX_DIM: usize = $F::MAX_DIM;
        const INT_ACC: bool = $F::INT_ACC;
        const P_SCALE: f32 = $F::P_SCALE;
        type Operand = $F::Operand;
        type Sum = $F::Sum;

        #[inline(always)]
        fn takes(storage: &$crate::problem::Storage) -> bool {
            $F::takes(storage)
        }

        #[inline(always)]
        fn on<S: Isa>(s: S, storage: &$crate::problem::Storage) -> Option<S> {
            $F::on(s, storage)
        }

        #[inline(always)]
        fn headroom<S: Isa>(s: S) -> f32 {
            $F::headroom(s)
        }

        #[inline(always)]
        fn query_scratch(dtype: Dtype, dim: usize) -> usize {
            $F::query_scratch(dtype, dim)
        }

        #[inline(always)]
        fn reads_v(_dtype: Dtype) -> bool {
            false
        }

        /// That of the type, in its place.
        ///
        /// # Safety
        /// As [`Gemm::stage_v`] says.
        #[inline(always)]
        unsafe fn stage_v<S: Isa>(
            s: S,
            source: Source,
            n: usize,
            dim: usize,
            first: usize,
            to: *mut u8,
        ) -> bool {
            let to = to.wrapping_add($spare_groups * $F::staged_v_row(dim));
            // SAFETY: `n` rows of `dim` elements, and room for their groups (caller).
            unsafe { $F::stage_v(s, source, n, dim, first, to) }
        }

        #[inline(always)]
        fn add_score<S: Isa>(
            s: S,
            q: Operand<S, Self>,
            k: Operand<S, Self>,
            sum: Sum<S, Self>,
        ) -> Sum<S, Self> {
            $F::add_score(s, q, k, sum)
        }

        #[inline(always)]
        fn probabilities<S: Isa>(
            s: S,
            scores: [S::F32; MAX_PACK],
            running_max: S::F32,
            total: &mut Sum<S, Self>,
        ) -> Operand<S, Self> {
            $F::probabilities(s, scores, running_max, total)
        }

        #[inline(always)]
        fn add_value<S: Isa>(
            s: S,
            p: Operand<S, Self>,
            v: Operand<S, Self>,
            sum: Sum<S, Self>,
        ) -> Sum<S, Self> {
            $F::add_value(s, p, v, sum)
        }

        #[inline(always)]
        fn probability(word: u32, key: usize) -> f32 {
            $F::probability(word, key)
        }
    };
}
pub(super) use with_words_of;

/// [`Gemm::pack_query`] of `F` in a panel of `steps` steps, at least those of `F`: lines behind
/// them are zeros.
///
/// # Safety
/// As [`Gemm::pack_query`]; the panel has room for `steps` steps.
#[inline(always)]
pub(super) unsafe fn pack_query<S: Isa, F: Gemm>(
    s: S,
    steps: usize,
    source: Source,
    n: usize,
    dim: usize,
    lanes: usize,
    factor: f32,
    folding: Option<&Folding>,
    panel: *mut f32,
    scratch: *mut u8,
) -> bool {
    let [packed, whole] = [F::steps(dim), steps].map(|steps| (F::PANEL_HEADER + steps) * lanes);
    // SAFETY: the caller vouches for rows, panel and scratch.
    unsafe {
        if packed < whole {
            clear(panel.add(packed).cast(), (whole - packed) * size_of::<f32>());
        }
        F::pack_query(s, source, n, dim, lanes, factor, folding, panel, scratch)
    }
}
