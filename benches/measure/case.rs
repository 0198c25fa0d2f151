//! One shape of attention: its data, its problem, its work.

use flash_attention::dtype::Dtype;
use flash_attention::kernel::{Kernel, Path};
use flash_attention::machine::Machine;
use flash_attention::plan::Plan;
use flash_attention::pool::Own;
use flash_attention::prepared::Prepared;
use flash_attention::problem::{Accuracy, Pages, Position, Problem, Semantics, Tensors, Weights, Window};
use flash_attention::view::{Array, Layout, Quant, View, ViewMut};

use crate::error::Sample;
use crate::report::Work;
use crate::store::encode;

/// What the data looks like.
#[derive(Clone, Copy, PartialEq)]
pub enum Data {
    /// Normal numbers.
    Normal,
    /// Scores that rise along the keys, so that every block moves every row's maximum.
    Rising,
}

/// A shape.
#[derive(Clone)]
pub struct Case {
    pub dtype: Dtype,
    /// The type of the queries, if it is another one.
    pub query: Option<Dtype>,
    pub heads: usize,
    /// Query heads that share a head of K and V.
    pub group: usize,
    pub len_q: usize,
    pub len_kv: usize,
    pub dim: usize,
    /// Elements of a row of V, which are the first ones of the row of K: multi-head latent
    /// attention (DeepSeek-V2, arXiv:2405.04434). 0: V is a tensor of its own, with `dim` elements.
    pub latent: usize,
    pub causal: bool,
    /// Keys that a query sees, itself the last; 0: all.
    pub window: usize,
    /// Heads interleaved, [seq][head][dim], with this many bytes from one row to the next;
    /// 0: dense [head][seq][dim].
    pub row_stride: usize,
    /// Heads interleaved, `[token][head][dim]`, without gaps.
    pub token_first: bool,
    /// Keys of a page of K and V, which lie in no order; 0: no pages.
    pub page: usize,
    /// Whether K and V are `[head][dim][key]`.
    pub transposed: bool,
    /// Whether each 8-bit row of K has a scale of its own; else one is for all.
    pub per_token: bool,
    /// How far queries and probabilities may be rounded.
    pub accuracy: Accuracy,
    /// Keys of a block; 0: the plan chooses.
    pub block: usize,
    /// Query rows of a tile; 0: the plan chooses.
    pub rows: usize,
    pub data: Data,
    /// Whether probabilities of all heads and rows are written.
    pub weights: bool,
    /// The way through the kernels; None: the plan chooses.
    pub path: Option<Path>,
}

impl Case {
    /// f32, dense, not causal, as many queries as keys.
    pub const fn square(heads: usize, len: usize, dim: usize) -> Case {
        Case {
            dtype: Dtype::F32,
            query: None,
            heads,
            group: 1,
            len_q: len,
            len_kv: len,
            dim,
            latent: 0,
            causal: false,
            window: 0,
            row_stride: 0,
            token_first: false,
            page: 0,
            transposed: false,
            per_token: false,
            accuracy: Accuracy::AsStored,
            block: 0,
            rows: 0,
            data: Data::Normal,
            weights: false,
            path: None,
        }
    }

    /// Floating-point operations, of visible pairs only.
    pub fn flops(&self) -> f64 {
        let pairs: usize = if self.window > 0 {
            self.len_q * self.window
        } else if self.causal {
            (0..self.len_q).map(|i| (i + 1 + self.len_kv).saturating_sub(self.len_q)).sum()
        } else {
            self.len_q * self.len_kv
        };
        (2 * self.heads * pairs * (self.dim + self.dim_v())) as f64
    }

    /// What a call does.
    pub fn work(&self) -> Work {
        let keys = match self.window {
            0 => self.len_kv,
            window => self.len_kv.min(window + self.len_q - 1),
        };
        let row = |dim| self.dtype.row_bytes(dim).unwrap_or(0);
        // Latent values are a part of the keys.
        let of_key = row(self.dim) + if self.latent > 0 { 0 } else { row(self.dim) };
        let bytes = (self.kv_heads() * keys * of_key) as f64;
        Work { flops: self.flops(), tokens: Some(self.len_q), bytes: Some(bytes) }
    }

    /// Refuses, in words, what cannot be measured.
    pub fn check(&self) -> Result<(), String> {
        let Case { heads, group, len_q, len_kv, dim, row_stride, .. } = *self;
        for (name, n) in
            [("heads", heads), ("group", group), ("len_q", len_q), ("len_kv", len_kv), ("dim", dim)]
        {
            if n == 0 {
                return Err(format!("{name} is 0, not at least 1"));
            }
        }
        if !heads.is_multiple_of(group) {
            return Err(format!(
                "heads {heads} is not a multiple of group {group}, the heads that share one of K and V"
            ));
        }
        let block = self.dtype.block();
        if !dim.is_multiple_of(block) {
            return Err(format!(
                "dim {dim} is not a multiple of {block}, the elements of a block of this type"
            ));
        }
        // In floating point, as nothing has been found to fit yet.
        let size = |n: usize, bytes: f64| n as f64 * bytes;
        if row_stride != 0 && (self.dtype != Dtype::F32 || row_stride % 4 != 0) {
            return Err(format!("stride {row_stride} is for f32, and a multiple of 4"));
        }
        if row_stride != 0 && size(heads, 4.0) * dim as f64 > row_stride as f64 {
            return Err(format!("stride {row_stride} is less than the bytes of {heads} heads of {dim}"));
        }
        let row =
            |heads: usize| if row_stride == 0 { size(heads, 4.0) * dim as f64 } else { row_stride as f64 };
        // In f32 and as they are stored, and the output; those of another call, for comparisons.
        let queries = size(len_q, 3.0) * row(heads);
        let keys = size(len_kv, 4.0) * row(heads / group);
        let needed = 2.0 * (queries + keys);
        let available = available_bytes();
        match needed > available {
            true => Err(format!(
                "the tensors of {len_q} queries on {len_kv} keys, {heads} heads of {dim}, would take {} to \
                 measure, and {} are available",
                amount(needed),
                amount(available)
            )),
            false => Ok(()),
        }
    }

    /// Elements of a row of V and of the output.
    pub fn dim_v(&self) -> usize {
        if self.latent > 0 { self.latent } else { self.dim }
    }

    /// In a few words.
    pub fn name(&self) -> String {
        let mut name = format!("{} x {} x {} x {}", self.heads, self.len_q, self.len_kv, self.dim);
        for (is, word) in [
            (self.group > 1, format!(", {} a kv head", self.group)),
            (self.latent > 0, format!("/{}", self.latent)),
            (self.causal, " causal".to_owned()),
            (self.token_first, " token first".to_owned()),
            (self.window > 0, format!(" window {}", self.window)),
            (self.row_stride != 0, format!(" stride {}", self.row_stride)),
            (self.page > 0, format!(" pages of {}", self.page)),
            (self.transposed, " transposed".to_owned()),
            (self.data == Data::Rising, " rising".to_owned()),
            (self.dtype != Dtype::F32, format!(" {:?}", self.dtype)),
            (self.per_token, " per token".to_owned()),
            (self.accuracy == Accuracy::Precise, " precise".to_owned()),
            (self.accuracy == Accuracy::Fast, " fast".to_owned()),
            (self.weights, " weights".to_owned()),
            (self.path == Some(Path::Prefill), " prefill".to_owned()),
            (self.path == Some(Path::Decode), " decode".to_owned()),
        ] {
            if is {
                name += &word;
            }
        }
        name
    }

    pub fn semantics(&self) -> Semantics {
        let semantics = Semantics {
            block_q: self.rows,
            block_kv: self.block,
            ..Semantics::with_scale((self.dim as f32).sqrt().recip())
        };
        match self.window {
            0 if self.causal => semantics.causal(),
            0 => semantics,
            keys => Semantics {
                window: Window { left: Some(keys as u64 - 1), right: Some(0) },
                q_pos: Position::End,
                ..semantics
            },
        }
    }

    pub fn kv_heads(&self) -> usize {
        self.heads / self.group
    }

    fn layout(&self, dtype: Dtype, heads: usize, len: usize, dim: usize) -> Layout {
        let dense = Layout::dense(dtype, heads, len, dim).expect("a size that fits");
        match self.row_stride {
            0 if self.token_first => {
                let row = dtype.row_bytes(dim).expect("a size that fits");
                Layout { stride: [heads * len * row, row, heads * row], ..dense }
            }
            0 => dense,
            stride => {
                let row = dtype.row_bytes(self.dim).expect("a size that fits");
                Layout { stride: [len * stride, row, stride], ..dense }
            }
        }
    }

    /// Of K and V, whose pages are `[page][head][key]`; transposed, they are not in pages.
    fn layout_kv(&self) -> Layout {
        let (heads, page) = (self.kv_heads(), self.page);
        let dense = self.layout(self.dtype, heads, self.len_kv, self.dim);
        if self.transposed {
            let element = self.dtype.block_bytes();
            let Layout { stride: [entry, head, _], .. } = dense;
            return Layout { stride: [entry, head, element], stride_dim: self.len_kv * element, ..dense };
        }
        if page == 0 {
            return dense;
        }
        let row = self.dtype.row_bytes(self.dim).expect("a size that fits");
        Layout {
            extent: [self.len_kv / page, heads, page],
            stride: [heads * page * row, page * row, row],
            ..dense
        }
    }

    /// Elements of an array that holds `len` rows of as many heads.
    fn elements(&self, heads: usize, len: usize) -> usize {
        match self.row_stride {
            0 => heads * len * self.dim,
            stride => len * stride / 4,
        }
    }
}

/// The tensors of a case.
pub struct Arrays {
    case: Case,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// The same as they are stored, and what 8-bit integers stand for.
    stored: [(Vec<u8>, Quant<'static>); 3],
    out: Vec<f32>,
    weights: Vec<f32>,
    /// The pages, in no order.
    table: Vec<i32>,
}

impl Arrays {
    pub fn new(case: &Case) -> Arrays {
        let mut q = normal(case.elements(case.heads, case.len_q), 1);
        let mut k = normal(case.elements(case.kv_heads(), case.len_kv), 2);
        let v = normal(case.elements(case.kv_heads(), case.len_kv), 3);
        if case.data == Data::Rising {
            q.fill(1.0);
            // One natural unit a key.
            let rise = 1.0 / (case.dim as f32).sqrt();
            for (i, k) in k.iter_mut().enumerate() {
                *k = rise * ((i / case.dim) % case.len_kv) as f32;
            }
        }
        let dtypes = [case.query.unwrap_or(case.dtype), case.dtype, case.dtype];
        let mut stored = [(&q, dtypes[0]), (&k, dtypes[1]), (&v, dtypes[2])].map(|(x, dtype)| {
            let (bytes, step) = encode(dtype, x, case.dim);
            // A few bytes a case, which nobody misses.
            (bytes, Quant::per_tensor(Box::leak(Box::new(step))))
        });
        if case.per_token {
            let quant = &mut stored[1].1;
            let step = quant.scale.map_or(1.0, |scale| scale.get(0));
            let scales = Vec::leak(vec![step; case.kv_heads() * case.len_kv]);
            let (scale, stride) = (Some(Array::of(scales)), [0, case.len_kv, 1, 0]);
            *quant = Quant { scale, zero: None, stride, group: [1; 2] };
        }
        let out = vec![0.0; case.elements(case.heads, case.len_q)];
        let weights = vec![0.0; if case.weights { case.heads * case.len_q * case.len_kv } else { 0 }];
        let pages = case.len_kv.checked_div(case.page).unwrap_or(0);
        Arrays { case: case.clone(), q, k, v, stored, out, weights, table: shuffled(pages) }
    }

    pub fn problem(&mut self) -> Problem<'_> {
        let case = self.case.clone();
        let [q, k, v] = &self.stored;
        let dtype_q = case.query.unwrap_or(case.dtype);
        let layout_q = case.layout(dtype_q, case.heads, case.len_q, case.dim);
        let v = if case.latent > 0 { k } else { v };
        let layout_v = Layout { dim: case.dim_v(), ..case.layout_kv() };
        let tensors = [(q, layout_q), (k, case.layout_kv()), (v, layout_v)];
        let [q, k, v] = tensors.map(|((data, quant), layout)| {
            // SAFETY: bytes of as many elements, which outlive the problem.
            let view = unsafe { View::new(data.as_ptr(), layout) }.expect("a view");
            match layout.dtype {
                Dtype::I8 | Dtype::U8 | Dtype::Q15 => view.quantised(*quant).expect("a scale"),
                _ => view,
            }
        });
        let layout = case.layout(Dtype::F32, case.heads, case.len_q, case.dim_v());
        let o = ViewMut::of(&mut self.out, layout).expect("arrays of the right size");
        let mut tensors = Tensors::new(q, k, v, o);
        if case.weights {
            let layout = Layout::dense(Dtype::F32, case.heads, case.len_q, case.len_kv);
            let view = ViewMut::of(&mut self.weights, layout.expect("a size that fits"));
            tensors.weights = Some(Weights { view: view.expect("as many"), heads: None, rows: None });
        }
        if case.page > 0 {
            let (table, stride) = (Array::of(&self.table), self.table.len());
            tensors.batch.pages =
                Some(Pages { table, starts: None, stride, head_stride: 0, len_kv: case.len_kv });
        }
        Problem::new(tensors, case.semantics()).expect("a consistent problem")
    }

    /// Largest error of what is in the output, against f64.
    pub fn error(&mut self) -> f64 {
        let sample = Sample::of(&self.problem());
        let case = &self.case;
        let layout = case.layout(Dtype::F32, case.heads, case.len_q, case.dim_v());
        sample.worst(&View::of(&self.out, layout).expect("arrays of the right size"))
    }

    /// K and V as they are stored.
    pub fn kv_bytes(&self) -> [&[u8]; 2] {
        [&self.stored[1].0, &self.stored[2].0]
    }

    pub fn qkv(&self) -> (&[f32], &[f32], &[f32]) {
        (&self.q, &self.k, &self.v)
    }

    /// A function that computes the case once, and how it does.
    pub fn runner(&mut self, row: &'static dyn Kernel, threads: usize) -> (Plan, impl FnMut()) {
        let path = self.case.path;
        let mut problem = self.problem();
        let (shape, machine) = (problem.shape(), Machine::get());
        let plan = match path {
            None => Plan::new(shape, row, machine, threads),
            Some(path) => Plan::on(path, shape, row, machine, threads),
        };
        let plan = plan.expect("a plan");
        let again = plan.clone();
        let run = move || {
            let mut prepared = Prepared::with_plan(&mut problem, again.clone());
            prepared.run_allocating(&Own).expect("scratch memory");
        };
        (plan, run)
    }
}

/// Memory that the system can give, or more than any has where it does not say.
fn available_bytes() -> f64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.map_or(isize::MAX as f64, |kib| kib * 1024.0)
}

/// Bytes for people, to three digits.
fn amount(bytes: f64) -> String {
    let units = ["bytes", "kB", "MB", "GB", "TB", "PB", "EB"];
    let power = ((bytes.max(1.0).log10() / 3.0) as usize).min(units.len() - 1);
    format!("{:.3} {}", bytes / 1000f64.powi(power as i32), units[power])
}

/// Normally distributed numbers (Box and Muller 1958 over a 64-bit congruential generator).
pub fn normal(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f64 + 0.5) / f64::from(1 << 24)
    };
    (0..n)
        .map(|_| ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32)
        .collect()
}

/// The numbers below `n`, in no order.
pub fn shuffled(n: usize) -> Vec<i32> {
    let mut numbers: Vec<i32> = (0..n as i32).collect();
    for i in (1..n).rev() {
        numbers.swap(i, i.wrapping_mul(40_503) % (i + 1));
    }
    numbers
}
