//! Every row of the kernel table against f64, over a grid of shapes.

mod common;

use common::{Inputs, Size, is_tested, kernels, largest, max_error, relative_rms, rows, thin};
use flash_attention::dtype::Dtype;

const LENGTHS: [usize; 12] = [1, 2, 15, 16, 17, 31, 33, 64, 127, 128, 129, 257];
const DIMS: [usize; 12] = [1, 7, 8, 32, 40, 64, 80, 96, 128, 192, 256, 257];

/// The bound of issue and documentation: an error is at most this share of the largest |v| ...
const BOUND: f64 = 1e-5;
/// ... and at most twice the error of three-step f32 attention, with a few units in the last
/// place for shapes so small that the latter happens to be exact.
const AGAINST_THREE_STEPS: f64 = 2.0;
const ULPS: f64 = 4.0 * f32::EPSILON as f64;

fn check_f32(inputs: &Inputs<f32>) {
    let exact = inputs.exact();
    let plain = max_error(&inputs.three_steps(), &exact.o);
    let v = largest(&inputs.v);
    for kernel in kernels(Dtype::F32) {
        let out = inputs.run(kernel, 1);
        let error = max_error(&out.o, &exact.o);
        assert!(error <= BOUND * v, "{kernel:?} {:?}: error {error:.1e}", inputs.size);
        let twice = AGAINST_THREE_STEPS * plain + ULPS * v;
        assert!(error <= twice, "{kernel:?} {:?}: error {error:.1e}, three steps {plain:.1e}", inputs.size);
        let lse = max_error(&out.lse, &exact.lse);
        assert!(lse <= BOUND, "{kernel:?} {:?}: LSE error {lse:.1e}", inputs.size);
    }
}

/// What probabilities in so many bits may cost.
const IN_8_BITS: f64 = 2e-2;
const IN_14_BITS: f64 = 5e-4;

fn check_i8(inputs: &Inputs<i8>) {
    let exact = inputs.exact();
    let mut scalar = Vec::new();
    // Worst first, so that the others can be compared with the scalar row.
    for kernel in kernels(Dtype::I8).collect::<Vec<_>>().into_iter().rev() {
        let out = inputs.run(kernel, 1).o;
        let error = relative_rms(&out, &exact.o);
        let family = kernel.kernel.compute_type(kernel.path);
        if family != "f32" {
            // Of what outputs of that many values are like, if these happen to be smaller.
            let rms = |x: &[f64]| (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64).sqrt();
            let v: Vec<f64> = inputs.v.iter().map(|&x| f64::from(x) * f64::from(inputs.scales[2])).collect();
            let usual = rms(&v) / (inputs.size.len_kv as f64).sqrt();
            // A handful of numbers has no mean to speak of.
            let few = if out.len() < 256 { 4.0 } else { 1.0 };
            let rounding = if family == "i8" { IN_8_BITS } else { IN_14_BITS };
            let bound = few * rounding * (usual / rms(&exact.o)).max(1.0);
            assert!(error <= bound, "{kernel:?} {:?}: relative RMS error {error:.1e}", inputs.size);
            continue;
        }
        assert!(error <= 1e-4, "{kernel:?} {:?}: relative RMS error {error:.1e}", inputs.size);
        if scalar.is_empty() {
            scalar = out.iter().map(|&x| f64::from(x)).collect();
        }
        let difference = relative_rms(&out, &scalar);
        assert!(difference <= 1e-5, "{kernel:?} {:?}: {difference:.1e} from scalar", inputs.size);
    }
}

fn grid(dims: &[usize]) {
    for &dim in dims {
        let lengths = LENGTHS.into_iter().flat_map(|len_q| LENGTHS.map(|len_kv| (len_q, len_kv)));
        // Others for each head size, if not all.
        for (len_q, len_kv) in lengths.skip(dim % thin()).step_by(thin()) {
            if thin() > 1 && len_q * len_kv * dim > 1 << 20 {
                continue;
            }
            let seed = (dim * 1000 + len_q) as u64 * 1000 + len_kv as u64;
            let inputs = Inputs::normal(Size::new(1, len_q, len_kv, dim), seed);
            check_f32(&inputs);
            check_i8(&inputs.quantised());
            let causal = inputs.causal();
            check_f32(&causal);
            check_i8(&causal.quantised());
        }
    }
}

// Several tests, so that they run on all cores.
#[test]
fn grid_of_small_dims() {
    grid(&DIMS[..6]);
}

#[test]
fn grid_of_middle_dims() {
    grid(&DIMS[6..9]);
}

#[test]
fn grid_of_dim_192() {
    grid(&DIMS[9..10]);
}

#[test]
fn grid_of_dim_256() {
    grid(&DIMS[10..11]);
}

#[test]
fn grid_of_dim_257() {
    grid(&DIMS[11..]);
}

#[test]
fn every_block_size_is_right() {
    let sizes = [0, 1, 2, 3, 7, 16, 17, 32, 33, 64, 100, usize::MAX];
    let blocks = sizes.into_iter().flat_map(|block_q| sizes.map(|block_kv| (block_q, block_kv)));
    for (block_q, block_kv) in blocks.step_by(thin()) {
        let inputs = Inputs::normal(Size::new(2, 70, 65, 24), 5).blocks(block_q, block_kv);
        check_f32(&inputs);
        check_i8(&inputs.quantised());
        check_f32(&inputs.clone().causal());
        check_i8(&inputs.causal().quantised());
    }
}

#[test]
fn long_and_thin() {
    for (len_q, len_kv, dim) in [(3, 20_000, 8), (2_000, 5, 8), (1, 3_000, 1), (5, 5, 3_000)] {
        let inputs = Inputs::normal(Size::new(1, len_q, len_kv, dim), 6);
        check_f32(&inputs);
        check_i8(&inputs.quantised());
        check_f32(&inputs.causal());
    }
}

#[test]
fn the_table_has_rows_for_every_type_and_ends_with_scalar() {
    for dtype in [Dtype::F32, Dtype::I8] {
        let names: Vec<_> = rows(dtype).map(|row| row.isa().to_str().unwrap()).collect();
        assert_eq!(names.last() == Some(&"scalar"), is_tested(c"scalar"));
        #[cfg(target_arch = "x86_64")]
        {
            let has = |name| names.contains(&name);
            let has_avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            assert_eq!(has("avx2"), has_avx2 && is_tested(c"avx2"));
            assert_eq!(has("avx512"), is_x86_feature_detected!("avx512bw") && is_tested(c"avx512"));
        }
        #[cfg(target_arch = "aarch64")]
        assert_eq!(names.contains(&"neon"), is_tested(c"neon"));
        #[cfg(target_arch = "wasm32")]
        {
            let is_compiled = cfg!(target_feature = "simd128");
            assert_eq!(names.contains(&"simd128"), is_compiled && is_tested(c"simd128"));
        }
    }
}
