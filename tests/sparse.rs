//! Lists of blocks of keys, and of pages of each kv head: what they say is what block masks and
//! copies say, bit by bit.

mod common;

use std::ptr;

use common::Random;
use flash_attention::capi::attention::{fa_attention, fa_attention_init};
use flash_attention::capi::run::{fa_attention_run, fa_attention_workspace};
use flash_attention::capi::status::fa_status;
use flash_attention::capi::tensor::fa_tensor;
use flash_attention::{Attention, Columns, Error, KeptBlocks, Pool, Refusal, Tensor, TensorMut, Workspace};

/// Sizes of a problem of f32, `[head][token][dim]`.
#[derive(Clone, Copy)]
struct Sizes {
    heads: [usize; 2],
    rows: usize,
    keys: usize,
    dim: usize,
}

fn tensor(data: *const f32, tokens: usize, dim: usize) -> fa_tensor {
    let row = 4 * dim as i64;
    fa_tensor { data: data.cast_mut().cast(), stride: [0, tokens as i64 * row, row], ..fa_tensor::NONE }
}

/// The output of the problem, causal if the queries are the last ones of the keys, changed by
/// `change`.
fn output(sizes: Sizes, [q, k, v]: [&[f32]; 3], change: impl Fn(&mut fa_attention)) -> Vec<f32> {
    let Sizes { heads: [heads_q, heads_kv], rows, keys, dim } = sizes;
    let mut out = vec![f32::NAN; heads_q * rows * dim];
    let mut a = std::mem::MaybeUninit::<fa_attention>::uninit();
    // SAFETY: room for the description, which the call initialises; tensors of these sizes, and a
    // workspace as large as was asked for.
    unsafe {
        assert_eq!(fa_attention_init(a.as_mut_ptr(), size_of::<fa_attention>()), fa_status::FA_OK);
        let mut a = a.assume_init();
        (a.batch, a.heads_q, a.heads_kv) = (1, heads_q as i64, heads_kv as i64);
        (a.len_q, a.len_kv, a.dim_qk, a.dim_v) = (rows as i64, keys as i64, dim as i64, dim as i64);
        (a.q, a.k, a.v) =
            (tensor(q.as_ptr(), rows, dim), tensor(k.as_ptr(), keys, dim), tensor(v.as_ptr(), keys, dim));
        a.o = tensor(out.as_mut_ptr(), rows, dim);
        change(&mut a);
        let mut bytes = 0;
        assert_eq!(fa_attention_workspace(&raw const a, 1, &raw mut bytes), fa_status::FA_OK);
        let mut memory = vec![0u64; bytes / 8 + 8];
        let memory = memory.as_mut_ptr().cast();
        assert_eq!(fa_attention_run(&raw const a, memory, bytes, ptr::null()), fa_status::FA_OK);
    }
    out
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Lists of the blocks whose bytes are not 0, for `heads` heads: where they begin, and the blocks.
fn lists(bytes: &[u8], heads: usize, blocks: [usize; 2]) -> (Vec<i32>, Vec<i32>) {
    let (mut starts, mut kept) = (Vec::new(), Vec::new());
    for head in bytes.chunks(blocks[0] * blocks[1]).take(heads) {
        for row in head.chunks(blocks[1]) {
            starts.push(kept.len() as i32);
            kept.extend((0..blocks[1]).filter(|&block| row[block] != 0).map(|block| block as i32));
        }
        starts.push(kept.len() as i32);
    }
    (starts, kept)
}

#[test]
fn lists_give_the_bits_of_block_masks() {
    let random = &mut Random(28);
    for round in 0..60 {
        let group = 1 + random.below(4);
        let heads_kv = 1 + random.below(2);
        let sizes = Sizes {
            heads: [group * heads_kv, heads_kv],
            rows: [1, 3, 17, 70, 200][random.below(5)],
            keys: [40, 300, 1500][random.below(3)],
            dim: [16, 40][random.below(2)],
        };
        let Sizes { heads: [heads, _], rows, keys, dim } = sizes;
        let [block_q, block_kv] = [[1, 16, 64][random.below(3)], [8, 64, 100][random.below(3)]];
        let blocks = [rows.div_ceil(block_q), keys.div_ceil(block_kv)];
        let inputs = [heads * rows * dim, heads_kv * keys * dim, heads_kv * keys * dim];
        let [q, k, v] = inputs.map(|n| random.normals(n));
        // As many heads have a mask of their own.
        let own = [heads, heads_kv, 1][random.below(3)];
        let kept = [5, 40, 100][random.below(3)];
        let of_own: Vec<u8> =
            (0..own * blocks[0] * blocks[1]).map(|_| u8::from(random.below(100) < kept)).collect();
        let bytes: Vec<u8> =
            of_own.chunks(blocks[0] * blocks[1]).flat_map(|head| head.repeat(heads / own)).collect();
        let (starts, listed) = lists(&of_own, own, blocks);
        let is_causal = random.below(2) == 0;
        let both = |a: &mut fa_attention| a.window_right = if is_causal { 0 } else { -1 };
        let by_bytes = output(sizes, [&q, &k, &v], |a| {
            both(a);
            a.block_mask = bytes.as_ptr();
            a.block_mask_stride = [0, (blocks[0] * blocks[1]) as i64, blocks[1] as i64];
            (a.block_mask_q, a.block_mask_kv) = (block_q as i64, block_kv as i64);
        });
        let by_lists = output(sizes, [&q, &k, &v], |a| {
            both(a);
            (a.kept_start, a.kept_blocks) = (starts.as_ptr(), listed.as_ptr());
            (a.kept_heads, a.kept_stride) = (own as i64, [0, (blocks[0] + 1) as i64]);
            (a.kept_q, a.kept_kv) = (block_q as i64, block_kv as i64);
        });
        assert!(bits(&by_bytes) == bits(&by_lists), "round {round}");
        assert!(by_bytes.iter().all(|x| x.is_finite()));
    }
}

/// Pages that each kv head has selected, in an order of its own, against copies of them.
#[test]
fn kv_heads_read_pages_of_their_own() {
    let random = &mut Random(29);
    for round in 0..40 {
        let (heads, pages, size) = ([6, 2], 40, [1, 4, 16][random.below(3)]);
        let selected = 1 + random.below(20);
        let keys = selected * size - random.below(size);
        let sizes = Sizes { heads, rows: [1, 5, 33][random.below(3)], keys, dim: 24 };
        let Sizes { rows, dim, .. } = sizes;
        let q = random.normals(heads[0] * rows * dim);
        // [page][kv head][token][dim].
        let [k, v] = [0, 1].map(|_| random.normals(pages * heads[1] * size * dim));
        let table: Vec<i32> = (0..heads[1] * selected).map(|_| random.below(pages) as i32).collect();
        let copy = |cache: &[f32]| -> Vec<f32> {
            let row = |head: usize, key: usize| {
                let page = table[head * selected + key / size] as usize;
                let at = ((page * heads[1] + head) * size + key % size) * dim;
                &cache[at..at + dim]
            };
            (0..heads[1]).flat_map(|head| (0..keys).flat_map(move |key| row(head, key).to_vec())).collect()
        };
        let (dense_k, dense_v) = (copy(&k), copy(&v));
        let by_copies = output(sizes, [&q, &dense_k, &dense_v], |a| a.window_right = 0);
        let by_pages = output(sizes, [&q, &k, &v], |a| {
            a.window_right = 0;
            a.block_table = table.as_ptr();
            (a.table_stride, a.table_head_stride) = (table.len() as i64, selected as i64);
            (a.page_size, a.num_pages) = (size as i64, pages as i64);
            for tensor in [&mut a.k, &mut a.v] {
                let row = 4 * dim as i64;
                tensor.stride = [(heads[1] * size) as i64 * row, size as i64 * row, row];
            }
        });
        assert!(bits(&by_copies) == bits(&by_pages), "round {round}");
    }
}

/// Single keys beside a window and blocks, against the mask that says the same; the types and ways
/// that random descriptions do not reach together are here: many keys, and columns among them.
#[test]
fn single_keys_are_seen_beside_windows_and_blocks() {
    let random = &mut Random(31);
    for round in 0..60 {
        let group = 1 + random.below(4);
        let heads_kv = 1 + random.below(2);
        let sizes = Sizes {
            heads: [group * heads_kv, heads_kv],
            rows: [1, 3, 17, 70, 300][random.below(5)],
            keys: [40, 300, 1500][random.below(3)],
            dim: [16, 40][random.below(2)],
        };
        let Sizes { heads: [heads, _], rows, keys, dim } = sizes;
        let inputs = [heads * rows * dim, heads_kv * keys * dim, heads_kv * keys * dim];
        let [q, k, v] = inputs.map(|n| random.normals(n));
        let own = [heads, heads_kv, 1][random.below(3)];
        let percent = [2, 30, 100][random.below(3)];
        let (mut starts, mut columns) = (vec![0], Vec::new());
        let mut of_heads = Vec::new();
        for _ in 0..own {
            let listed: Vec<bool> = (0..keys).map(|_| random.below(100) < percent).collect();
            columns.extend((0..keys).filter(|&key| listed[key]).map(|key| key as i32));
            starts.push(columns.len() as i32);
            of_heads.push(listed);
        }
        let window = [None, Some(0), Some(20), Some(400)][random.below(4)];
        let has_blocks = random.below(2) == 0;
        let blocks = [rows.div_ceil(16), keys.div_ceil(32)];
        let bytes: Vec<u8> = (0..blocks[0] * blocks[1]).map(|_| u8::from(random.below(100) < 30)).collect();
        let (kept_start, kept) = lists(&bytes, 1, blocks);
        let mask: Vec<f32> = (0..heads)
            .flat_map(|head| (0..rows).flat_map(move |row| (0..keys).map(move |key| (head, row, key))))
            .map(|(head, row, key)| {
                let p = (row + keys) as i64 - rows as i64;
                let is_near = window.is_none_or(|window| key as i64 >= p - window);
                let is_kept = !has_blocks || bytes[row / 16 * blocks[1] + key / 32] != 0;
                let is_column = of_heads[head / (heads / own)][key];
                let is_seen = key as i64 <= p && (is_column || (is_near && is_kept));
                if is_seen { 0.0 } else { f32::NEG_INFINITY }
            })
            .collect();
        let by_mask = output(sizes, [&q, &k, &v], |a| {
            let row = 4 * keys as i64;
            a.mask = tensor(mask.as_ptr(), rows, keys);
            a.mask.stride = [0, rows as i64 * row, row];
        });
        let by_lists = output(sizes, [&q, &k, &v], |a| {
            (a.window_left, a.window_right) = (window.unwrap_or(-1), 0);
            (a.column_start, a.columns) = (starts.as_ptr(), columns.as_ptr());
            (a.column_heads, a.column_stride) = (own as i64, [0, 1]);
            if has_blocks {
                (a.kept_start, a.kept_blocks) = (kept_start.as_ptr(), kept.as_ptr());
                (a.kept_q, a.kept_kv) = (16, 32);
            }
        });
        for (i, (x, y)) in by_mask.iter().zip(&by_lists).enumerate() {
            assert!((x - y).abs() < 2e-5, "round {round}, element {i}: {x} by the mask, {y} by lists");
        }
    }
}

/// Both through slices, and what does not fit.
#[test]
fn slices_say_the_same() {
    let random = &mut Random(30);
    let (heads, rows, keys, dim, size) = ([4, 2], 9, 32, 16, 8);
    let q = random.normals(heads[0] * rows * dim);
    let [k, v] = [0, 1].map(|_| random.normals(heads[1] * keys * dim));
    let of_q = Tensor::head_first(&q, [1, heads[0], rows, dim]);
    let run = |k: Tensor, v: Tensor, change: &dyn Fn(Attention<'_>) -> Result<(), Refusal>| {
        let mut out = vec![0.0; heads[0] * rows * dim];
        let to = TensorMut::head_first(&mut out, [1, heads[0], rows, dim]);
        let result = change(Attention::new(of_q, k, v, to));
        result.map(|()| out)
    };
    let compute = |mut attention: Attention| {
        let (mut workspace, pool) = (Workspace::new(), Pool::default());
        attention.reserve(&mut workspace, &pool)?;
        attention.run(&mut workspace, &pool)
    };
    let dense = [&k, &v].map(|x| Tensor::head_first(x, [1, heads[1], keys, dim]));

    // Rows 0 to 3, 4 to 7 and 8, of which query heads 2 and 3 see other keys than 0 and 1.
    let kept = KeptBlocks {
        starts: &[0, 2, 3, 4, 4, 5, 5, 6],
        blocks: &[0, 3, 1, 2, 3, 0],
        sequences: 1,
        heads: 2,
        rows: 4,
        keys: 8,
    };
    let by_lists = run(dense[0], dense[1], &|a| compute(a.kept_blocks(kept))).expect("an output");
    let sees = |head: usize, row: usize, key: usize| {
        let list = head / 2 * 4 + row / 4;
        let list = kept.starts[list] as usize..kept.starts[list + 1] as usize;
        kept.blocks[list].contains(&((key / 8) as i32))
    };
    let mask: Vec<bool> = (0..heads[0])
        .flat_map(|head| (0..rows).flat_map(move |row| (0..keys).map(move |key| (head, row, key))))
        .map(|(head, row, key)| sees(head, row, key))
        .collect();
    let mask = Tensor::head_first(&mask, [1, heads[0], rows, keys]);
    let by_mask = run(dense[0], dense[1], &|a| compute(a.mask(mask))).expect("an output");
    let distance = by_lists.iter().zip(&by_mask).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(distance < 1e-5, "{distance}");
    assert!(by_lists[(2 * rows + 4) * dim..][..4 * dim].iter().all(|&x| x == 0.0), "rows without a block");

    let refused = |kept: KeptBlocks| {
        let error = run(dense[0], dense[1], &|a| compute(a.kept_blocks(kept))).expect_err("refused");
        (error.error, error.to_string())
    };
    for (kept, error, words) in [
        (KeptBlocks { heads: 3, ..kept }, Error::Shape, "heads of kept_blocks = 3"),
        (KeptBlocks { heads: 0, ..kept }, Error::Shape, "heads of kept_blocks = 0"),
        (KeptBlocks { sequences: 2, ..kept }, Error::Shape, "sequences of kept_blocks = 2"),
        (KeptBlocks { starts: &kept.starts[1..], ..kept }, Error::Shape, "starts of kept_blocks = 7"),
        (KeptBlocks { rows: 1, ..kept }, Error::Shape, ""),
        (KeptBlocks { rows: 0, ..kept }, Error::ZeroExtent, ""),
        (KeptBlocks { blocks: &kept.blocks[..5], ..kept }, Error::Lengths, "kept_start[7] = 6"),
    ] {
        let got = refused(kept);
        assert!(got.0 == error && got.1.contains(words), "{error:?}, {words}: {got:?}");
    }

    // Keys 5 and 31 are seen by all rows, beside a window of two keys before each row.
    let columns = Columns { starts: &[0, 2], keys: &[5, 31], sequences: 1, heads: 1 };
    let by_columns = run(dense[0], dense[1], &|a| compute(a.window(Some(2), Some(0)).columns(columns)))
        .expect("an output");
    let mask: Vec<bool> = (0..rows)
        .flat_map(|row| (0..keys).map(move |key| (row + keys - rows, key)))
        .map(|(p, key)| key <= p && (key + 2 >= p || [5, 31].contains(&key)))
        .collect();
    let mask = mask.repeat(heads[0]);
    let mask = Tensor::head_first(&mask, [1, heads[0], rows, keys]);
    let by_mask = run(dense[0], dense[1], &|a| compute(a.mask(mask))).expect("an output");
    let distance = by_columns.iter().zip(&by_mask).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(distance < 1e-5, "{distance}");
    for (columns, error, words) in [
        (Columns { heads: 3, ..columns }, Error::Shape, "heads of columns = 3"),
        (Columns { sequences: 2, ..columns }, Error::Shape, "sequences of columns = 2"),
        (Columns { starts: &[0, 1, 2], ..columns }, Error::Shape, "starts of columns = 3"),
        (Columns { keys: &[5, 32], ..columns }, Error::Lengths, "columns[1] = 32"),
        (Columns { keys: &[5, 5], ..columns }, Error::Lengths, "columns[1] = 5"),
    ] {
        let error_of = run(dense[0], dense[1], &|a| compute(a.columns(columns))).expect_err("refused");
        assert!(error_of.error == error && error_of.to_string().contains(words), "{words}: {error_of}");
    }

    // Pages of 8 keys: each kv head has two of four, in another order.
    let table = [2, 0, 1, 3];
    let pages = [&k, &v].map(|x| Tensor::head_first(x, [4, heads[1], size, dim]));
    let of_heads = run(pages[0], pages[1], &|a| compute(a.pages_of_heads(&table, 16))).expect("an output");
    let alone =
        |list: &'static [i32]| run(pages[0], pages[1], &|a| compute(a.pages(list, 16))).expect("an output");
    let half = 2 * rows * dim;
    assert!(bits(&of_heads[..half]) == bits(&alone(&[2, 0])[..half]));
    assert!(bits(&of_heads[half..]) == bits(&alone(&[1, 3])[half..]));
    let error = run(pages[0], pages[1], &|a| compute(a.pages_of_heads(&table[..3], 16)));
    let error = error.expect_err("three entries for two kv heads");
    assert_eq!(error.error, Error::Shape);
    assert!(error.to_string().contains("not a row for each kv head of each sequence"), "{error}");
}
