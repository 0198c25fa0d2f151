//! What the core can do: independent multiply-adds of the family's own kind, nothing else.

use std::hint::black_box;
use std::time::Instant;

use flash_attention::kernel::{Kernel, Path};

/// FLOP/s of the instruction that the prefill kernel of `row` lives on, on the calling thread, for
/// about a tenth of a millisecond.
pub fn peak(row: &dyn Kernel) -> f64 {
    const STEPS: usize = 8_000;
    let lanes = row.lanes();
    let start = Instant::now();
    let chains = match lanes {
        #[cfg(target_arch = "x86_64")]
        _ if row.compute_type(Path::Prefill) == "bf16" => {
            // SAFETY: a row of this family is only available where its features are.
            let chains = unsafe { dot_bf16(STEPS) };
            // Each lane is a pair.
            return (4 * chains * lanes * STEPS) as f64 / start.elapsed().as_secs_f64();
        }
        #[cfg(target_arch = "x86_64")]
        _ if row.compute_type(Path::Prefill) == "i8" => {
            // SAFETY: as above; with 8 lanes, these are AVX-VNNI.
            let chains = unsafe { if lanes == 8 { dot_u8_i8_avx(STEPS) } else { dot_u8_i8(STEPS) } };
            // Each lane is four pairs.
            return (8 * chains * lanes * STEPS) as f64 / start.elapsed().as_secs_f64();
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a row with this many lanes is only available where its features are.
        16 => unsafe { fma_avx512(STEPS) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        8 => unsafe { fma_avx2(STEPS) },
        #[cfg(target_arch = "aarch64")]
        _ if row.isa() != c"scalar" => {
            // SAFETY: a row of this family is only available where its features are.
            let (chains, products) = unsafe {
                match row.compute_type(Path::Prefill) {
                    "bf16" => (arm::dot_bf16(STEPS), 2),
                    "i8" if row.isa() == c"neon-i8mm" => (arm::dot_u8_i8(STEPS), 4),
                    "i8" => (arm::dot_u8(STEPS), 4),
                    _ => (arm::fma(STEPS), 1),
                }
            };
            chains * products
        }
        _ => multiply_add(STEPS),
    };
    (2 * chains * lanes * STEPS) as f64 / start.elapsed().as_secs_f64()
}

macro_rules! probe_of {
    ($name:ident, $chains:literal, $features:literal, $splat:ident, $fma:ident) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        fn $name(steps: usize) -> usize {
            use core::arch::x86_64::*;
            let (a, b) = ($splat(black_box(0.999)), $splat(black_box(0.001)));
            let mut sums = [b; $chains];
            for _ in 0..steps {
                for sum in &mut sums {
                    *sum = $fma(*sum, a, b);
                }
            }
            black_box(sums);
            $chains
        }
    };
}
// Two pipes of four or five cycles need ten chains; a few more do no harm, spilling would.
probe_of!(fma_avx512, 16, "avx512f", _mm512_set1_ps, _mm512_fmadd_ps);
probe_of!(fma_avx2, 12, "avx2,fma", _mm256_set1_ps, _mm256_fmadd_ps);

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512bf16,avx512f")]
fn dot_bf16(steps: usize) -> usize {
    use core::arch::x86_64::*;
    const CHAINS: usize = 16;
    let a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(0.25)));
    let mut sums = [_mm512_set1_ps(0.0); CHAINS];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, a, a);
        }
    }
    black_box(sums);
    CHAINS
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512vnni,avx512f")]
fn dot_u8_i8(steps: usize) -> usize {
    use core::arch::x86_64::*;
    const CHAINS: usize = 16;
    let a = _mm512_set1_epi32(black_box(0x0102_0304));
    let mut sums = [_mm512_setzero_si512(); CHAINS];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, a, a);
        }
    }
    black_box(sums);
    CHAINS
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avxvnni,avx2")]
fn dot_u8_i8_avx(steps: usize) -> usize {
    use core::arch::x86_64::*;
    const CHAINS: usize = 12;
    let a = _mm256_set1_epi32(black_box(0x0102_0304));
    let mut sums = [_mm256_setzero_si256(); CHAINS];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm256_dpbusd_avx_epi32(*sum, a, a);
        }
    }
    black_box(sums);
    CHAINS
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use core::arch::aarch64::{float32x4_t, vdupq_n_f32};
    use core::arch::asm;
    use std::hint::black_box;

    /// Four pipes of four cycles need sixteen chains.
    const CHAINS: usize = 24;

    macro_rules! probe_of {
        ($name:ident, $feature:literal, $extension:literal, $instruction:literal) => {
            #[target_feature(enable = $feature)]
            #[target_feature(enable = "neon")]
            pub(super) fn $name(steps: usize) -> usize {
                let a = vdupq_n_f32(black_box(0.0));
                let mut sums: [float32x4_t; CHAINS] = [a; CHAINS];
                for _ in 0..steps {
                    for sum in &mut sums {
                        // SAFETY: the instruction changes one register; whoever calls this has the
                        // feature.
                        unsafe {
                            asm!(
                                concat!(".arch_extension ", $extension),
                                $instruction,
                                sum = inout(vreg) *sum,
                                a = in(vreg) a,
                                options(pure, nomem, nostack, preserves_flags)
                            );
                        }
                    }
                }
                black_box(sums);
                CHAINS
            }
        };
    }
    probe_of!(fma, "neon", "simd", "fmla {sum:v}.4s, {a:v}.4s, {a:v}.4s");
    probe_of!(dot_bf16, "bf16", "bf16", "bfdot {sum:v}.4s, {a:v}.8h, {a:v}.8h");
    probe_of!(dot_u8_i8, "i8mm", "i8mm", "usdot {sum:v}.4s, {a:v}.16b, {a:v}.16b");
    probe_of!(dot_u8, "dotprod", "dotprod", "udot {sum:v}.4s, {a:v}.16b, {a:v}.16b");
}

/// Without the instruction: a multiplication and an addition.
fn multiply_add(steps: usize) -> usize {
    let (a, b) = (black_box(0.999), black_box(0.001));
    let mut sums = [[b; 4]; 10];
    for _ in 0..steps {
        for sum in sums.as_flattened_mut() {
            *sum = *sum * a + b;
        }
    }
    black_box(sums);
    10
}
