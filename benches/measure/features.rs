//! What engines need beyond plain attention: each with the plain problem that it is measured
//! against, so that what is left out by windows and masks, and what features cost, shows as a
//! ratio.

use flash_attention::dtype::Dtype;
use flash_attention::kernel::Kernel;
use flash_attention::machine::Machine;
use flash_attention::plan::Plan;
use flash_attention::pool::Own;
use flash_attention::prepared::Prepared;
use flash_attention::problem::{
    Batch, BlockMask, Blocks, Lists, Logits, Pages, Position, Problem, Semantics, Tensors, Window,
};
use flash_attention::view::{Array, Layout, View, ViewMut};

use crate::case::{normal, shuffled};
use crate::error::Sample;

/// One problem.
#[derive(Clone)]
pub struct Feature {
    pub name: &'static str,
    batch: usize,
    heads: [usize; 2],
    /// Query rows of a sequence, at its end.
    rows: usize,
    len: usize,
    dim: usize,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Plain,
    /// Causal, so many keys back.
    Window(u64),
    /// This share of 1 of blocks of 128 x 128.
    Blocks(usize),
    /// Causal, in lists: so many percent of blocks of so many rows and keys.
    Kept(usize, usize),
    /// Single keys, so many percent of all, beside a causal window of [`NEAR`].
    Columns(usize),
    /// Pages of 64 keys, of which each kv head reads so many percent.
    Selected(usize),
    Mask,
    BoolMask,
    /// A mask of f16, or of bool, that says what windows and lengths can say, or nearly.
    Says(Sees, Dtype),
    /// Such a mask of bool, with NaN in the values of keys that are hidden from all rows.
    HidesNan(Sees),
    Softcap,
    /// Keys in pages of so many tokens, in no order.
    Pages(usize),
    /// [batch][token][head][dim].
    Interleaved,
    /// Sequences of 1 to so many tokens.
    Ragged,
}

/// Which keys a mask leaves.
#[derive(Clone, Copy, PartialEq)]
enum Sees {
    All,
    /// Causal, so many keys back.
    Window(usize),
    /// Causal, so many keys back; and of each 1024 tokens the third quarter is an image, which sees
    /// all of itself.
    Images(usize),
    /// Two of three.
    Thirds,
}

impl Sees {
    /// Whether the query at `position` sees `key`.
    fn sees(self, position: usize, key: usize) -> bool {
        let is_in_window = |left: usize| key <= position && position - key <= left;
        let image = |at: usize| (at % 1024 / 256 == 2).then_some(at / 1024);
        match self {
            Sees::All => true,
            Sees::Window(left) => is_in_window(left),
            Sees::Images(left) => {
                is_in_window(left) || (image(position).is_some() && image(position) == image(key))
            }
            Sees::Thirds => key % 3 != 1,
        }
    }
}

/// A feature, what it is measured against, threads, the least and the wanted share of the plain
/// rate.
pub struct Pair {
    pub feature: Feature,
    pub plain: Feature,
    pub threads: usize,
    pub floor: f64,
    pub goal: Option<f64>,
}

pub fn pairs() -> Vec<Pair> {
    let plain =
        |len, dim| Feature { name: "plain", batch: 1, heads: [1, 1], rows: len, len, dim, kind: Kind::Plain };
    let of = |name, len, kind| Feature { name, kind, ..plain(len, 64) };
    let pair = |feature: Feature, floor, goal| Pair {
        plain: Feature { kind: Kind::Plain, name: "plain", ..feature.clone() },
        feature,
        threads: 1,
        floor,
        goal,
    };
    let grouped = Feature {
        batch: 1,
        heads: [32, 8],
        kind: Kind::Interleaved,
        ..of("32 heads on 8", 2048, Kind::Plain)
    };
    let ragged = Feature { batch: 32, heads: [8, 8], ..of("ragged, 32 of 1 to 512", 512, Kind::Ragged) };
    vec![
        pair(of("window 512, causal", 8192, Kind::Window(511)), 0.8, None),
        pair(of("1/8 of blocks of 128", 8192, Kind::Blocks(8)), 0.8, None),
        pair(of("f32 mask", 2048, Kind::Mask), 0.8, Some(0.9)),
        pair(of("bool mask", 2048, Kind::BoolMask), 0.8, Some(0.9)),
        pair(of("softcap", 2048, Kind::Softcap), 0.75, Some(0.85)),
        pair(of("pages of 16", 2048, Kind::Pages(16)), 0.9, None),
        pair(of("pages of 1", 2048, Kind::Pages(1)), 0.8, None),
        Pair { plain: Feature { heads: [32, 32], ..grouped.clone() }, ..pair(grouped, 1.0, None) },
        Pair {
            // The same number of pairs in sequences of one length.
            plain: Feature { batch: 32, heads: [8, 8], ..plain(296, 64) },
            threads: 2,
            ..pair(ragged, 0.9, None)
        },
    ]
}

/// Masks that hide whole blocks of keys, or nothing, each against the fields that say the same, or
/// say nearly the same; and NaN behind masks against numbers.
pub fn masks() -> Vec<Pair> {
    let of = |name, rows, len, kind| {
        let heads = if rows == len { [1, 1] } else { [8, 2] };
        Feature { name, batch: 1, heads, rows, len, dim: 128, kind }
    };
    let pair = |name, rows, len, kind, plain, floor| Pair {
        feature: of(name, rows, len, kind),
        plain: of("fields", rows, len, plain),
        threads: 1,
        floor,
        goal: None,
    };
    let (bools, halves) = (Dtype::Bool8, Dtype::F16);
    let (window, causal) = (Kind::Window(511), Kind::Window(u64::MAX));
    let thirds = Kind::Says(Sees::Thirds, bools);
    let all = usize::MAX;
    // At most 1.3 times the time of the fields; 1.5 times with images; nothing hidden, 3 %.
    vec![
        pair("512 seen, f16", 1, 32_768, Kind::Says(Sees::Window(511), halves), window, 1.0 / 1.3),
        pair("512 seen, bool", 1, 32_768, Kind::Says(Sees::Window(511), bools), window, 1.0 / 1.3),
        pair("window 512, f16", 128, 8192, Kind::Says(Sees::Window(511), halves), window, 1.0 / 1.3),
        pair("window 512, bool", 128, 8192, Kind::Says(Sees::Window(511), bools), window, 1.0 / 1.3),
        pair("causal, f16", 2048, 2048, Kind::Says(Sees::Window(all), halves), causal, 1.0 / 1.3),
        pair("causal, bool", 2048, 2048, Kind::Says(Sees::Window(all), bools), causal, 1.0 / 1.3),
        pair(
            "images, bool",
            4096,
            4096,
            Kind::Says(Sees::Images(1023), bools),
            Kind::Window(1023),
            1.0 / 1.5,
        ),
        pair("nothing hidden, f16", 1024, 1024, Kind::Says(Sees::All, halves), Kind::Plain, 0.9),
        pair("nothing hidden, f16", 1, 32_768, Kind::Says(Sees::All, halves), Kind::Plain, 0.95),
        pair("NaN in a third", 64, 4096, Kind::HidesNan(Sees::Thirds), thirds, 1.0 / 1.2),
        pair("NaN but in 512", 64, 4096, Kind::HidesNan(Sees::Window(511)), Kind::Window(511), 1.0 / 1.3),
    ]
}

/// Lists of blocks, single keys, and pages that kv heads have selected: each against all of it. At
/// most 1.1 times the time in proportion to what is listed, of single keys 1.3 times; all of it
/// listed, 3 % more.
pub fn sparse() -> Vec<Pair> {
    let of = |heads, rows, len, kind| Feature { name: "", batch: 1, heads, rows, len, dim: 128, kind };
    let least = |percent| if percent == 100 { 1.0 / 1.03 } else { 1.0 / 1.1 };
    let mut pairs = Vec::new();
    for (rows, len) in [(8192, 8192), (2048, 32_768)] {
        for block in [64, 128] {
            for (name, percent) in SHARES {
                let kept = Feature { name, ..of([1, 1], rows, len, Kind::Kept(percent, block)) };
                let plain = of([1, 1], rows, len, Kind::Window(u64::MAX));
                pairs.push(Pair { feature: kept, plain, threads: 1, floor: least(percent), goal: None });
            }
        }
    }
    for (heads, rows, len) in [([1, 1], 8192, 8192), ([1, 1], 2048, 32_768), ([32, 8], 1, 32_768)] {
        for (name, percent) in &SHARES[..4] {
            let single = Feature { name, ..of(heads, rows, len, Kind::Columns(*percent)) };
            let plain = of(heads, rows, len, Kind::Window(u64::MAX));
            pairs.push(Pair { feature: single, plain, threads: 1, floor: 1.0 / 1.3, goal: None });
        }
    }
    for len in [8192, 32_768] {
        for (name, percent) in SHARES {
            let selected = Feature { name, ..of([32, 8], 1, len, Kind::Selected(percent)) };
            let plain = of([32, 8], 1, len, Kind::Pages(PAGE));
            pairs.push(Pair { feature: selected, plain, threads: 1, floor: least(percent), goal: None });
        }
    }
    pairs
}

/// Of what is listed.
const SHARES: [(&str, usize); 5] = [("5 %", 5), ("10 %", 10), ("25 %", 25), ("50 %", 50), ("100 %", 100)];

/// How many keys before its own a row sees beside single ones.
const NEAR: u64 = 63;

/// Keys of a page that may be selected.
const PAGE: usize = 64;

/// What a feature points to.
pub struct Memory {
    feature: Feature,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    o: Vec<f32>,
    mask: Vec<f32>,
    bytes: Vec<u8>,
    halves: Vec<u16>,
    ints: Vec<i32>,
}

/// Query rows and keys of a block of the block mask.
const BLOCK: usize = 128;

/// K or V in pages of `size` tokens, `[page][head][token]`, which have `len` tokens of each head.
fn paged(dense: Layout, len: usize, size: usize) -> Layout {
    let ([_, heads, _], row) = (dense.extent, 4 * dense.dim);
    Layout { extent: [len / size, heads, size], stride: [heads * size * row, size * row, row], ..dense }
}

impl Memory {
    pub fn new(feature: &Feature) -> Memory {
        let Feature { batch, heads: [heads_q, heads_kv], rows, len, dim, kind, .. } = *feature;
        let random = |n: usize| (0..n).map(|i| i.wrapping_mul(2_654_435_761) >> 7 & 0xffff);
        let blocks = len / BLOCK;
        let (mut mask, mut bytes, mut ints) = (Vec::new(), Vec::new(), Vec::new());
        let mut halves = Vec::new();
        let sees = |sees: Sees| (0..rows * len).map(move |at| sees.sees(len - rows + at / len, at % len));
        match kind {
            Kind::Says(what, Dtype::F16) => {
                halves = sees(what).map(|sees| if sees { 0 } else { 0xfc00 }).collect();
            }
            Kind::Says(what, _) | Kind::HidesNan(what) => bytes = sees(what).map(u8::from).collect(),
            Kind::Mask => mask = normal(len * len, 4),
            Kind::BoolMask => bytes = random(len * len).map(|x| u8::from(x % 2 == 0)).collect(),
            // As many in every row of blocks, at different places.
            Kind::Blocks(share) => {
                bytes = vec![0; blocks * blocks];
                for (row, bytes) in bytes.chunks_mut(blocks).enumerate() {
                    (0..blocks / share).for_each(|i| bytes[(row * 5 + i * share + i) % blocks] = 1);
                }
            }
            Kind::Pages(size) => ints = shuffled(len / size),
            Kind::Kept(percent, block) => {
                // The block of the queries themselves is always listed.
                let (lists, first) = (rows / block, (len - rows) / block);
                let mut chosen = random(lists * (len / block)).map(|x| x * 100 < percent << 16);
                let lists: Vec<Vec<i32>> = (0..lists)
                    .map(|list| {
                        let of_row: Vec<bool> = chosen.by_ref().take(len / block).collect();
                        let own = first + list;
                        (0..=own).filter(|&i| of_row[i] || i == own).map(|i| i as i32).collect()
                    })
                    .collect();
                let mut end = 0;
                ints.push(0);
                ints.extend(lists.iter().map(|list| {
                    end += list.len() as i32;
                    end
                }));
                ints.extend(lists.concat());
            }
            Kind::Columns(percent) => {
                let columns = random(len).enumerate().filter(|&(_, x)| x * 100 < percent << 16);
                let columns: Vec<i32> = columns.map(|(key, _)| key as i32).collect();
                ints = [vec![0, columns.len() as i32], columns].concat();
            }
            Kind::Selected(percent) => {
                let pages = len / PAGE;
                for head in 0..heads_kv {
                    let mut some = shuffled(pages);
                    some.rotate_left(head * 7 % pages);
                    some.truncate((pages * percent).div_ceil(100));
                    ints.extend(some);
                }
            }
            Kind::Ragged => {
                ints.push(0);
                for b in 0..batch {
                    ints.push(ints[b] + (1 + (b * 37 % batch) * (len - 1) / (batch - 1)) as i32);
                }
            }
            _ => {}
        }
        let total = |len: usize| if kind == Kind::Ragged { ints[batch] as usize } else { batch * len };
        let mut v = normal(total(len) * heads_kv * dim, 3);
        if let Kind::HidesNan(_) = kind {
            for (at, v) in v.chunks_mut(dim).enumerate() {
                if (0..rows).all(|row| bytes[row * len + at % len] == 0) {
                    v.fill(f32::NAN);
                }
            }
        }
        Memory {
            feature: feature.clone(),
            q: normal(total(rows) * heads_q * dim, 1),
            k: normal(total(len) * heads_kv * dim, 2),
            v,
            o: vec![0.0; total(rows) * heads_q * dim],
            mask,
            bytes,
            halves,
            ints,
        }
    }

    /// Operations of the pairs that are seen.
    pub fn flops(&self) -> f64 {
        let Feature { batch, heads: [heads, _], rows, len, dim, kind, .. } = self.feature;
        let pairs: usize = match kind {
            Kind::Window(left) => (len - rows..len).map(|i| i.min(left as usize) + 1).sum(),
            // Of images, as many as the window has: they are measured against that.
            Kind::Says(Sees::Window(left) | Sees::Images(left), _) | Kind::HidesNan(Sees::Window(left)) => {
                (len - rows..len).map(|i| i.min(left) + 1).sum()
            }
            Kind::Says(..) | Kind::HidesNan(_) => rows * len,
            // So many of the pairs as of the blocks, which the last one of a list counts among.
            Kind::Kept(_, block) => {
                let lists = rows / block;
                let listed = self.ints.len() - lists - 1;
                let all: usize = (0..lists).map(|list| (len - rows) / block + list + 1).sum();
                let pairs: usize = (len - rows..len).map(|i| i + 1).sum();
                (pairs as f64 * listed as f64 / all as f64) as usize
            }
            Kind::Columns(_) => (len - rows..len)
                .map(|i| {
                    let near = i.min(NEAR as usize) + 1;
                    let far = self.ints[2..].partition_point(|&key| key as usize + near <= i);
                    near + far
                })
                .sum(),
            Kind::Selected(_) => self.selected() * PAGE,
            Kind::Blocks(_) => self.bytes.iter().filter(|&&byte| byte != 0).count() * BLOCK * BLOCK,
            Kind::Ragged => self.ints.windows(2).map(|ends| (ends[1] - ends[0]).pow(2) as usize).sum(),
            _ => rows * len,
        };
        let sequences = if kind == Kind::Ragged { 1 } else { batch };
        (4 * sequences * heads * pairs * dim) as f64
    }

    /// Pages that a kv head has selected.
    fn selected(&self) -> usize {
        self.ints.len() / self.feature.heads[1]
    }

    pub fn name(&self) -> String {
        let Feature { name, batch, heads: [heads, _], rows, len, dim, kind } = self.feature;
        let what = match kind {
            Kind::Kept(_, block) => format!("{name} of blocks of {block}, causal"),
            Kind::Columns(_) => format!("{name} of keys, single ones, window {}", NEAR + 1),
            Kind::Selected(_) => format!("{name} of pages"),
            _ => name.to_owned(),
        };
        let keys = if rows == len { String::new() } else { format!("{rows} x ") };
        format!("{} x {keys}{len} x {dim} {what}", batch * heads)
    }

    /// Of queries and output with `len` rows a sequence, and of K and V with as many.
    fn layout(&self, heads: usize, len: usize) -> Layout {
        let Feature { batch, heads: [heads_q, _], dim, kind, .. } = self.feature;
        let row = 4 * dim;
        let total = self.o.len() / heads_q / dim;
        let (extent, stride) = match kind {
            Kind::Interleaved => ([batch, heads, len], [len * heads * row, row, heads * row]),
            Kind::Ragged => ([1, heads, total], [0, total * row, row]),
            _ => ([batch, heads, len], [heads * len * row, len * row, row]),
        };
        Layout { dtype: Dtype::F32, extent, dim, stride, stride_dim: 0 }
    }

    fn problem(&mut self) -> Problem<'_> {
        let Feature { batch, heads: [heads_q, heads_kv], rows, len, dim, kind, .. } = self.feature;
        let layout = self.layout(heads_q, rows);
        let kv = match kind {
            Kind::Pages(size) => paged(self.layout(heads_kv, len), len, size),
            Kind::Selected(_) => paged(self.layout(heads_kv, len), len, PAGE),
            _ => self.layout(heads_kv, len),
        };
        let mask = |dtype: Dtype, rows: usize, keys: usize| Layout {
            dtype,
            extent: [batch, heads_q, rows],
            dim: keys,
            stride: [0, 0, keys * dtype.block_bytes()],
            stride_dim: 0,
        };
        let lists = Array::of(&self.ints);
        let view = |data, layout| View::of(data, layout).expect("arrays of the right size");
        let mut logits = Logits::default();
        let mut lengths = Batch::default();
        let mut semantics = Semantics::with_scale((dim as f32).sqrt().recip());
        match kind {
            Kind::Window(left) => {
                semantics.q_pos = Position::End;
                semantics.window = Window { left: Some(left), right: Some(0) };
            }
            Kind::Mask => logits.mask = Some(view(&self.mask, mask(Dtype::F32, len, len))),
            Kind::Says(_, Dtype::F16) => {
                let view = View::of(&self.halves, mask(Dtype::F16, rows, len));
                logits.mask = Some(view.expect("a mask"));
            }
            Kind::BoolMask | Kind::Says(..) | Kind::HidesNan(_) => {
                // SAFETY: as many bytes, which outlive the problem.
                let view = unsafe { View::new(self.bytes.as_ptr(), mask(Dtype::Bool8, rows, len)) };
                logits.mask = Some(view.expect("a mask"));
            }
            Kind::Blocks(_) => {
                // SAFETY: as many bytes, which outlive the problem.
                let view =
                    unsafe { View::new(self.bytes.as_ptr(), mask(Dtype::Bool8, len / BLOCK, len / BLOCK)) };
                let blocks = Blocks::Bytes(view.expect("a mask"));
                logits.cells = Some(BlockMask { blocks, rows: BLOCK, keys: BLOCK });
            }
            Kind::Softcap => logits.softcap = 30.0,
            Kind::Pages(size) => {
                let stride = len / size;
                lengths.pages =
                    Some(Pages { table: lists, starts: None, stride, head_stride: 0, len_kv: len });
            }
            Kind::Selected(_) => {
                let (stride, head_stride) = (self.ints.len(), self.selected());
                let len_kv = head_stride * PAGE;
                lengths.pages = Some(Pages { table: lists, starts: None, stride, head_stride, len_kv });
            }
            Kind::Kept(_, block) => {
                semantics.q_pos = Position::End;
                semantics.window = Window { left: None, right: Some(0) };
                let (starts, blocks) = self.ints.split_at(rows / block + 1);
                let [starts, blocks] = [starts, blocks].map(Array::of);
                let blocks =
                    Blocks::Lists(Lists { starts, entries: blocks, stride: [0; 2], shared_by: heads_q });
                logits.cells = Some(BlockMask { blocks, rows: block, keys: block });
            }
            Kind::Columns(_) => {
                semantics.q_pos = Position::End;
                semantics.window = Window { left: Some(NEAR), right: Some(0) };
                let (starts, columns) = self.ints.split_at(2);
                let [starts, entries] = [starts, columns].map(Array::of);
                logits.columns = Some(Lists { starts, entries, stride: [0; 2], shared_by: heads_q });
            }
            Kind::Ragged => (lengths.starts_q, lengths.starts_kv) = (Some(lists), Some(lists)),
            Kind::Plain | Kind::Interleaved => {}
        }
        let (q, k, v) = (view(&self.q, layout), view(&self.k, kv), view(&self.v, kv));
        let o = ViewMut::of(&mut self.o, layout).expect("arrays of the right size");
        let tensors = Tensors { batch: lengths, logits, ..Tensors::new(q, k, v, o) };
        Problem::new(tensors, semantics).expect("a consistent problem")
    }

    /// Largest error of what is in the output, against f64.
    pub fn error(&mut self) -> f64 {
        let sample = Sample::of(&self.problem());
        let layout = self.layout(self.feature.heads[0], self.feature.rows);
        sample.worst(&View::of(&self.o, layout).expect("arrays of the right size"))
    }

    pub fn runner(&mut self, row: &'static dyn Kernel, threads: usize) -> (Plan, impl FnMut()) {
        let mut problem = self.problem();
        let plan = Plan::new(problem.shape(), row, Machine::get(), threads).expect("a plan");
        let again = plan.clone();
        let run = move || {
            let mut prepared = Prepared::with_plan(&mut problem, again.clone());
            prepared.run_allocating(&Own).expect("scratch memory");
        };
        (plan, run)
    }
}
