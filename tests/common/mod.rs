//! Inputs, runs and oracles shared by the integration tests.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part of this")]

use std::ffi::CStr;

use flash_attention::dtype::Dtype;
use flash_attention::error::Error;
use flash_attention::kernel::{Kernel, Path};
use flash_attention::machine::Machine;
use flash_attention::plan::Plan;
use flash_attention::pool::Own;
use flash_attention::prepared::Prepared;
use flash_attention::problem::{Batch, Logits, Position, Problem, Semantics, Shape, Tensors};
use flash_attention::reference::{self, Answer};
use flash_attention::view::{Element, Layout, Quant, View, ViewMut};

/// A 64-bit congruential generator (Knuth's constants); the same numbers everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    /// In the open interval from 0 to 1.
    pub fn uniform(&mut self) -> f64 {
        (f64::from(self.bits()) + 0.5) / 4_294_967_296.0
    }

    /// Normally distributed (Box and Muller 1958).
    pub fn normal(&mut self) -> f32 {
        ((-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()) as f32
    }

    pub fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.uniform() * n as f64) as usize
    }
}

/// Sizes of dense tensors, `[heads][len][dim]`.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub heads: usize,
    pub len_q: usize,
    pub len_kv: usize,
    pub dim: usize,
}

impl Size {
    pub fn new(heads: usize, len_q: usize, len_kv: usize, dim: usize) -> Size {
        Size { heads, len_q, len_kv, dim }
    }

    pub fn queries(&self) -> usize {
        self.heads * self.len_q * self.dim
    }

    pub fn keys(&self) -> usize {
        self.heads * self.len_kv * self.dim
    }
}

/// Dense Q, K, V.
#[derive(Clone, Debug)]
pub struct Inputs<T> {
    pub size: Size,
    pub q: Vec<T>,
    pub k: Vec<T>,
    pub v: Vec<T>,
    /// What one step of Q, K and V stands for.
    pub scales: [f32; 3],
    pub semantics: Semantics,
}

/// Output and log-sum-exp.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    pub o: Vec<f32>,
    pub lse: Vec<f32>,
}

impl Inputs<f32> {
    /// Normal data with the usual scale.
    pub fn normal(size: Size, seed: u64) -> Self {
        let mut random = Random(seed);
        Inputs {
            size,
            q: random.normals(size.queries()),
            k: random.normals(size.keys()),
            v: random.normals(size.keys()),
            scales: [1.0; 3],
            semantics: Semantics::with_scale(1.0 / (size.dim as f32).sqrt()),
        }
    }

    /// Symmetric 8-bit numbers with one scale a tensor.
    pub fn quantised(&self) -> Inputs<i8> {
        let [(q, q_scale), (k, k_scale), (v, v_scale)] = [&self.q, &self.k, &self.v].map(|x| {
            let largest = x.iter().fold(0f32, |m, x| m.max(x.abs()));
            let scale = if largest > 0.0 { largest / 127.0 } else { 1.0 };
            (x.iter().map(|x| (x / scale).round() as i8).collect::<Vec<i8>>(), scale)
        });
        Inputs { size: self.size, q, k, v, scales: [q_scale, k_scale, v_scale], semantics: self.semantics }
    }

    /// Plain three-step attention in f32: scores, softmax, product, each rounded; what a careful
    /// user would write with a matrix library.
    pub fn three_steps(&self) -> Vec<f32> {
        let Size { heads, len_q, len_kv, dim } = self.size;
        let right = self.semantics.window.right;
        assert!(self.semantics.window.left.is_none() && right.is_none_or(|right| right == 0));
        let mut out = vec![0.0; self.size.queries()];
        let mut p = vec![0f32; len_kv];
        for h in 0..heads {
            for i in 0..len_q {
                let q = &self.q[(h * len_q + i) * dim..][..dim];
                let o = &mut out[(h * len_q + i) * dim..][..dim];
                let seen = match right {
                    None => len_kv,
                    Some(_) => (self.q_pos() + i as i64 + 1).clamp(0, len_kv as i64) as usize,
                };
                let rows = |x: &[f32]| x[h * len_kv * dim..][..seen * dim].to_vec();
                let p = &mut p[..seen];
                for (p, k) in p.iter_mut().zip(rows(&self.k).chunks(dim)) {
                    *p = self.semantics.softmax_scale * q.iter().zip(k).map(|(q, k)| q * k).sum::<f32>();
                }
                let max = p.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let mut sum = 0.0;
                for p in p.iter_mut() {
                    *p = (*p - max).exp();
                    sum += *p;
                }
                for (p, v) in p.iter().zip(rows(&self.v).chunks(dim)) {
                    for (o, v) in o.iter_mut().zip(v) {
                        *o += p / sum * v;
                    }
                }
            }
        }
        out
    }
}

impl<T: Element> Inputs<T> {
    /// The same inputs, causal: the last query is on the last key.
    pub fn causal(mut self) -> Self {
        self.semantics = self.semantics.causal();
        self
    }

    /// Key position of query row 0.
    pub fn q_pos(&self) -> i64 {
        match self.semantics.q_pos {
            Position::At(position) => position,
            Position::End => self.size.len_kv as i64 - self.size.len_q as i64,
        }
    }

    /// With tiles of these sizes.
    pub fn blocks(mut self, block_q: usize, block_kv: usize) -> Self {
        self.semantics = Semantics { block_q, block_kv, ..self.semantics };
        self
    }

    /// Hands a validated problem on these inputs to `f`; its outputs, filled with NaN before.
    pub fn with_problem(&self, f: impl FnOnce(&mut Problem)) -> Output {
        let Size { heads, len_q, len_kv, dim } = self.size;
        let mut output =
            Output { o: vec![f32::NAN; self.size.queries()], lse: vec![f32::NAN; heads * len_q] };
        let quants = self.scales.each_ref().map(Quant::per_tensor);
        let view = |data, len, which: usize| {
            let view = View::of(data, layout::<T>(heads, len, dim)).unwrap();
            if T::DTYPE == Dtype::I8 { view.quantised(quants[which]).unwrap() } else { view }
        };
        let tensors = Tensors {
            q: view(&self.q, len_q, 0),
            k: view(&self.k, len_kv, 1),
            v: view(&self.v, len_kv, 2),
            o: ViewMut::of(&mut output.o, layout::<f32>(heads, len_q, dim)).unwrap(),
            lse: Some(ViewMut::of(&mut output.lse, layout::<f32>(heads, len_q, 1)).unwrap()),
            batch: Batch::default(),
            logits: Logits::default(),
            weights: None,
        };
        f(&mut Problem::new(tensors, self.semantics).unwrap());
        output
    }

    /// What `kernel` computes with `threads` threads.
    pub fn run(&self, kernel: KernelPath, threads: usize) -> Output {
        self.with_problem(|problem| run(problem, kernel, threads).unwrap())
    }

    /// What f64 computes.
    pub fn exact(&self) -> Answer {
        let mut answer = None;
        self.with_problem(|problem| answer = Some(reference::attention(problem)));
        answer.unwrap()
    }
}

/// A row of the table, on one of its paths: all of them compute every problem, whichever the plan
/// would choose for it.
#[derive(Clone, Copy)]
pub struct KernelPath {
    pub kernel: &'static dyn Kernel,
    pub path: Path,
}

impl KernelPath {
    pub fn plan(self, shape: &Shape, threads: usize) -> Result<Plan, Error> {
        Plan::on(self.path, shape, self.kernel, Machine::get(), threads)
    }
}

impl std::fmt::Debug for KernelPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}-{:?}", self.kernel, self.path)
    }
}

/// Every path of every row of the table that this machine runs, best row first.
pub fn kernels(dtype: Dtype) -> impl Iterator<Item = KernelPath> {
    rows(dtype).flat_map(|row| [Path::Prefill, Path::Decode].map(|path| KernelPath { kernel: row, path }))
}

pub fn run(problem: &mut Problem, kernel: KernelPath, threads: usize) -> Result<(), Error> {
    let plan = kernel.plan(problem.shape(), threads)?;
    Prepared::with_plan(problem, plan).run_allocating(&Own)
}

pub fn layout<T: Element>(heads: usize, len: usize, dim: usize) -> Layout {
    Layout::dense(T::DTYPE, heads, len, dim).unwrap()
}

/// The rows of the table that this machine runs and that compute with such tensors.
pub fn rows(dtype: Dtype) -> impl Iterator<Item = &'static dyn Kernel> {
    let rows = flash_attention::kernel::available().filter(|row| is_tested(row.isa()));
    rows.filter(move |row| row.takes_types([dtype; 3]))
}

/// Whether kernels of this instruction set are tested. The environment variable `FA_TEST_ISA`
/// limits tests to names with one of these beginnings, separated by commas;
/// `scripts/test_emulated.sh` sets it.
pub fn is_tested(isa: &CStr) -> bool {
    let begins = std::env::var("FA_TEST_ISA").unwrap_or_default();
    begins.split(',').any(|begin| isa.to_bytes().starts_with(begin.as_bytes()))
}

/// Whether an instruction set multiplies 8-bit integers with numbers of 16 bits: on both paths of a
/// kernel, or those of Arm in decode.
pub fn has_integers(isa: &CStr) -> bool {
    ![c"scalar", c"neon"].contains(&isa)
}

/// Tests with many samples take one in `share()` of them: the environment variable `FA_TEST_SHARE`,
/// or
/// 1. It is meant for slow machines, such as emulated ones. Some samples are periodic, so it should
///    be a prime number.
pub fn share() -> usize {
    std::env::var("FA_TEST_SHARE").map_or(1, |share| share.parse().expect("FA_TEST_SHARE is no number"))
}

/// Tests take one in so many of the cases of a grid, and no cases that are large, where this is not
/// 1: the environment variable `FA_TEST_THIN`. It is meant for instructions that are emulated one
/// by one, which are a thousand times as slow (`tests/emulated.rs`); a prime number, as for
/// [`share`].
pub fn thin() -> usize {
    std::env::var("FA_TEST_THIN").map_or(1, |thin| thin.parse().expect("FA_TEST_THIN is no number"))
}

/// Largest absolute difference; infinite if something is NaN in one only.
pub fn max_error(out: &[f32], exact: &[f64]) -> f64 {
    assert_eq!(out.len(), exact.len());
    let difference = |(&x, &y): (&f32, &f64)| match (f64::from(x), y) {
        (x, y) if x == y || (x.is_nan() && y.is_nan()) => 0.0,
        (x, y) if x.is_nan() || y.is_nan() => f64::INFINITY,
        (x, y) => (x - y).abs(),
    };
    out.iter().zip(exact).map(difference).fold(0.0, f64::max)
}

/// RMS of the difference over RMS of the exact values.
pub fn relative_rms(out: &[f32], exact: &[f64]) -> f64 {
    assert_eq!(out.len(), exact.len());
    let difference: f64 = out.iter().zip(exact).map(|(&x, &y)| (f64::from(x) - y).powi(2)).sum();
    let square: f64 = exact.iter().map(|y| y * y).sum();
    if difference == 0.0 { 0.0 } else { (difference / square).sqrt() }
}

pub fn largest(values: &[f32]) -> f64 {
    values.iter().fold(0.0, |m, x| m.max(f64::from(x.abs())))
}

/// The same bits, NaN included.
pub fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}
