//! What the three calls allocate: what `fa_scratch_bytes` says, O(n), and nothing that stays.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::{Inputs, Size};
use flash_attention::capi::attention::{fa_attention, fa_attention_init};
use flash_attention::capi::config::{fa_config, fa_config_auto};
use flash_attention::capi::fixed::{fa_mha_q15, fa_q15_config};
use flash_attention::capi::forward::{fa_forward_f32, fa_forward_i8, fa_mha};
use flash_attention::capi::run::{
    fa_attention_check, fa_attention_finish, fa_attention_part, fa_attention_run, fa_attention_workspace,
};
use flash_attention::capi::scratch::fa_scratch_bytes;
use flash_attention::capi::status::fa_status;
use flash_attention::capi::tensor::{fa_dtype, fa_tensor};
use flash_attention::{Append, Attention, DataMut, Pool, Tensor, TensorMut, Workspace, quantize};

/// Counts what the calling thread allocates.
struct Counting;

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
    static BYTES: Cell<usize> = const { Cell::new(0) };
    static LIVE: Cell<isize> = const { Cell::new(0) };
}

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        BYTES.set(BYTES.get() + layout.size());
        LIVE.set(LIVE.get() + layout.size() as isize);
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        LIVE.set(LIVE.get() - layout.size() as isize);
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations, their bytes, and the bytes not given back while `f` runs.
fn count(f: impl FnOnce()) -> (usize, usize, isize) {
    CALLS.set(0);
    BYTES.set(0);
    LIVE.set(0);
    f();
    (CALLS.get(), BYTES.get(), LIVE.get())
}

fn config(dim: usize, causal: bool) -> fa_config {
    let mut cfg = fa_config {
        block_size_q: 0,
        block_size_kv: 0,
        head_dim: 0,
        causal,
        softmax_scale: 0.0,
        num_threads: 0,
        reserved: 0,
    };
    // SAFETY: `cfg` is writable.
    assert_eq!(unsafe { fa_config_auto(&mut cfg, dim) }, fa_status::FA_OK);
    fa_config { causal, num_threads: 1, ..cfg }
}

fn scratch(cfg: &fa_config, dtype: fa_dtype, size: Size) -> usize {
    let mut bytes = 0;
    // SAFETY: both pointers lead to locals.
    let status =
        unsafe { fa_scratch_bytes(cfg, dtype as i32, size.heads, size.len_q, size.len_kv, &mut bytes) };
    assert_eq!(status, fa_status::FA_OK);
    bytes
}

#[test]
fn one_thread_allocates_its_scratch_once_and_frees_it() {
    for (len_q, len_kv, dim) in [(1, 1, 1), (1, 500, 64), (300, 40, 7), (257, 1025, 64), (128, 128, 257)] {
        for causal in [false, true] {
            let size = Size::new(3, len_q, len_kv, dim);
            let inputs = Inputs::normal(size, 1);
            let mut out = vec![0f32; size.queries()];
            let cfg = config(dim, causal);
            let expected = scratch(&cfg, fa_dtype::FA_DTYPE_F32, size);
            let mut run = || {
                // SAFETY: dense arrays of these sizes.
                let status = unsafe {
                    let (q, k, v) = (inputs.q.as_ptr(), inputs.k.as_ptr(), inputs.v.as_ptr());
                    fa_mha(&cfg, q, k, v, 3, len_q, len_kv, out.as_mut_ptr())
                };
                assert_eq!(status, fa_status::FA_OK);
            };
            // The first call also reads the machine and the environment.
            run();
            assert_eq!(count(run), (usize::from(expected != 0), expected, 0), "{size:?}");
            // What is small lies on the stack.
            assert!(
                if len_q == 1 { expected == 0 } else { dim < 64 || expected > 0 },
                "{size:?}: {expected}"
            );
        }
    }
}

#[test]
fn i8_allocates_its_scratch_once_and_frees_it() {
    let size = Size::new(1, 200, 700, 33);
    let inputs = Inputs::normal(size, 2).quantised();
    let [q_scale, k_scale, v_scale] = inputs.scales;
    let mut out = vec![0f32; size.queries()];
    let cfg = config(33, true);
    let expected = scratch(&cfg, fa_dtype::FA_DTYPE_I8, size);
    let mut run = || {
        // SAFETY: dense arrays of these sizes.
        let status = unsafe {
            let (q, k, v) = (inputs.q.as_ptr(), inputs.k.as_ptr(), inputs.v.as_ptr());
            fa_forward_i8(&cfg, q, k, v, q_scale, k_scale, v_scale, 200, 700, out.as_mut_ptr())
        };
        assert_eq!(status, fa_status::FA_OK);
    };
    run();
    assert_eq!(count(run), (1, expected, 0));
}

#[test]
fn fixed_point_allocates_its_scratch_once_and_frees_it() {
    let (heads, len_q, len_kv, dim) = (3, 70, 400, 48);
    let x = vec![1234i16; heads * len_kv * dim];
    let mut out = vec![0i16; heads * len_q * dim];
    let cfg = fa_q15_config {
        struct_size: size_of::<fa_q15_config>(),
        head_dim: dim,
        scale_mantissa: 0,
        scale_shift: 0,
        causal: 0,
        num_threads: 1,
    };
    let mut run = |len_q: usize| {
        // SAFETY: dense arrays of these sizes.
        let status = unsafe {
            let x = x.as_ptr();
            fa_mha_q15(&cfg, x, x, x, heads, heads, len_q, len_kv, out.as_mut_ptr())
        };
        assert_eq!(status, fa_status::FA_OK);
    };
    run(len_q);
    assert_eq!(count(|| run(len_q)), (1, 640 * dim, 0));
    assert_eq!(count(|| run(0)), (0, 0, 0));
}

#[test]
fn nothing_is_allocated_for_nothing() {
    let cfg = config(64, false);
    let run = || {
        let null = std::ptr::null();
        // SAFETY: without queries nothing is read or written.
        let status = unsafe { fa_forward_f32(&cfg, null, null, null, 0, 0, std::ptr::null_mut()) };
        assert_eq!(status, fa_status::FA_OK);
    };
    run();
    assert_eq!(count(run), (0, 0, 0));
    assert_eq!(scratch(&cfg, fa_dtype::FA_DTYPE_F32, Size::new(1, 0, 100, 64)), 0);
}

/// Scratch stops growing with the lengths, however long; with tiles as long as the sequences, it
/// grows with their sum.
#[test]
fn scratch_is_linear_in_the_lengths_at_most() {
    for dtype in [fa_dtype::FA_DTYPE_F32, fa_dtype::FA_DTYPE_I8] {
        let auto = config(64, false);
        let bytes = |cfg: &fa_config, n| scratch(cfg, dtype, Size::new(1, n, n, 64));
        // The longest whose tensors an address space holds, in whole powers of 4.
        let longest = if usize::BITS == 64 { 1 << 30 } else { 1 << 22 };
        // Tiles are twice as long where K and V come from memory, and stay so.
        assert!(bytes(&auto, 1 << 12) <= bytes(&auto, 1 << 20));
        assert_eq!(bytes(&auto, 1 << 20), bytes(&auto, longest));
        assert!(bytes(&auto, longest) < 1 << 20);
        let whole = fa_config { block_size_q: usize::MAX, block_size_kv: usize::MAX, ..auto };
        for n in [1 << 10, 1 << 14, 1 << 20] {
            // Rows that are converted have an odd number of cache lines: 80 numbers instead of 64.
            assert!(bytes(&whole, n) <= n * 4 * (3 * 64 + 2 * 80 + 2) + 8192, "{n}: {}", bytes(&whole, n));
        }
    }
}

#[test]
fn the_general_door_allocates_nothing() {
    let (heads, len, dim) = (2, 300, 32);
    let data = vec![0.5f32; heads * len * dim];
    let mut o = vec![0f32; heads * len * dim];
    let tensor = |data: *const f32| fa_tensor {
        data: data.cast_mut().cast(),
        stride: [0, (len * dim * 4) as i64, (dim * 4) as i64],
        ..fa_tensor::NONE
    };
    let mut a = std::mem::MaybeUninit::uninit();
    // SAFETY: `a` is as large as it says, and filled on success.
    let mut a: fa_attention = unsafe {
        assert_eq!(fa_attention_init(a.as_mut_ptr(), size_of::<fa_attention>()), fa_status::FA_OK);
        a.assume_init()
    };
    (a.batch, a.heads_q, a.heads_kv, a.len_q, a.len_kv) = (1, 2, 2, len as i64, len as i64);
    (a.dim_qk, a.dim_v, a.softcap, a.window_right) = (dim as i64, dim as i64, 20.0, 0);
    (a.q, a.k, a.v, a.o) =
        (tensor(data.as_ptr()), tensor(data.as_ptr()), tensor(data.as_ptr()), tensor(o.as_mut_ptr()));
    let mut bytes = 0;
    // SAFETY: both pointers lead to locals.
    assert_eq!(unsafe { fa_attention_workspace(&a, 3, &mut bytes) }, fa_status::FA_OK);
    let mut ws = vec![0u8; bytes];
    let ws = ws.as_mut_ptr().cast();
    // The wrong ones, too.
    let wrong = fa_attention { batch: -1, ..a };
    let (calls, ..) = count(|| {
        // SAFETY: descriptions of live memory.
        unsafe {
            assert_eq!(fa_attention_run(&a, ws, bytes, std::ptr::null()), fa_status::FA_OK);
            for part in 0..3 {
                assert_eq!(fa_attention_part(&a, ws, bytes, part, 3), fa_status::FA_OK);
            }
            for part in 0..3 {
                assert_eq!(fa_attention_finish(&a, ws, bytes, part, 3), fa_status::FA_OK);
            }
            assert_eq!(fa_attention_check(&wrong, std::ptr::null_mut(), 0), fa_status::FA_ERR_SHAPE);
            assert_eq!(fa_attention_run(&wrong, ws, bytes, std::ptr::null()), fa_status::FA_ERR_SHAPE);
        }
    });
    assert_eq!(calls, 0);
}

/// Into a cache that has as many tokens, of each kind of type.
#[test]
fn writing_a_cache_allocates_nothing() {
    let (heads, len, dim) = (2, 40, 64);
    let x = vec![0.5f32; heads * len * dim];
    let rows = Tensor::token_first(&x, [1, len, heads, dim]);
    let (mut blocks, mut integers) = (vec![0u8; heads * len * 2 * 24], vec![0i8; heads * len * dim]);
    let (mut scales, mut halves) = (vec![0f32; heads * len], vec![0u16; heads * len * dim]);
    let sizes = [1, heads, len, dim];
    let (calls, ..) = count(|| {
        let k = TensorMut::head_first(DataMut::Q5_1(&mut blocks), sizes);
        let v = TensorMut::head_first(DataMut::I8(&mut integers), sizes).scale_per_token(&mut scales);
        Append::new(k, rows, v, rows).run().expect("a good description");
        let k = TensorMut::head_first(DataMut::F16(&mut halves), sizes);
        Append::keys(k, rows).q_pos(1).run().expect_err("one token too many");
        quantize(rows, TensorMut::head_first(DataMut::Q4_0(&mut blocks), sizes)).expect("a good description");
    });
    assert_eq!(calls, 0);
}

#[test]
fn the_rust_door_allocates_where_it_says() {
    let (len, dim) = (300, 64);
    let (x, mut out) = (vec![0.5f32; 2 * len * dim], vec![0f32; 2 * len * dim]);
    let (mut workspace, pool) = (Workspace::new(), Pool::default());
    let all = Tensor::token_first(&x, [1, len, 2, dim]);
    let mut a = Attention::new(all, all, all, TensorMut::token_first(&mut out, [1, len, 2, dim])).causal();
    let (calls, bytes, live) = count(|| a.reserve(&mut workspace, &pool).expect("a good description"));
    assert_eq!((calls, bytes, live), (1, workspace.bytes(), workspace.bytes() as isize));
    let again = count(|| {
        a.reserve(&mut workspace, &pool).expect("a good description");
        a.run(&mut workspace, &pool).expect("a good description");
    });
    assert_eq!(again, (0, 0, 0));
}
