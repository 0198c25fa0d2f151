//! What Rust's interface has of C's beside the plain call: the same fields, functions and numbers,
//! to the bit.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use common::Random;
use flash_attention::capi::attention::{FA_MASK_TIMES_SLOPE, fa_attention, fa_attention_init};
use flash_attention::capi::merge::fa_merge;
use flash_attention::capi::quantize::fa_quantize_i8;
use flash_attention::capi::run::{
    fa_attention_finish, fa_attention_part, fa_attention_run, fa_attention_workspace,
    fa_attention_workspace_max,
};
use flash_attention::capi::status::fa_status;
use flash_attention::capi::tensor::{fa_dtype, fa_quant, fa_tensor};
use flash_attention::{
    Append, Attention, DataMut, Error, KeptBlocks, Pool, Refusal, Task, Tensor, TensorMut, Workspace, merge,
    quantize_smoothed,
};

/// Sequences, query heads, kv heads, query rows, keys, elements of a row.
type Sizes = [usize; 6];

/// Prefill in several tiles, few rows on many keys, and what needs no workspace.
const SHAPES: [Sizes; 3] = [[2, 4, 2, 90, 170, 24], [1, 2, 1, 1, 9000, 32], [1, 1, 1, 1, 3, 8]];

/// Numbers for a problem of these sizes, head first.
struct Numbers {
    sizes: Sizes,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Numbers {
    fn new(sizes: Sizes, seed: u64) -> Numbers {
        let mut random = Random(seed);
        let [batch, heads_q, heads_kv, len_q, len_kv, dim] = sizes;
        let [q, kv] = [batch * heads_q * len_q * dim, batch * heads_kv * len_kv * dim];
        Numbers { sizes, q: random.normals(q), k: random.normals(kv), v: random.normals(kv) }
    }

    fn rust<'a>(&'a self, out: &'a mut [f32]) -> Attention<'a> {
        let [batch, heads_q, heads_kv, len_q, len_kv, dim] = self.sizes;
        Attention::new(
            Tensor::head_first(&self.q, [batch, heads_q, len_q, dim]),
            Tensor::head_first(&self.k, [batch, heads_kv, len_kv, dim]),
            Tensor::head_first(&self.v, [batch, heads_kv, len_kv, dim]),
            TensorMut::head_first(out, [batch, heads_q, len_q, dim]),
        )
    }

    fn c(&self, out: &mut [f32]) -> fa_attention {
        let [batch, heads_q, heads_kv, len_q, len_kv, dim] = self.sizes.map(|n| n as i64);
        let mut a = std::mem::MaybeUninit::uninit();
        // SAFETY: room for one; the call fills it.
        let mut a = unsafe {
            assert_eq!(fa_attention_init(a.as_mut_ptr(), size_of::<fa_attention>()), fa_status::FA_OK);
            a.assume_init()
        };
        (a.batch, a.heads_q, a.heads_kv) = (batch, heads_q, heads_kv);
        (a.len_q, a.len_kv, a.dim_qk, a.dim_v) = (len_q, len_kv, dim, dim);
        let row = 4 * dim;
        let of_q = [heads_q * len_q * row, len_q * row, row];
        let of_kv = [heads_kv * len_kv * row, len_kv * row, row];
        (a.q.data, a.q.stride) = (self.q.as_ptr().cast_mut().cast(), of_q);
        (a.k.data, a.k.stride) = (self.k.as_ptr().cast_mut().cast(), of_kv);
        (a.v.data, a.v.stride) = (self.v.as_ptr().cast_mut().cast(), of_kv);
        (a.o.data, a.o.stride) = (out.as_mut_ptr().cast(), of_q);
        a
    }

    fn output(&self) -> Vec<f32> {
        vec![f32::NAN; self.q.len()]
    }
}

fn run(a: &mut Attention) -> Result<(), Refusal> {
    let (mut workspace, pool) = (Workspace::new(), Pool::default());
    a.reserve(&mut workspace, &pool)?;
    a.run(&mut workspace, &pool)
}

fn run_c(a: &fa_attention) {
    let mut memory = vec![0u8; 1 << 22];
    // SAFETY: the description is of slices that are there, and nobody else uses them.
    let status = unsafe { fa_attention_run(a, memory.as_mut_ptr().cast(), memory.len(), std::ptr::null()) };
    assert_eq!(status, fa_status::FA_OK);
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Masks of blocks, of all heads and sequences or of each, and tiles that are asked for.
#[test]
fn masks_of_blocks_and_tiles_are_those_of_c() {
    let numbers = Numbers::new(SHAPES[0], 1);
    let [batch, heads, _, len_q, len_kv, _] = numbers.sizes;
    let mut plain = numbers.output();
    run(&mut numbers.rust(&mut plain)).unwrap();
    let mut random = Random(2);
    for (of_batch, of_heads, rows, keys, tiles) in
        [(1, 1, 8, 16, [0, 0]), (batch, heads, 7, 10, [16, 32]), (1, heads, 100, 64, [5, 16])]
    {
        let blocks = [len_q.div_ceil(rows), len_kv.div_ceil(keys)];
        let seen: Vec<bool> =
            (0..of_batch * of_heads * blocks[0] * blocks[1]).map(|_| random.below(3) > 0).collect();
        let mut out = numbers.output();
        let mask = Tensor::head_first(&seen, [of_batch, of_heads, blocks[0], blocks[1]]);
        let mut a = numbers.rust(&mut out).block_mask(mask, rows, keys).tiles(tiles[0], tiles[1]);
        let plan = a.plan(&Pool::default()).unwrap();
        assert!(tiles[1] == 0 || plan.tile_keys == tiles[1], "{plan:?}");
        run(&mut a).unwrap();

        let mut of_c = numbers.output();
        let mut c = numbers.c(&mut of_c);
        let head = if of_heads > 1 { blocks[0] * blocks[1] } else { 0 };
        let entry = if of_batch > 1 { of_heads * blocks[0] * blocks[1] } else { 0 };
        (c.block_mask, c.block_mask_stride) =
            (seen.as_ptr().cast(), [entry, head, blocks[1]].map(|n| n as i64));
        (c.block_mask_q, c.block_mask_kv) = (rows as i64, keys as i64);
        [c.block_q, c.block_kv] = tiles.map(|n| n as i64);
        run_c(&c);
        assert_eq!(bits(&out), bits(&of_c));
        assert_ne!(bits(&out), bits(&plain));
    }
    // Of a ragged batch there are blocks for the longest sequence.
    let (starts_q, starts_kv, seen) = ([0, 60, 90], [0, 100, 170], [true, false, false, true, true, true]);
    let ragged = Numbers { sizes: [1, 4, 2, 90, 170, 24], ..Numbers::new([1, 4, 2, 90, 170, 24], 3) };
    let (mut out, mut of_c) = (ragged.output(), ragged.output());
    let mask = Tensor::head_first(&seen, [1, 1, 2, 3]);
    let a = ragged.rust(&mut out).block_mask(mask, 40, 40).cu_len_q(&starts_q).cu_len_kv(&starts_kv);
    run(&mut { a }).unwrap();
    let mut c = ragged.c(&mut of_c);
    (c.batch, c.len_q, c.len_kv) = (2, 60, 100);
    (c.cu_len_q, c.cu_len_kv) = (starts_q.as_ptr(), starts_kv.as_ptr());
    (c.block_mask, c.block_mask_stride) = (seen.as_ptr().cast(), [0, 0, 3]);
    (c.block_mask_q, c.block_mask_kv) = (40, 40);
    run_c(&c);
    assert_eq!(bits(&out), bits(&of_c));
}

/// Slopes that multiply a mask of distances, and pages in lists of different lengths.
#[test]
fn slopes_of_masks_and_lists_of_pages_are_those_of_c() {
    let numbers = Numbers::new(SHAPES[0], 4);
    let [batch, heads, heads_kv, len_q, len_kv, dim] = numbers.sizes;
    let mut random = Random(5);
    let (mask, slopes) = (random.normals(len_q * len_kv), random.normals(heads));
    let (mut out, mut of_c, mut added) = (numbers.output(), numbers.output(), numbers.output());
    let of_mask = Tensor::head_first(&mask, [1, 1, len_q, len_kv]);
    run(&mut numbers.rust(&mut added).mask(of_mask).alibi_slopes(&slopes)).unwrap();
    run(&mut numbers.rust(&mut out).mask(of_mask).alibi_slopes(&slopes).mask_times_slope()).unwrap();
    let mut c = numbers.c(&mut of_c);
    (c.mask.data, c.mask.stride) = (mask.as_ptr().cast_mut().cast(), [0, 0, 4 * len_kv as i64]);
    (c.alibi_slopes, c.flags) = (slopes.as_ptr(), FA_MASK_TIMES_SLOPE);
    run_c(&c);
    assert_eq!(bits(&out), bits(&of_c));
    assert_ne!(bits(&out), bits(&added));

    // Ten keys a page: 17 pages, of which sequence 0 has three and sequence 1 five.
    let (table, starts, lens) = ([16, 3, 8, 1, 0, 9, 4, 12], [0, 3, 8], [30, 41]);
    let [page, pages] = [10, 17];
    let paged = Numbers { sizes: [pages, heads, heads_kv, page, page, dim], ..Numbers::new(SHAPES[0], 6) };
    let (mut out, mut of_c) = (numbers.output(), numbers.output());
    let [k, v] = [&paged.k, &paged.v]
        .map(|x| Tensor::head_first(&x[..pages * heads_kv * page * dim], [pages, heads_kv, page, dim]));
    let queries = Tensor::head_first(&numbers.q, [batch, heads, len_q, dim]);
    let to = TensorMut::head_first(&mut out, [batch, heads, len_q, dim]);
    run(&mut Attention::new(queries, k, v, to).page_lists(&table, &starts, 50).kv_lens(&lens)).unwrap();
    let mut c = numbers.c(&mut of_c);
    let row = 4 * dim as i64;
    let stride = [(heads_kv * page) as i64 * row, page as i64 * row, row];
    (c.k.data, c.k.stride) = (paged.k.as_ptr().cast_mut().cast(), stride);
    (c.v.data, c.v.stride) = (paged.v.as_ptr().cast_mut().cast(), stride);
    (c.block_table, c.block_table_start, c.kv_lens) = (table.as_ptr(), starts.as_ptr(), lens.as_ptr());
    (c.page_size, c.num_pages, c.len_kv) = (page as i64, pages as i64, 50);
    run_c(&c);
    assert_eq!(bits(&out), bits(&of_c));

    // New tokens, the last two of each sequence, go where these lists say.
    let new = random.normals(batch * heads_kv * 2 * dim);
    let tokens = Tensor::head_first(&new, [batch, heads_kv, 2, dim]);
    let size = pages * heads_kv * page * dim;
    let write = |with: &dyn Fn(Append) -> Result<(), Refusal>| {
        let mut cache = vec![0.0; size];
        with(Append::keys(TensorMut::head_first(&mut cache, [pages, heads_kv, page, dim]), tokens)).unwrap();
        cache
    };
    let lists = write(&|append| append.page_lists(&table, &starts, 50).kv_lens(&lens).run());
    let rows = [16, 3, 8, -1, -1, 1, 0, 9, 4, 12];
    assert_eq!(lists, write(&|append| append.pages(&rows, 50).kv_lens(&lens).run()));
    assert_eq!(lists.iter().filter(|&&x| x != 0.0).count(), new.len());
}

/// Threads of the program, however many come, whenever and to how much: bits of one thread.
#[test]
fn parts_have_the_bits_of_one_thread() {
    for (seed, sizes) in SHAPES.into_iter().enumerate() {
        let numbers = Numbers::new(sizes, seed as u64);
        let mut alone = numbers.output();
        run(&mut numbers.rust(&mut alone)).unwrap();
        for threads in [1, 2, 5] {
            let (mut out, mut of_c) = (numbers.output(), numbers.output());
            let mut a = numbers.rust(&mut out);
            let mut workspace = Workspace::new();
            workspace.reserve(a.workspace(threads).unwrap()).unwrap();
            // All of them at the same time; fewer than were said; one after another; nobody.
            for coming in [threads, 1, 0] {
                let calls = AtomicUsize::new(0);
                let answer = a.run_in_parts(&mut workspace, threads, |parts| {
                    std::thread::scope(|scope| {
                        for _ in 0..coming {
                            scope.spawn(|| {
                                parts.compute();
                                calls.fetch_add(1, Ordering::Relaxed);
                            });
                        }
                    });
                    parts.compute();
                    calls.load(Ordering::Relaxed)
                });
                assert_eq!(answer, Ok(coming));
                let mut nobody = false;
                a.run_in_parts(&mut workspace, threads, |_| nobody = true).unwrap();
                assert!(nobody);
            }
            assert_eq!(bits(&out), bits(&alone), "{sizes:?}, {threads} threads");

            // C's parts, one after another.
            let c = numbers.c(&mut of_c);
            let mut memory = vec![0u8; workspace.bytes()];
            for part in 0..threads as i32 {
                let (ws, n) = (memory.as_mut_ptr().cast(), threads as i32);
                // SAFETY: the slices are there, and this thread alone uses them.
                let status = unsafe { fa_attention_part(&c, ws, memory.len(), part, n) };
                assert_eq!(status, fa_status::FA_OK);
            }
            for part in 0..threads as i32 {
                let (ws, n) = (memory.as_mut_ptr().cast(), threads as i32);
                // SAFETY: as above, and all parts have been computed.
                let status = unsafe { fa_attention_finish(&c, ws, memory.len(), part, n) };
                assert_eq!(status, fa_status::FA_OK);
            }
            assert_eq!(bits(&of_c), bits(&alone));
        }
    }
}

/// What a program's threads compute is all there, though none of them is left when the body
/// returns.
#[test]
fn what_parts_leave_the_caller_computes() {
    let numbers = Numbers::new(SHAPES[1], 7);
    let (mut alone, mut out) = (numbers.output(), numbers.output());
    run(&mut numbers.rust(&mut alone)).unwrap();
    let mut a = numbers.rust(&mut out);
    let mut workspace = Workspace::new();
    workspace.reserve(a.workspace(4).unwrap()).unwrap();
    a.run_in_parts(&mut workspace, 4, |_| ()).unwrap();
    assert_eq!(bits(&out), bits(&alone));
}

#[test]
fn parts_are_refused_before_anything_is_called() {
    let numbers = Numbers::new(SHAPES[0], 8);
    let mut out = numbers.output();
    let mut a = numbers.rust(&mut out);
    let mut workspace = Workspace::new();
    for (threads, words) in [
        (0, "threads = 0: must be at least 1"),
        (257, "threads = 257: more than a call has = 256"),
        (2, "bytes of the workspace = 0: fewer than the call needs"),
    ] {
        let refusal = a.run_in_parts(&mut workspace, threads, |_| panic!("called")).unwrap_err();
        assert!(refusal.to_string().starts_with(words), "{refusal}");
        assert_eq!(refusal.error, if threads == 2 { Error::Workspace } else { Error::Part });
    }
    assert_eq!(a.workspace(0).unwrap_err().error, Error::Part);
    assert_eq!(a.workspace_max(257).unwrap_err().error, Error::Part);
    assert!(out.iter().all(|x| x.is_nan()));
}

/// Bytes for each number of threads, and the most of them; and whether a call would do.
#[test]
fn workspaces_are_those_of_c() {
    for sizes in SHAPES {
        let numbers = Numbers::new(sizes, 9);
        let (mut out, mut of_c) = (numbers.output(), numbers.output());
        let (mut a, c) = (numbers.rust(&mut out), numbers.c(&mut of_c));
        let mut most = 0;
        for threads in 1..=9 {
            let (mut bytes, mut bytes_max) = (0, 0);
            // SAFETY: the description is of slices that are there.
            unsafe {
                assert_eq!(fa_attention_workspace(&c, threads, &mut bytes), fa_status::FA_OK);
                assert_eq!(fa_attention_workspace_max(&c, threads, &mut bytes_max), fa_status::FA_OK);
            }
            assert_eq!(a.workspace(threads as usize), Ok(bytes));
            assert_eq!(a.workspace_max(threads as usize), Ok(bytes_max));
            most = most.max(bytes);
            assert_eq!(most, bytes_max);
        }
        let (mut workspace, pool) = (Workspace::new(), Pool::new(3).unwrap());
        let needs_some = a.plan(&pool).unwrap().thread_bytes > 0 && sizes[4] > 3;
        let before = a.check_run(&workspace, &pool);
        assert_eq!(before.is_err(), needs_some, "{before:?}");
        assert_eq!(before, a.run(&mut workspace, &pool));
        workspace.reserve(most).unwrap();
        assert_eq!(a.check_run(&workspace, &pool), Ok(()));
        a.run(&mut workspace, &pool).unwrap();
    }
    // What is wrong with the problem is said first.
    let numbers = Numbers::new(SHAPES[0], 10);
    let mut out = numbers.output();
    let refusal = numbers.rust(&mut out).softcap(-1.0).check_run(&Workspace::new(), &Pool::default());
    assert_eq!(refusal.unwrap_err().error, Error::Softcap);
}

/// Threads that jobs are started on: at work, busy, late, or gone.
#[test]
fn spawned_threads_change_no_bits_and_are_not_waited_for() {
    let (jobs, queue) = mpsc::channel::<Task>();
    let queue = Arc::new(Mutex::new(queue));
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let queue = queue.clone();
            std::thread::spawn(move || {
                loop {
                    let next = queue.lock().unwrap().recv();
                    let Ok(task) = next else { break };
                    task.run();
                }
            })
        })
        .collect();
    let at_work = Pool::from_spawn(3, move |task| jobs.send(task).unwrap()).unwrap();
    let late = Arc::new(Mutex::new(Vec::new()));
    let kept = late.clone();
    let too_late = Pool::from_spawn(4, move |task| kept.lock().unwrap().push(task)).unwrap();
    let here = Pool::from_spawn(2, Task::run).unwrap();
    assert_eq!([&at_work, &too_late, &here].map(Pool::threads), [3, 4, 2]);
    assert_eq!(format!("{at_work:?}"), "Pool(3)");
    for sizes in SHAPES {
        let numbers = Numbers::new(sizes, 11);
        let mut alone = numbers.output();
        run(&mut numbers.rust(&mut alone)).unwrap();
        for pool in [&at_work, &too_late, &here] {
            let (mut out, mut workspace) = (numbers.output(), Workspace::new());
            let mut a = numbers.rust(&mut out);
            let plan = a.plan(pool).unwrap();
            a.reserve(&mut workspace, pool).unwrap();
            a.run(&mut workspace, pool).unwrap();
            if pool.threads() == 4 {
                let tasks = std::mem::take(&mut *late.lock().unwrap());
                assert_eq!(tasks.len(), plan.threads - 1);
                // The call has returned: they do nothing.
                tasks.into_iter().for_each(Task::run);
            }
            assert_eq!(bits(&out), bits(&alone), "{sizes:?}, {pool:?}");
        }
    }
    assert_eq!(Pool::from_spawn(0, |_| ()).unwrap_err().error, Error::Part);
    assert_eq!(Pool::from_spawn(257, |_| ()).unwrap_err().error, Error::Part);
    fn is_shared<T: Send + Sync>(_: &T) {}
    is_shared(&at_work);
    drop(at_work);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn merged_results_are_those_of_c() {
    let (rows, dim) = (5, 3);
    let mut random = Random(12);
    let [o, o2] = [(); 2].map(|()| random.normals(rows * dim));
    let [mut lse, lse2] = [(); 2].map(|()| random.normals(rows));
    lse[2] = f32::NEG_INFINITY;
    let (mut ours, mut ours_lse) = (o.clone(), lse.clone());
    merge(&mut ours, &mut ours_lse, &o2, &lse2).unwrap();
    let (mut of_c, mut of_c_lse) = (o.clone(), lse.clone());
    let to = (of_c.as_mut_ptr(), of_c_lse.as_mut_ptr());
    // SAFETY: slices of these sizes.
    let status = unsafe { fa_merge(to.0, to.1, o2.as_ptr(), lse2.as_ptr(), rows as i64, dim as i64) };
    assert_eq!(status, fa_status::FA_OK);
    assert_eq!((bits(&ours), bits(&ours_lse)), (bits(&of_c), bits(&of_c_lse)));
    assert_eq!((ours[6], ours_lse[2]), (o2[6], lse2[2]));
    assert_ne!(bits(&ours), bits(&o));

    let before = bits(&ours);
    for (refused, error) in [
        (merge(&mut ours, &mut ours_lse, &o2[1..], &lse2), Error::Shape),
        (merge(&mut ours, &mut ours_lse, &o2, &lse2[1..]), Error::Shape),
        (merge(&mut ours[1..], &mut ours_lse, &o2[1..], &lse2), Error::Shape),
        (merge(&mut ours, &mut [], &o2, &[]), Error::Shape),
        (merge(&mut [], &mut ours_lse, &[], &lse2), Error::ZeroExtent),
    ] {
        assert_eq!(refused.unwrap_err().error, error);
    }
    assert_eq!(before, bits(&ours));
    assert_eq!(merge(&mut [], &mut [], &[], &[]), Ok(()));
}

#[test]
fn smoothed_integers_are_those_of_c() {
    let [heads, tokens, dim] = [2, 7, 5];
    let mut random = Random(13);
    let (x, smooth) = (random.normals(heads * tokens * dim), random.normals(heads * dim));
    let (mut ours, mut scales) = (vec![0i8; x.len()], vec![0.0; heads * tokens]);
    let sizes = [1, heads, tokens, dim];
    let dst = TensorMut::head_first(DataMut::I8(&mut ours), sizes).scale_per_token(&mut scales);
    quantize_smoothed(Tensor::head_first(&x, sizes), &smooth, dst).unwrap();

    let (mut of_c, mut scales_of_c) = (vec![0i8; x.len()], vec![0.0f32; heads * tokens]);
    let quant = fa_quant {
        scale: scales_of_c.as_mut_ptr(),
        zero: std::ptr::null(),
        stride: [0, tokens as i64, 1, 0],
        group_tokens: 1,
        group_dims: 1,
    };
    let tensor = |data: *mut std::ffi::c_void, dtype: fa_dtype, size: usize, quant| fa_tensor {
        data,
        stride: [0, (tokens * dim * size) as i64, (dim * size) as i64],
        dtype: dtype as i32,
        quant,
        ..fa_tensor::NONE
    };
    let src = tensor(x.as_ptr().cast_mut().cast(), fa_dtype::FA_DTYPE_F32, 4, std::ptr::null());
    let dst = tensor(of_c.as_mut_ptr().cast(), fa_dtype::FA_DTYPE_I8, 1, &raw const quant);
    let [heads_c, tokens_c, dim_c] = [heads, tokens, dim].map(|n| n as i64);
    // SAFETY: tensors, scales and `smooth` are as large as these sizes say.
    let status = unsafe { fa_quantize_i8(&src, 1, heads_c, tokens_c, dim_c, smooth.as_ptr(), &dst) };
    assert_eq!(status, fa_status::FA_OK);
    assert_eq!((&ours, bits(&scales)), (&of_c, bits(&scales_of_c)));

    let before = ours.clone();
    let from = Tensor::head_first(&x, sizes);
    let dst = TensorMut::head_first(DataMut::I8(&mut ours), sizes).scale_per_token(&mut scales);
    assert_eq!(quantize_smoothed(from, &smooth[1..], dst).unwrap_err().error, Error::Shape);
    let dst = TensorMut::head_first(DataMut::I8(&mut ours), sizes);
    assert_eq!(quantize_smoothed(from, &smooth, dst).unwrap_err().error, Error::Dtype);
    let mut floats = vec![0.0; x.len()];
    let dst = TensorMut::head_first(&mut floats, sizes);
    assert_eq!(quantize_smoothed(from, &smooth, dst).unwrap_err().error, Error::Dtype);
    assert_eq!(ours, before);
}

#[test]
fn what_does_not_fit_is_refused_with_words() {
    let numbers = Numbers::new(SHAPES[0], 14);
    let [_, heads, _, len_q, len_kv, _] = numbers.sizes;
    let seen = vec![true; heads * 9 * 17];
    let (f32s, slopes) = (vec![0.0; len_q * len_kv], vec![1.0; heads]);
    let bools = vec![true; len_q * len_kv];
    let blocks = |extent: [usize; 4]| Tensor::head_first(&seen, extent);
    let of_mask = Tensor::head_first(&f32s, [1, 1, len_q, len_kv]);
    let refused = |error: Error, words: &str, with: &dyn for<'a> Fn(Attention<'a>) -> Result<(), Refusal>| {
        let mut out = numbers.output();
        let refusal = with(numbers.rust(&mut out)).unwrap_err();
        assert_eq!(refusal.error, error, "{refusal}");
        assert!(refusal.to_string().starts_with(words), "{refusal}");
        assert!(out.iter().all(|x| x.is_nan()));
    };
    // 90 rows are 9 blocks of 10, 170 keys are 17.
    for (extent, words) in [
        ([3, 1, 9, 17], "block_mask.batch = 3"),
        ([1, 3, 9, 17], "block_mask.heads = 3"),
        ([1, 1, 8, 17], "block_mask.tokens = 8"),
        ([1, 1, 9, 16], "block_mask.dim = 16"),
        ([1, 1, 9, 18], "block_mask.dim = 18"),
    ] {
        let mask = blocks(extent);
        refused(Error::Shape, words, &|a| run(&mut { a.block_mask(mask, 10, 10) }));
    }
    let mask = blocks([1, 1, 9, 17]);
    for (rows, keys) in [(0, 10), (10, 0)] {
        let words = if rows == 0 { "rows of a block" } else { "keys of a block" };
        refused(Error::ZeroExtent, words, &|a| run(&mut { a.block_mask(mask, rows, keys) }));
    }
    let numbers_for_it = Tensor::head_first(&f32s[..9 * 17], [1, 1, 9, 17]);
    refused(Error::Dtype, "block_mask: not of booleans", &|a| {
        run(&mut { a.block_mask(numbers_for_it, 10, 10) })
    });
    let apart = Tensor::transposed(&seen[..9 * 17], [1, 1, 17, 9]);
    refused(Error::Stride, "block_mask.stride_dim", &|a| run(&mut { a.block_mask(apart, 10, 10) }));
    let kept = KeptBlocks { starts: &[0; 10], blocks: &[], sequences: 1, heads: 1, rows: 10, keys: 10 };
    refused(Error::Shape, "block_mask: set, but kept_blocks", &|a| {
        run(&mut { a.block_mask(mask, 10, 10).kept_blocks(kept) })
    });

    refused(Error::Shape, "mask_times_slope: set, but there is no mask", &|a| {
        run(&mut { a.alibi_slopes(&slopes).mask_times_slope() })
    });
    refused(Error::Shape, "mask_times_slope: set, but there are no alibi_slopes", &|a| {
        run(&mut { a.mask(of_mask).mask_times_slope() })
    });
    let of_bools = Tensor::head_first(&bools, [1, 1, len_q, len_kv]);
    refused(Error::Shape, "flags: FA_MASK_TIMES_SLOPE, but no mask of numbers", &|a| {
        run(&mut { a.mask(of_bools).alibi_slopes(&slopes).mask_times_slope() })
    });

    for (table, starts, error, words) in [
        (&[0, 1][..], &[0, 2][..], Error::Shape, "starts of lists of pages = 2"),
        (&[0, 1], &[0, 1, 3], Error::Lengths, "block_table_start = 1"),
        (&[0, 1], &[0, 2, 1], Error::Lengths, "block_table_start = 1"),
        (&[0, 1], &[-1, 1, 2], Error::Lengths, "block_table_start = 0"),
        (&[0, 2], &[0, 1, 2], Error::Page, "block_table[1] = 2"),
        (&[0], &[0, 1, 1], Error::Lengths, "pages of a sequence"),
    ] {
        refused(error, words, &|a| run(&mut { a.page_lists(table, starts, len_kv) }));
    }
}
