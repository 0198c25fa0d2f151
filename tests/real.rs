//! Attention of a real model on real text, against the exact outputs that came with it.

mod common;

use std::fs;
use std::path::PathBuf;

use common::{Inputs, Size, kernels, largest, max_error, relative_rms};
use flash_attention::dtype::Dtype;
use flash_attention::problem::Semantics;

struct Set {
    inputs: Inputs<f32>,
    o: Vec<f64>,
    lse: Vec<f64>,
}

fn read<const N: usize, T>(name: &str, number: impl Fn([u8; N]) -> T) -> Vec<T> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples_c/data").join(name);
    let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    bytes.chunks_exact(N).map(|chunk| number(chunk.try_into().expect("N bytes"))).collect()
}

/// From `[seq][head][dim]`, as the model has it, to `[head][seq][dim]`.
fn by_head<T: Copy>(x: &[T], seq: usize, heads: usize, dim: usize) -> Vec<T> {
    let at = |h: usize, i: usize| &x[(i * heads + h) * dim..][..dim];
    (0..heads).flat_map(|h| (0..seq).flat_map(move |i| at(h, i).iter().copied())).collect()
}

fn sets() -> Vec<Set> {
    let index = read("index.txt", |[byte]: [u8; 1]| byte);
    let index = String::from_utf8(index).expect("index.txt is UTF-8");
    let mut sets = Vec::new();
    for line in index.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split(' ').collect();
        let &[name, heads, len_q, len_kv, dim, scale, causal_too] = fields.as_slice() else {
            panic!("not understood: {line}")
        };
        let [heads, len_q, len_kv, dim] = [heads, len_q, len_kv, dim].map(|n| n.parse().expect("a size"));
        let f32s = |suffix: &str, seq| {
            by_head(&read(&format!("{name}_{suffix}.f32"), f32::from_le_bytes), seq, heads, dim)
        };
        let f64s = |suffix: &str| read(&format!("{name}_{suffix}.f64"), f64::from_le_bytes);
        let inputs = Inputs {
            size: Size::new(heads, len_q, len_kv, dim),
            q: f32s("q", len_q),
            k: f32s("k", len_kv),
            v: f32s("v", len_kv),
            scales: [1.0; 3],
            semantics: Semantics::with_scale(scale.parse().expect("a scale")),
        };
        if causal_too == "1" {
            let o = by_head(&f64s("out_causal"), len_q, heads, dim);
            sets.push(Set { inputs: inputs.clone().causal(), o, lse: f64s("lse_causal") });
        }
        let o = by_head(&f64s("out"), len_q, heads, dim);
        sets.push(Set { inputs, o, lse: f64s("lse") });
    }
    sets
}

#[test]
fn f32_is_as_exact_as_on_random_data() {
    let sets = sets();
    assert_eq!(sets.len(), 6);
    for Set { inputs, o, lse } in sets {
        let plain = max_error(&inputs.three_steps(), &o);
        for kernel in kernels(Dtype::F32) {
            let out = inputs.run(kernel, 2);
            let error = max_error(&out.o, &o);
            assert!(error <= 1e-5 * largest(&inputs.v), "{kernel:?} {:?}: {error:.1e}", inputs.size);
            assert!(error <= 2.0 * plain, "{kernel:?} {:?}: {error:.1e} against {plain:.1e}", inputs.size);
            let error = max_error(&out.lse, &lse);
            assert!(error <= 1e-5, "{kernel:?} {:?}: LSE {error:.1e}", inputs.size);
        }
    }
}

#[test]
fn i8_adds_nothing_to_the_error_of_quantising() {
    for Set { inputs, o, .. } in sets() {
        let quantised = inputs.quantised();
        let exact = quantised.exact().o;
        // One scale for all heads of a tensor is coarse on real data; the kernel must not add to
        // it.
        let cost = relative_rms(&exact.iter().map(|&x| x as f32).collect::<Vec<_>>(), &o);
        for kernel in kernels(Dtype::I8) {
            let out = quantised.run(kernel, 2).o;
            let own = relative_rms(&out, &exact);
            let bound = match kernel.kernel.compute_type(kernel.path) {
                "i8" => 2e-2,
                "i16" => 3e-4,
                _ => 1e-4,
            };
            assert!(own <= bound, "{kernel:?} {:?}: {own:.1e}", inputs.size);
            let model = relative_rms(&out, &o);
            assert!(
                model <= 1.001 * cost + own && model <= 0.15,
                "{kernel:?} {:?}: {model:.1e}",
                inputs.size
            );
        }
    }
}
