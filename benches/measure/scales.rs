//! Caches of 8-bit integers, by what shares their scales and zeros: each with the same shape in
//! f32.

use flash_attention::dtype::Dtype;
use flash_attention::kernel::{self, Kernel};
use flash_attention::machine::Machine;
use flash_attention::plan::Plan;
use flash_attention::pool::Own;
use flash_attention::prepared::Prepared;
use flash_attention::problem::{Accuracy, Problem, Semantics, Tensors};
use flash_attention::view::{Array, Layout, Quant, View, ViewMut};

use crate::case::normal;
use crate::error::Sample;

/// Query heads, and heads of K and V.
const HEADS: [usize; 2] = [32, 8];

/// What shares scales of a tensor.
#[derive(Clone, Copy)]
pub struct Scales {
    name: &'static str,
    /// Tokens, and elements of a row, that share values; 0: all.
    group: [usize; 2],
    zeros: bool,
}

const fn scales(name: &'static str, tokens: usize, elements: usize) -> Scales {
    Scales { name, group: [tokens, elements], zeros: false }
}

const fn with_zeros(scales: Scales) -> Scales {
    Scales { zeros: true, ..scales }
}

/// A problem.
#[derive(Clone, Copy)]
pub struct Case {
    pub rows: usize,
    keys: usize,
    dim: usize,
    /// Of K and V; None: f32.
    kv: Option<[Scales; 2]>,
}

/// A problem and the least times that it is as fast as f32.
pub struct Bounded {
    pub case: Case,
    pub floor: f64,
}

pub fn cases() -> Vec<Bounded> {
    const HEAD: Scales = scales("a head", 0, 0);
    const TOKEN: Scales = scales("a token", 1, 0);
    const CHANNEL: Scales = scales("a channel", 0, 1);
    const GROUP: Scales = scales("32 channels", 0, 32);
    const TOKEN_GROUP: Scales = scales("a token and 32 channels", 1, 32);
    const TOKEN_FOUR: Scales = scales("a token and 4 channels", 1, 4);
    const TOKEN_THREE: Scales = scales("a token and 3 channels", 1, 3);
    const BLOCK: Scales = scales("32 tokens and a channel", 32, 1);
    let of = |kv, decode, prefill| [(1, decode, kv), (128, prefill, kv)];
    let z = with_zeros;
    let all = [
        of([HEAD, HEAD], 2.0, 1.25),
        of([CHANNEL, HEAD], 2.0, 1.25),
        of([HEAD, CHANNEL], 2.0, 1.25),
        of([CHANNEL, CHANNEL], 2.0, 1.25),
        of([GROUP, GROUP], 2.0, 1.25),
        of([z(CHANNEL), z(CHANNEL)], 2.0, 1.25),
        of([z(HEAD), z(HEAD)], 2.0, 1.25),
        of([z(TOKEN), z(CHANNEL)], 2.0, 1.25),
        of([TOKEN, TOKEN], 1.5, 0.9),
        of([z(TOKEN), z(TOKEN)], 1.5, 0.9),
        of([CHANNEL, TOKEN], 1.5, 0.9),
        of([TOKEN_GROUP, TOKEN_GROUP], 0.9, 0.9),
        of([z(TOKEN_GROUP), z(TOKEN_GROUP)], 0.9, 0.9),
        of([BLOCK, TOKEN], 0.9, 0.9),
        of([z(BLOCK), z(TOKEN_GROUP)], 0.9, 0.9),
        of([TOKEN_FOUR, TOKEN_FOUR], 0.9, 0.9),
        of([z(TOKEN_FOUR), z(TOKEN_FOUR)], 0.85, 0.9),
        of([TOKEN_THREE, TOKEN_THREE], 0.4, 0.7),
    ];
    let cases = all
        .into_iter()
        .flatten()
        .map(|(rows, floor, kv)| Bounded { case: Case { rows, keys: 4096, dim: 128, kv: Some(kv) }, floor });
    cases.collect()
}

impl Case {
    /// This case with K and V in f32.
    pub fn plain(&self) -> Case {
        Case { kv: None, ..*self }
    }

    pub fn name(&self) -> String {
        let Case { rows, keys, dim, kv } = *self;
        let of = |scales: Scales| format!("{}{}", scales.name, if scales.zeros { " with zeros" } else { "" });
        let kv = kv.map_or("f32".to_owned(), |[k, v]| format!("K {}, V {}", of(k), of(v)));
        format!("{} on {} x {rows} x {keys} x {dim}, {kv}", HEADS[0], HEADS[1])
    }

    pub fn flops(&self) -> f64 {
        (4 * HEADS[0] * self.rows * self.keys * self.dim) as f64
    }
}

/// K or V.
struct Stored {
    numbers: Vec<f32>,
    integers: Vec<i8>,
    quant: Option<Quant<'static>>,
}

impl Stored {
    fn new(case: &Case, scales: Option<Scales>, seed: u64) -> Stored {
        let n = HEADS[1] * case.keys * case.dim;
        let Some(Scales { group, zeros, .. }) = scales else {
            return Stored { numbers: normal(n, seed), integers: Vec::new(), quant: None };
        };
        let integers = normal(n, seed).into_iter().map(|x| (32.0 * x).clamp(-127.0, 127.0) as i8).collect();
        let cells = [(group[0], case.keys), (group[1], case.dim)]
            .map(|(group, all)| if group == 0 { 1 } else { all.div_ceil(group) });
        let of_head = cells[0] * cells[1];
        // A few bytes a case, which nobody misses.
        let list = |seed, scale: f32, least: f32| -> Array<'static, f32> {
            let numbers = normal(HEADS[1] * of_head, seed);
            Array::of(Vec::leak(numbers.into_iter().map(|x| scale * x.abs() + least).collect()))
        };
        let stride = [0, of_head, if group[0] == 0 { 0 } else { cells[1] }, usize::from(group[1] != 0)];
        let quant = Quant {
            scale: Some(list(seed + 10, 0.02, 0.01)),
            zero: zeros.then(|| list(seed + 20, 10.0, 1.0)),
            stride,
            group: group.map(|n| n.max(1)),
        };
        Stored { numbers: Vec::new(), integers, quant: Some(quant) }
    }

    fn view(&self, case: &Case) -> View<'_> {
        let layout = |dtype| Layout::dense(dtype, HEADS[1], case.keys, case.dim).expect("a size that fits");
        match self.quant {
            None => View::of(&self.numbers, layout(Dtype::F32)).expect("a view"),
            Some(quant) => {
                let view = View::of(&self.integers, layout(Dtype::I8)).expect("a view");
                view.quantised(quant).expect("scales")
            }
        }
    }
}

/// The tensors of a case.
pub struct Memory {
    case: Case,
    q: Vec<f32>,
    kv: [Stored; 2],
    o: Vec<f32>,
}

impl Memory {
    pub fn new(case: &Case) -> Memory {
        let n = HEADS[0] * case.rows * case.dim;
        let kv = [0, 1].map(|i| Stored::new(case, case.kv.map(|kv| kv[i]), 2 + i as u64));
        Memory { case: *case, q: normal(n, 1), kv, o: vec![0.0; n] }
    }

    fn layout(&self) -> Layout {
        Layout::dense(Dtype::F32, HEADS[0], self.case.rows, self.case.dim).expect("a size that fits")
    }

    fn problem(&mut self) -> Problem<'_> {
        let layout = self.layout();
        let q = View::of(&self.q, layout).expect("a view");
        let [k, v] = &self.kv;
        let (k, v) = (k.view(&self.case), v.view(&self.case));
        let o = ViewMut::of(&mut self.o, layout).expect("a view");
        let semantics = Semantics::with_scale((self.case.dim as f32).sqrt().recip());
        Problem::new(Tensors::new(q, k, v, o), semantics).expect("a consistent problem")
    }

    /// Largest error of what is in the output, against f64.
    pub fn error(&mut self) -> f64 {
        let sample = Sample::of(&self.problem());
        sample.worst(&View::of(&self.o, self.layout()).expect("a view"))
    }

    /// A function that computes the case once, and how it does.
    pub fn runner(&mut self, threads: usize) -> (Plan, &'static dyn Kernel, impl FnMut()) {
        let mut problem = self.problem();
        let row = kernel::select(problem.shape(), Accuracy::default()).expect("a kernel");
        let plan = Plan::new(problem.shape(), row, Machine::get(), threads).expect("a plan");
        let again = plan.clone();
        let run = move || {
            let mut prepared = Prepared::with_plan(&mut problem, again.clone());
            prepared.run_allocating(&Own).expect("scratch memory");
        };
        (plan, row, run)
    }
}
