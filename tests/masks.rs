//! Masks that hide keys: those that say what windows say give the bits of windows, what is hidden
//! has no influence, whatever it holds, and what looks like hiding and is not hides nothing.

mod common;
#[path = "common/store.rs"]
mod store;

use common::{KernelPath, Random, kernels, run, same_bits};
use flash_attention::dtype::Dtype;
use flash_attention::problem::{
    Batch, BlockMask, Blocks, Logits, Position, Problem, Semantics, Slopes, Tensors, Window,
};
use flash_attention::reference;
use flash_attention::view::{Array, Layout, Quant, View, ViewMut};
use half::{bf16, f16};
use store::encode;

const DIM: usize = 32;
const HEADS: [usize; 2] = [4, 2];
const TYPES: [Dtype; 11] = [
    Dtype::F32,
    Dtype::F16,
    Dtype::Bf16,
    Dtype::I8,
    Dtype::Q8_0,
    Dtype::Q4_0,
    Dtype::Q5_1,
    Dtype::Iq4Nl,
    Dtype::F8E4M3,
    Dtype::F8E5M2,
    Dtype::Q15,
];
const MASKS: [Dtype; 4] = [Dtype::Bool8, Dtype::F16, Dtype::Bf16, Dtype::F32];

/// Queries, keys and values of several heads, and a mask.
struct Case {
    rows: usize,
    keys: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    dtype: Dtype,
    mask: Option<Mask>,
    cells: Option<Vec<u8>>,
    window: Window,
    block_kv: usize,
    softcap: f32,
    slopes: Option<([f32; HEADS[0]], bool)>,
    sinks: Option<[f32; HEADS[0]]>,
}

/// `[head][row][key]`; a head or a row may stand for all.
#[derive(Clone)]
struct Mask {
    dtype: Dtype,
    bytes: Vec<u8>,
    /// For each head, and for each row.
    each: [bool; 2],
}

/// Keys of a block of the block mask, and query rows.
const CELL: usize = 16;

impl Mask {
    /// From numbers, of which -inf hides: for bool, all others are seen.
    fn of(dtype: Dtype, each: [bool; 2], numbers: &[f32]) -> Mask {
        let bytes = match dtype {
            // Any byte but 0 is true.
            Dtype::Bool8 => {
                let byte =
                    |(at, x): (usize, &f32)| if *x == f32::NEG_INFINITY { 0 } else { 1 + (at % 255) as u8 };
                numbers.iter().enumerate().map(byte).collect()
            }
            Dtype::F16 => numbers.iter().flat_map(|&x| f16::from_f32(x).to_ne_bytes()).collect(),
            Dtype::Bf16 => numbers.iter().flat_map(|&x| bf16::from_f32(x).to_ne_bytes()).collect(),
            _ => numbers.iter().flat_map(|x| x.to_ne_bytes()).collect(),
        };
        Mask { dtype, bytes, each }
    }
}

impl Case {
    fn new(rows: usize, keys: usize, dtype: Dtype, seed: u64) -> Case {
        let mut random = Random(seed);
        Case {
            rows,
            keys,
            q: random.normals(HEADS[0] * rows * DIM),
            k: random.normals(HEADS[1] * keys * DIM),
            v: random.normals(HEADS[1] * keys * DIM),
            dtype,
            mask: None,
            cells: None,
            window: Window::default(),
            block_kv: 0,
            softcap: 0.0,
            slopes: None,
            sinks: None,
        }
    }

    /// A mask for all heads that hides what `sees` does not tell.
    fn masked(&mut self, dtype: Dtype, sees: impl Fn(usize, usize) -> bool) {
        let numbers: Vec<f32> = (0..self.rows * self.keys)
            .map(|at| if sees(at / self.keys, at % self.keys) { 0.0 } else { f32::NEG_INFINITY })
            .collect();
        self.mask = Some(Mask::of(dtype, [false, true], &numbers));
    }

    /// Outputs and log-sum-exps; without a kernel, those of the reference.
    fn compute(&self, kernel: Option<KernelPath>, threads: usize) -> (Vec<f32>, Vec<f32>) {
        let Case { rows, keys, dtype, .. } = *self;
        let dense = |dtype, heads, rows, dim| Layout::dense(dtype, heads, rows, dim).unwrap();
        let ((k, k_step), (v, v_step)) = (encode(dtype, &self.k, DIM), encode(dtype, &self.v, DIM));
        let (mut o, mut lse) = (vec![f32::MAX; HEADS[0] * rows * DIM], vec![f32::MAX; HEADS[0] * rows]);
        // SAFETY: as many bytes, which outlive the problem.
        let stored =
            |data: &[u8]| unsafe { View::new(data.as_ptr(), dense(dtype, HEADS[1], keys, DIM)).unwrap() };
        let (mut k, mut v) = (stored(&k), stored(&v));
        if [Dtype::I8, Dtype::Q15].contains(&dtype) {
            k = k.quantised(Quant::per_tensor(&k_step)).unwrap();
            v = v.quantised(Quant::per_tensor(&v_step)).unwrap();
        }
        let mask = self.mask.as_ref().map(|mask| {
            let row = keys * mask.dtype.block_bytes();
            let [per_head, per_row] = mask.each;
            let of_head = if per_row { rows * row } else { row };
            let stride = [0, if per_head { of_head } else { 0 }, if per_row { row } else { 0 }];
            let layout =
                Layout { dtype: mask.dtype, extent: [1, HEADS[0], rows], dim: keys, stride, stride_dim: 0 };
            assert!(mask.bytes.len() >= stride[1] * (HEADS[0] - 1) + of_head);
            // SAFETY: as many bytes, which outlive the problem.
            unsafe { View::new(mask.bytes.as_ptr(), layout).unwrap() }
        });
        let cells = self.cells.as_ref().map(|cells| {
            let stride = [0, 0, keys.div_ceil(CELL)];
            let extent = [1, HEADS[0], rows.div_ceil(CELL)];
            assert!(cells.len() >= extent[2] * stride[2]);
            let layout = Layout { dtype: Dtype::Bool8, extent, dim: stride[2], stride, stride_dim: 0 };
            // SAFETY: as many bytes, which outlive the problem.
            let blocks = Blocks::Bytes(unsafe { View::new(cells.as_ptr(), layout).unwrap() });
            BlockMask { blocks, rows: CELL, keys: CELL }
        });
        let slopes = self.slopes.as_ref().map(|(values, times_mask)| Slopes {
            values: Array::of(values),
            batch_stride: 0,
            times_mask: *times_mask,
        });
        let sinks = self.sinks.as_ref().map(|sinks| Array::of(sinks));
        let tensors = Tensors {
            q: View::of(&self.q, dense(Dtype::F32, HEADS[0], rows, DIM)).unwrap(),
            k,
            v,
            o: ViewMut::of(&mut o, dense(Dtype::F32, HEADS[0], rows, DIM)).unwrap(),
            lse: Some(ViewMut::of(&mut lse, dense(Dtype::F32, HEADS[0], rows, 1)).unwrap()),
            batch: Batch::default(),
            logits: Logits { softcap: self.softcap, mask, cells, columns: None, slopes, sinks },
            weights: None,
        };
        let semantics = Semantics {
            q_pos: Position::At(keys as i64 - rows as i64),
            window: self.window,
            block_kv: self.block_kv,
            ..Semantics::with_scale(0.2)
        };
        let mut problem = Problem::new(tensors, semantics).unwrap();
        let Some(kernel) = kernel else {
            let exact = reference::attention(&problem);
            let as_f32 = |x: &[f64]| x.iter().map(|&x| x as f32).collect();
            return (as_f32(&exact.o), as_f32(&exact.lse));
        };
        run(&mut problem, kernel, threads).unwrap();
        (o, lse)
    }

    fn same(&self, kernel: KernelPath, other: &Case, what: &str) {
        let (a, b) = (self.compute(Some(kernel), 1), other.compute(Some(kernel), 1));
        assert!(same_bits(&a.0, &b.0) && same_bits(&a.1, &b.1), "{kernel:?}, {:?}: {what}", self.dtype);
        assert!(a.0.iter().any(|&x| x != 0.0));
    }
}

/// On both sides of vectors, lane tiles, blocks of keys and groups.
const SIZES: [(usize, usize); 7] = [(1, 1100), (3, 70), (5, 515), (17, 300), (18, 41), (40, 600), (70, 257)];

#[test]
fn a_mask_that_is_a_window_gives_the_bits_of_the_window() {
    for (rows, keys) in SIZES {
        for (left, right) in [(None, 0), (Some(100), 0), (Some(20), 33), (Some(0), 0)] {
            for (n, dtype) in TYPES.into_iter().enumerate() {
                let mut fields = Case::new(rows, keys, dtype, (rows * keys) as u64);
                fields.window = Window { left, right: Some(right) };
                fields.sinks = (n == 1).then_some([0.5, -1.0, f32::NEG_INFINITY, 3.0]);
                fields.softcap = if n == 2 { 3.0 } else { 0.0 };
                fields.slopes = (n == 0).then_some(([0.01, 0.02, 0.0, -0.01], false));
                let sees = |row: usize, key: usize| {
                    let position = row + keys - rows;
                    key <= position + right as usize
                        && left.is_none_or(|left| key + left as usize >= position)
                };
                let masks = if n == 0 { &MASKS[..] } else { &MASKS[(n - 1) % MASKS.len()..][..1] };
                for &mask in masks {
                    for block_kv in [0, 64] {
                        let mut fields = clone(&fields);
                        fields.block_kv = block_kv;
                        let mut masked = clone(&fields);
                        masked.window = Window::default();
                        masked.masked(mask, sees);
                        for kernel in kernels(dtype) {
                            fields.same(
                                kernel,
                                &masked,
                                &format!("{rows} x {keys}, {left:?}, {right}, {mask:?}"),
                            );
                        }
                    }
                }
            }
        }
    }
}

fn clone(case: &Case) -> Case {
    Case {
        q: case.q.clone(),
        k: case.k.clone(),
        v: case.v.clone(),
        mask: case.mask.clone(),
        cells: case.cells.clone(),
        ..*case
    }
}

/// Whether a row sees a key.
type Sees = Box<dyn Fn(usize, usize) -> bool>;

/// The ways in which a mask hides keys from rows.
fn patterns(rows: usize, keys: usize) -> Vec<(&'static str, Sees)> {
    let past = keys - rows;
    vec![
        ("the end", Box::new(move |_, key| key < keys / 3)),
        ("the beginning", Box::new(move |_, key| key >= keys / 2 + 3)),
        ("every third", Box::new(move |_, key| key % 3 != 1)),
        ("all but a few", Box::new(move |_, key| key == 7 || key == keys - 5)),
        (
            "a sink and a window",
            Box::new(move |row, key| key < 4 || (key <= row + past && row + past < key + 40)),
        ),
        // Each row sees its own document, and documents fall in no order.
        ("documents", Box::new(move |row, key| key * 5 / keys == (row * 3 + 2) % 5)),
        ("all from some rows", Box::new(move |row, key| row % 4 != 2 && key <= row + past)),
        ("all from the upper rows", Box::new(move |row, key| row >= rows / 2 || key < 9)),
    ]
}

/// What is in hidden keys and values changes no bit: numbers, infinities or NaN.
#[test]
fn what_is_hidden_has_no_influence() {
    for (rows, keys) in SIZES {
        for (what, sees) in patterns(rows, keys) {
            for (n, dtype) in TYPES.into_iter().enumerate() {
                if [Dtype::I8, Dtype::Q15].contains(&dtype) {
                    // Integers are finite.
                    continue;
                }
                let mut case = Case::new(rows, keys, dtype, (rows + keys) as u64);
                case.masked(MASKS[n % 4], &sees);
                let mut poisoned = clone(&case);
                for key in (0..keys).filter(|&key| (0..rows).all(|row| !sees(row, key))) {
                    for head in 0..HEADS[1] {
                        let row = (head * keys + key) * DIM..(head * keys + key + 1) * DIM;
                        poisoned.k[row.clone()].fill([f32::NAN, f32::INFINITY][key % 2]);
                        poisoned.v[row].fill([f32::INFINITY, f32::NAN, 3.0][key % 3]);
                    }
                }
                for kernel in kernels(dtype) {
                    case.same(kernel, &poisoned, &format!("{rows} x {keys}, {what}"));
                }
            }
        }
    }
}

/// Against f64: heads with masks of their own, blocks of a block mask besides, biases within
/// ranges.
#[test]
fn results_are_those_of_the_definition() {
    for (rows, keys) in SIZES {
        for (what, sees) in patterns(rows, keys) {
            for (n, mask) in MASKS.into_iter().enumerate() {
                let mut case = Case::new(rows, keys, Dtype::F32, (rows * 7 + keys) as u64);
                let mut random = Random(keys as u64);
                let numbers: Vec<f32> = (0..HEADS[0] * rows * keys)
                    .map(|at| {
                        let (head, row, key) = (at / keys / rows, at / keys % rows, at % keys);
                        let bias = if n % 2 == 1 { random.normal() } else { 0.0 };
                        // The second pair of heads sees what the mirror image of the first sees.
                        let key = if head < 2 { key } else { keys - 1 - key };
                        if sees(row, key) { bias } else { f32::NEG_INFINITY }
                    })
                    .collect();
                case.mask = Some(Mask::of(mask, [true, true], &numbers));
                if n == 2 {
                    let cells = rows.div_ceil(CELL) * keys.div_ceil(CELL);
                    case.cells = Some((0..cells).map(|at| (at % 5 != 1) as u8 * 2).collect());
                }
                if n == 3 {
                    case.slopes = Some(([0.5, 1.0, 0.0, 2.0], true));
                    case.sinks = Some([0.5, -1.0, f32::NEG_INFINITY, 3.0]);
                }
                let (exact, exact_lse) = case.compute(None, 1);
                for kernel in kernels(Dtype::F32) {
                    for threads in [1, 3] {
                        let (o, lse) = case.compute(Some(kernel), threads);
                        let near = |a: &[f32], b: &[f32], most: f32| {
                            a.iter().zip(b).all(|(a, b)| a == b || (a - b).abs() <= most * (1.0 + b.abs()))
                        };
                        let place =
                            format!("{kernel:?}, {threads} threads, {mask:?}: {rows} x {keys}, {what}");
                        assert!(near(&o, &exact, 2e-5) && near(&lse, &exact_lse, 2e-5), "{place}");
                    }
                }
            }
        }
    }
}

/// Zeros of either sign and any byte but 0 leave scores as they are: the bits are those without a
/// mask. A slope of NaN that is multiplied by a mask of zeros is seen.
#[test]
fn masks_that_change_nothing_give_the_bits_of_no_mask() {
    for (rows, keys) in SIZES {
        for dtype in TYPES {
            let plain = Case::new(rows, keys, dtype, 5);
            for mask in MASKS {
                let mut masked = clone(&plain);
                let zeros: Vec<f32> =
                    (0..rows * keys).map(|at| if at % 3 == 0 { -0.0 } else { 0.0 }).collect();
                masked.mask = Some(Mask::of(mask, [false, true], &zeros));
                let mut for_all_rows = clone(&masked);
                for_all_rows.mask.as_mut().unwrap().each = [false; 2];
                for kernel in kernels(dtype) {
                    plain.same(kernel, &masked, &format!("{rows} x {keys}, {mask:?}"));
                    plain.same(kernel, &for_all_rows, &format!("{rows} x {keys}, {mask:?} for all rows"));
                    if mask != Dtype::Bool8 {
                        let mut sloped = clone(&masked);
                        sloped.slopes = Some(([0.5, f32::NAN, -f32::INFINITY, 0.0], true));
                        let (o, _) = sloped.compute(Some(kernel), 1);
                        let (expected, _) = plain.compute(Some(kernel), 1);
                        for (head, o) in o.chunks(rows * DIM).enumerate() {
                            let expected = &expected[head * rows * DIM..][..rows * DIM];
                            let is_right =
                                if head == 1 { o.iter().all(|x| x.is_nan()) } else { same_bits(o, expected) };
                            assert!(is_right, "{kernel:?}, {mask:?}, {rows} x {keys}: head {head}");
                        }
                    }
                }
            }
        }
    }
}

/// The least finite number of f16 hides nothing where all keys have it, and NaN in a mask shows, at
/// whichever end of a row it is.
#[test]
fn only_minus_infinity_hides() {
    for (rows, keys) in SIZES {
        for mask in [Dtype::F16, Dtype::Bf16, Dtype::F32] {
            let mut case = Case::new(rows, keys, Dtype::F32, 9);
            case.k.fill(0.0);
            let least = vec![-65504.0; rows * keys];
            case.mask = Some(Mask::of(mask, [false, true], &least));
            let mut even = clone(&case);
            even.mask = None;
            let (expected, _) = even.compute(None, 1);
            for kernel in kernels(Dtype::F32) {
                let (o, _) = case.compute(Some(kernel), 1);
                assert!(o.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4), "{kernel:?}, {mask:?}");
                for at in [0, keys / 2, keys - 1] {
                    let mut numbers = vec![f32::NEG_INFINITY; rows * keys];
                    numbers[keys / 3] = 0.0;
                    // In the last row alone, which sees nothing else if it is not the first, too.
                    numbers[(rows - 1) * keys + at] = f32::NAN;
                    let mut case = clone(&case);
                    case.mask = Some(Mask::of(mask, [false, true], &numbers));
                    let (o, lse) = case.compute(Some(kernel), 1);
                    for (row, o) in o.chunks(DIM).enumerate() {
                        let is_last = row % rows == rows - 1;
                        let is_right = match row % rows {
                            _ if is_last => o.iter().all(|x| x.is_nan()) && lse[row].is_nan(),
                            0 => o.iter().all(|x| x.is_finite()) && lse[row].is_finite(),
                            _ => o.iter().all(|&x| x == 0.0) && lse[row] == f32::NEG_INFINITY,
                        };
                        assert!(is_right, "{kernel:?}, {mask:?}, {rows} x {keys}, row {row}, key {at}");
                    }
                }
            }
        }
    }
}
