//! How errors grow with the number of keys. The measurement takes a minute and prints a table:
//!
//! ```text
//! cargo test --test growth -- --ignored --nocapture | grep , > docs/error-growth.csv
//! python3 scripts/plot_error_growth.py docs/error-growth.csv docs/error-growth.svg
//! ```

mod common;
#[path = "common/store.rs"]
mod store;

use common::{KernelPath, Random, kernels, relative_rms, run};
use flash_attention::dtype::Dtype;
use flash_attention::problem::{Problem, Semantics, Tensors};
use flash_attention::view::{Layout, Quant, View, ViewMut};
use store::encode;

const DIM: usize = 64;
const QUERIES: usize = 16;

/// Normal data of one head, with the usual scale: relative root mean square errors over `QUERIES`
/// rows.
struct Data {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Data {
    fn new(keys: usize) -> Data {
        let mut random = Random(keys as u64);
        Data {
            q: random.normals(QUERIES * DIM),
            k: random.normals(keys * DIM),
            v: random.normals(keys * DIM),
        }
    }

    /// The errors of all kernels that `wanted` likes, with K and V stored as `dtype`.
    fn errors(&self, dtype: Dtype, wanted: impl Fn(&str) -> bool) -> Vec<(KernelPath, f64)> {
        let keys = self.k.len() / DIM;
        let ((k, k_step), (v, v_step)) = (encode(dtype, &self.k, DIM), encode(dtype, &self.v, DIM));
        let numbers = |bytes: &[u8], step: f32| -> Vec<f64> {
            let layout = Layout::dense(dtype, 1, keys, DIM).unwrap();
            // SAFETY: as many bytes, which outlive the view.
            let view = unsafe { View::new(bytes.as_ptr(), layout).unwrap() };
            (0..keys).flat_map(|j| view.get_row(0, 0, j)).map(|x| x * f64::from(step)).collect()
        };
        let exact = exact(&self.q, &numbers(&k, k_step), &numbers(&v, v_step));
        let quants = [Quant::per_tensor(&k_step), Quant::per_tensor(&v_step)];
        let mut errors = Vec::new();
        for kernel in kernels(dtype).filter(|kernel| wanted(&format!("{kernel:?}"))) {
            let mut o = vec![f32::NAN; QUERIES * DIM];
            let dense = |dtype, rows| Layout::dense(dtype, 1, rows, DIM).unwrap();
            // SAFETY: as many bytes, which outlive the problem.
            let stored = |data: &[u8]| unsafe { View::new(data.as_ptr(), dense(dtype, keys)).unwrap() };
            let (mut k, mut v) = (stored(&k), stored(&v));
            if dtype == Dtype::I8 {
                (k, v) = (k.quantised(quants[0]).unwrap(), v.quantised(quants[1]).unwrap());
            }
            let q = View::of(&self.q, dense(Dtype::F32, QUERIES)).unwrap();
            let tensors = Tensors::new(q, k, v, ViewMut::of(&mut o, dense(Dtype::F32, QUERIES)).unwrap());
            let scale = 1.0 / (DIM as f32).sqrt();
            run(&mut Problem::new(tensors, Semantics::with_scale(scale)).unwrap(), kernel, 1).unwrap();
            errors.push((kernel, relative_rms(&o, &exact)));
        }
        errors
    }
}

/// The definition in f64, one pass over keys and values for all queries.
fn exact(q: &[f32], k: &[f64], v: &[f64]) -> Vec<f64> {
    let scale = f64::from(1.0 / (DIM as f32).sqrt());
    let mut o = vec![0.0; q.len()];
    for (q, o) in q.chunks(DIM).zip(o.chunks_mut(DIM)) {
        let scores: Vec<f64> = k
            .chunks(DIM)
            .map(|k| scale * q.iter().zip(k).map(|(&q, k)| f64::from(q) * k).sum::<f64>())
            .collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut sum = 0.0;
        for (score, v) in scores.iter().zip(v.chunks(DIM)) {
            let p = (score - max).exp();
            sum += p;
            o.iter_mut().zip(v).for_each(|(o, v)| *o += p * v);
        }
        o.iter_mut().for_each(|o| *o /= sum);
    }
    o
}

/// Storage types, each with the families that compute with it.
const CASES: [(Dtype, &str); 5] = [
    (Dtype::F32, "-f32-"),
    (Dtype::F16, "-f16-"),
    (Dtype::Bf16, "-bf16-"),
    (Dtype::I8, "-i16-"),
    (Dtype::I8, "-i8-"),
];

#[test]
#[ignore = "a measurement, of a minute: see the top of this file"]
fn measure_up_to_a_million_keys() {
    println!("isa,family,path,keys,relative_rms");
    for keys in (10..=20).step_by(2).map(|log2| 1usize << log2) {
        let data = Data::new(keys);
        for (dtype, family) in CASES {
            for (kernel, error) in data.errors(dtype, |name| name.contains(family)) {
                let family = family.trim_matches('-');
                println!("{:?},{family},{:?},{keys},{error:.3e}", kernel.kernel, kernel.path);
            }
        }
    }
}

/// What the plot shows holds: the bounds of docs/numerics.md at a length where errors could have
/// grown 16 times.
#[test]
fn errors_grow_slowly() {
    let (short, long) = (Data::new(1 << 10), Data::new(1 << 14));
    for (dtype, family) in CASES {
        let errors = |data: &Data| data.errors(dtype, |name| name.contains(family));
        for ((kernel, before), (_, after)) in errors(&short).into_iter().zip(errors(&long)) {
            let most = match family {
                "-f32-" => 1e-6,
                "-bf16-" => 3e-3,
                "-f16-" => 5e-4,
                "-i16-" => 3e-4,
                _ => 2e-2,
            };
            assert!(after <= most, "{kernel:?}: {after:.1e} with 16384 keys");
            assert!(after <= 6.0 * before, "{kernel:?}: {before:.1e} with 1024 keys, {after:.1e} with 16384");
        }
    }
}
