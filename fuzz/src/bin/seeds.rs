//! Writes inputs that are legal, for `describe` descriptions that the generator makes: where a
//! fuzzer begins if there is no corpus, as after a change of the structure. Argument: the folder
//! for the targets' folders.

use std::fs;
use std::path::PathBuf;

use flash_attention::capi::attention::{FA_POS_END, fa_attention};
use flash_attention::capi::tensor::{fa_quant, fa_tensor};
use flash_attention_fuzz::common::Random;
use flash_attention_fuzz::definition::{BF16, BLOCKS, F16, F32, I8, Q15, block};
use flash_attention_fuzz::description::{Case, Chooser, empty};
use flash_attention_fuzz::general::LISTED;
use flash_attention_fuzz::pointers::MOST;

fn main() {
    let folder = PathBuf::from(std::env::args_os().nth(1).expect("a folder"));
    let write = |target: &str, name: u64, bytes: &[u8]| {
        let folder = folder.join(target);
        fs::create_dir_all(&folder).expect("a folder that can be made");
        fs::write(folder.join(format!("{name:03}")), bytes).expect("a file that can be written");
    };
    for seed in 0..400 {
        let chooser = Chooser { choices: &[], random: Random(seed << 32) };
        let is_small = |a: &fa_attention| {
            let bytes = a.batch * a.heads_q * a.len_q.max(a.len_kv) * a.dim_qk.max(a.dim_v) * 4;
            bytes <= MOST as i64
        };
        let Some(case) = Case::chosen(chooser, false, format!("seed {seed}"), is_small) else { continue };
        if let Some(bytes) = encode(&case.a) {
            write("describe", seed, &bytes);
        }
    }
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    // The simple calls: 2 heads, 3 rows, 5 keys, of 8 elements; scale and threads are 1.
    for (function, one) in (0..3u8).zip([1f32; 3]) {
        let mut bytes = vec![0, 0, function, 0, 0, 0, 0, 0, 0];
        bytes.extend(words(&[0, 0, 8]));
        bytes.extend([0; 4]);
        bytes.extend(one.to_le_bytes());
        bytes.extend(words(&[1, 2, 3, 5, 1, 1, 1, 1]));
        bytes.extend([one; 3].map(f32::to_le_bytes).concat());
        write("describe", 900 + u64::from(function), &bytes);
    }
    let mut random = Random(1);
    for name in 0..16 {
        let bytes: Vec<u8> = (0..200).map(|_| random.bits() as u8).collect();
        write("attention", name, &bytes);
    }
    // [2][2][6][10] numbers to integers with a scale for each head, or for 4 tokens and 5 channels.
    for (name, stride, groups) in [(0, [0, 1, 0, 0], [1, 1]), (1, [0, 0, 2, 1], [4, 5])] {
        let groups = groups[0] | groups[1] << 32;
        let [src, dst] = [[480, 240, 40, 0], [120, 60, 10, 3]];
        let [a, b, c, d] = stride;
        let fields =
            [&[2, 2, 6, 10][..], &src[..], &dst[..], &[a, b, c, d, groups, 1, 1, 1, 1, name, 0]].concat();
        write("quantize", name, &words(&fields));
    }
    append(|name, bytes| write("append", name, bytes));
    write("merge", 0, &words(&[3, 5, 1, 1, 1, 1, 0]));
    // One head; and 4 heads on 2, causal, with a scale of 3 / 4.
    write("fixed", 0, &words(&[0, 0, 8, 0, 1 << 32, 1, 1, 3, 40, 2, 2, 2, 2]));
    write("fixed", 1, &words(&[1, 0, 5, 3 | 2 << 32, 1 | 1 << 32, 4, 2, 7, 9, 2, 2, 2, 2]));
    // 40 tokens, causal, in 3 partitions with 3 boundary tokens, by each schedule.
    for schedule in 0..4 {
        let sizes = [0, 40, 40, 4, 8, 3, 3, 2, 5, 200];
        let numbers = [1 | 100 << 32, 30 | 300 << 32, 3277 | 3277 << 32, 29491 | schedule << 32];
        let mut bytes = words(&[&sizes[..], &numbers[..]].concat());
        bytes.extend([0, 9, 14, 0, 11, 12]);
        write("partitions", schedule, &bytes);
    }
}

/// New tokens of two sequences into caches of all types, dense, ragged and in pages, integers with
/// scales of each token or of all; Q has the new keys, O the new values.
fn append(mut write: impl FnMut(u64, &[u8])) {
    let starts = [[0, 2, 3], [0, 3, 8]];
    let (lens, table) = ([3, 5], [2, 0, 1, 3, 4, 5]);
    let somewhere = starts.as_ptr();
    let own = fa_quant {
        scale: somewhere.cast(),
        zero: somewhere.cast(),
        stride: [12, 6, 1, 0],
        group_tokens: 1,
        group_dims: 1,
    };
    let given = fa_quant { zero: std::ptr::null(), stride: [0; 4], ..own };
    let scales = fa_quant { zero: std::ptr::null(), ..own };
    let types = [F32, F16, BF16, I8, Q15].into_iter().chain(BLOCKS);
    for (i, dtype) in types.enumerate() {
        for kind in 0..3 {
            let mut a = empty();
            (a.batch, a.heads_q, a.heads_kv, a.len_q, a.len_kv) = (2, 2, 2, 2, 6);
            (a.dim_qk, a.dim_v) = (32, 32);
            let rows = |dtype: i32, stride: [i64; 3]| {
                let [elements, bytes] = block(dtype);
                fa_tensor {
                    data: somewhere.cast_mut().cast(),
                    stride: stride.map(|n| n * (32 / elements * bytes)),
                    dtype,
                    stride_dim: 0,
                    quant: std::ptr::null(),
                }
            };
            (a.q, a.o) = (rows(F32, [4, 2, 1]), rows(F16, [4, 2, 1]));
            (a.k, a.v) = (rows(dtype, [12, 6, 1]), rows(if i % 2 == 0 { I8 } else { BF16 }, [12, 6, 1]));
            (a.kv_lens, a.q_pos) = (lens.as_ptr(), FA_POS_END);
            if kind == 1 {
                (a.cu_len_q, a.cu_len_kv) = (starts[0].as_ptr(), starts[1].as_ptr());
                for tensor in [&mut a.k, &mut a.v] {
                    tensor.stride[1] = tensor.stride[2] * 8;
                }
            }
            if kind == 2 {
                a.block_table = table.as_ptr();
                (a.table_stride, a.page_size, a.num_pages) = (3, 2, 6);
                for tensor in [&mut a.k, &mut a.v] {
                    tensor.stride = [4, 2, 1].map(|n| n * tensor.stride[2]);
                }
            }
            for tensor in [&mut a.k, &mut a.v].into_iter().filter(|tensor| [I8, Q15].contains(&tensor.dtype))
            {
                let own = if tensor.dtype == I8 { &own } else { &scales };
                tensor.quant = if (i + kind) % 2 == 0 { own } else { &given };
            }
            // Without the byte that says which call it is.
            if let Some(bytes) = encode(&a) {
                write((3 * i + kind) as u64, &bytes[1..]);
            }
        }
    }
}

/// In the order in which `Described::read` reads; None if its lists are longer than those of
/// inputs.
fn encode(a: &fa_attention) -> Option<Vec<u8>> {
    let mut bytes = vec![1u8];
    bytes.extend([0, 2, 0, 0, 100, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let word = |x: i64| x.to_le_bytes();
    // A pointer to memory that ends at a guard page, or NULL.
    let code = |is_null: bool| word(i64::from(!is_null));
    let tensor = |bytes: &mut Vec<u8>, x: &fa_tensor| {
        bytes.extend(code(x.data.is_null()));
        x.stride.iter().for_each(|&stride| bytes.extend(word(stride)));
        bytes.extend(x.dtype.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(code(x.quant.is_null()));
    };
    bytes.extend(word(a.struct_size as i64));
    bytes.extend(a.flags.to_le_bytes());
    bytes.extend([0; 4]);
    for x in [a.batch, a.heads_q, a.heads_kv, a.len_q, a.len_kv, a.dim_qk, a.dim_v] {
        bytes.extend(word(x));
    }
    [&a.q, &a.k, &a.v, &a.o].into_iter().for_each(|x| tensor(&mut bytes, x));
    bytes.extend(a.scale.to_le_bytes());
    bytes.extend(a.softcap.to_le_bytes());
    [a.q_pos, a.window_left, a.window_right].into_iter().for_each(|x| bytes.extend(word(x)));
    tensor(&mut bytes, &a.mask);
    bytes.extend(code(a.alibi_slopes.is_null()));
    bytes.extend(word(a.alibi_batch_stride));
    bytes.extend(code(a.sinks.is_null()));
    bytes.extend(code(a.block_mask.is_null()));
    a.block_mask_stride.into_iter().for_each(|x| bytes.extend(word(x)));
    [a.block_mask_q, a.block_mask_kv].into_iter().for_each(|x| bytes.extend(word(x)));
    let lists = [a.cu_len_q, a.cu_len_kv, a.kv_lens, a.block_table, a.block_table_start];
    let later = [a.q_positions, a.kv_starts, a.spans, a.span_starts];
    lists.iter().for_each(|list| bytes.extend(code(list.is_null())));
    [a.table_stride, a.page_size, a.num_pages].into_iter().for_each(|x| bytes.extend(word(x)));
    bytes.extend(code(a.lse.is_null()));
    a.lse_stride.into_iter().for_each(|x| bytes.extend(word(x)));
    [a.block_q, a.block_kv].into_iter().for_each(|x| bytes.extend(word(x)));
    for x in [&a.q, &a.k, &a.v] {
        // SAFETY: NULL or a quant of the case.
        let none = fa_quant {
            scale: std::ptr::null(),
            zero: std::ptr::null(),
            stride: [0; 4],
            group_tokens: 1,
            group_dims: 1,
        };
        // SAFETY: as above.
        let quant = unsafe { x.quant.as_ref() }.unwrap_or(&none);
        bytes.extend(code(quant.scale.is_null()));
        bytes.extend(code(quant.zero.is_null()));
        quant.stride.iter().for_each(|&stride| bytes.extend(word(stride)));
        bytes.extend(quant.group_tokens.to_le_bytes());
        bytes.extend(quant.group_dims.to_le_bytes());
    }
    let batch = a.batch as usize;
    let table = match a.block_table_start.is_null() {
        true => batch * a.table_stride as usize,
        // SAFETY: [batch + 1] values.
        false => unsafe { *a.block_table_start.add(batch) as usize },
    };
    let spans = match a.span_starts.is_null() {
        true => 0,
        // SAFETY: [batch + 1] values.
        false => unsafe { 2 * *a.span_starts.add(batch) as usize },
    };
    let lengths = [batch + 1, batch + 1, batch, table, batch + 1, batch, batch, spans, batch + 1];
    for (i, list) in lists.into_iter().chain(later).enumerate() {
        if i == lists.len() {
            later.iter().for_each(|list| bytes.extend(code(list.is_null())));
            bytes.extend(word(a.prefix_keys));
        }
        if list.is_null() {
            bytes.extend([0].repeat(4 * LISTED[i]));
        } else if lengths[i] > LISTED[i] {
            return None;
        } else {
            // SAFETY: as many values.
            let values = (0..lengths[i]).map(|at| unsafe { *list.add(at) });
            values.clone().for_each(|x| bytes.extend(x.to_le_bytes()));
            bytes.extend([0].repeat(4 * (LISTED[i] - lengths[i])));
        }
    }
    tensor(&mut bytes, &a.weights);
    let lists = [(a.weight_heads, a.num_weight_heads, 9), (a.weight_rows, a.num_weight_rows, 10)];
    lists.iter().for_each(|(list, ..)| bytes.extend(code(list.is_null())));
    lists.iter().for_each(|&(_, n, _)| bytes.extend(word(n)));
    for (list, n, i) in lists {
        let n = if list.is_null() { 0 } else { n as usize };
        if n > LISTED[i] {
            return None;
        }
        // SAFETY: as many values.
        (0..n).for_each(|at| bytes.extend(unsafe { *list.add(at) }.to_le_bytes()));
        bytes.extend([0].repeat(4 * (LISTED[i] - n)));
    }
    bytes.extend(code(a.kept_start.is_null()));
    bytes.extend(code(a.kept_blocks.is_null()));
    a.kept_stride.into_iter().for_each(|x| bytes.extend(word(x)));
    [a.kept_heads, a.kept_q, a.kept_kv, a.table_head_stride].into_iter().for_each(|x| bytes.extend(word(x)));
    let kept = if a.kept_q > 0 { (a.len_q + a.kept_q - 1) / a.kept_q } else { 0 };
    put_lists(&mut bytes, a, [a.kept_start, a.kept_blocks], (a.kept_heads, a.kept_stride, kept), 11)?;
    bytes.extend(code(a.column_start.is_null()));
    bytes.extend(code(a.columns.is_null()));
    a.column_stride.into_iter().for_each(|x| bytes.extend(word(x)));
    bytes.extend(word(a.column_heads));
    put_lists(&mut bytes, a, [a.column_start, a.columns], (a.column_heads, a.column_stride, 1), 13)?;
    [a.q_bytes, a.k_bytes, a.v_bytes, a.o_bytes].into_iter().for_each(|x| bytes.extend(word(x)));
    [a.mask_bytes, a.lse_bytes, a.weights_bytes].into_iter().for_each(|x| bytes.extend(word(x)));
    Some(bytes)
}

/// Writes starts and entries of lists, which are list `number` and the next: of so many heads, with
/// these strides, and so many lists a head. `None` if they are longer than an input gives.
fn put_lists(
    bytes: &mut Vec<u8>,
    a: &fa_attention,
    [starts, entries]: [*const i32; 2],
    (heads, stride, lists): (i64, [i64; 2], i64),
    number: usize,
) -> Option<()> {
    let mut lengths = [0; 2];
    if !starts.is_null() {
        let heads = if heads == 0 { a.heads_q } else { heads };
        let last = |b: i64, h: i64| (b * stride[0] + h * stride[1] + lists) as usize;
        let all = (0..a.batch).flat_map(|b| (0..heads).map(move |h| last(b, h)));
        // SAFETY: an entry for each list of a head, and one more.
        let most = all.map(|at| unsafe { *starts.add(at) }).max().unwrap_or(0);
        lengths = [last(a.batch - 1, heads - 1) + 1, most as usize];
    }
    for (i, (list, n)) in [starts, entries].into_iter().zip(lengths).enumerate() {
        let room = LISTED[number + i];
        if n > room {
            return None;
        }
        // SAFETY: as many values.
        (0..n).for_each(|at| bytes.extend(unsafe { *list.add(at) }.to_le_bytes()));
        bytes.extend([0].repeat(4 * (room - n)));
    }
    Some(())
}
