//! The simple calls on any arguments: fa_forward_f32, fa_forward_i8 and fa_mha.

use std::ptr;

use flash_attention::capi::config::fa_config;
use flash_attention::capi::forward::{fa_forward_f32, fa_forward_i8, fa_mha};
use flash_attention::capi::isa::{fa_isa, fa_limit_isa};
use flash_attention::capi::scratch::fa_scratch_bytes;
use flash_attention::capi::status::fa_status;
use flash_attention::capi::tensor::{fa_quant, fa_tensor};

use crate::common::Random;
use crate::definition::{Definition, F32, I8, block};
use crate::input::{Input, hash};
use crate::layout::{MOST as ADDRESSES, Verdict};
use crate::memory::Guarded;
use crate::pointers::{Code, Kind, MOST, Memory, anything};

/// Work that the oracle does quickly: multiplications.
const WORK: i128 = 1 << 15;

/// What is needed once.
pub struct Bench {
    memory: Memory<4>,
    config: Guarded,
}

impl Default for Bench {
    fn default() -> Self {
        Bench { memory: Memory::new(), config: Guarded::new(4096) }
    }
}

impl Bench {
    pub fn try_out(&mut self, data: &[u8]) {
        let mut input = Input(data);
        let control: [u8; 8] = input.bytes();
        let [block_q, block_kv, dim] = [0; 3].map(|_| input.u64() as usize);
        let causal = input.u8();
        let _: [u8; 3] = input.bytes();
        let softmax_scale = input.f32();
        let [num_threads, reserved] = [input.u32(), input.u32()];
        let [heads, len_q, len_kv] = [0; 3].map(|_| input.u64() as usize);
        let codes = [0; 4].map(|_| Code(input.u64()));
        let scales = [0; 3].map(|_| input.f32());
        let is_mha = control[1] % 3 == 2;
        let heads = if is_mha { heads } else { 1 };
        let is_i8 = control[1] % 3 == 1;
        let dtype = if is_i8 { I8 } else { F32 };

        let mut verdict = Verdict::Legal;
        verdict.demand(dim >= 1 && heads >= 1 && reserved == 0);
        verdict.demand(((f64::from(softmax_scale) * std::f64::consts::LOG2_E) as f32).is_finite());
        verdict.demand(!is_i8 || scales.iter().all(|scale| scale.is_finite()));
        let wide = |n: usize| n as i128;
        let size = |len: usize, bytes: i64| {
            wide(heads).saturating_mul(wide(len)).saturating_mul(wide(dim)).saturating_mul(i128::from(bytes))
        };
        let element = block(dtype)[1];
        let bytes = [size(len_q, element), size(len_kv, element), size(len_kv, element), size(len_q, 4)];
        verdict.demand(bytes.iter().all(|&bytes| bytes <= ADDRESSES));
        // A row that is larger than an address space may be refused even if there is none, and so
        // may a plan for so many heads.
        verdict.usually(
            [dim, heads, len_q, len_kv].iter().fold(1, |n: i128, &m| n.saturating_mul(wide(m.max(1))))
                < ADDRESSES / 1024,
        );
        let kinds = [Kind::Input, Kind::Input, Kind::Input, Kind::Output];
        let (pointers, is_real) = self.memory.place([0, 1, 2, 3].map(|i| (codes[i], bytes[i], kinds[i])));
        verdict.demand((0..4).all(|i| !pointers[i].at.is_null() || bytes[i] == 0));
        verdict.demand((0..3).all(|i| !pointers[3].overlaps(&pointers[i])));

        let config = fa_config {
            block_size_q: block_q,
            block_size_kv: block_kv,
            head_dim: dim,
            causal: causal != 0,
            softmax_scale,
            // Calls with threads of the library's are what other tests make.
            num_threads: if num_threads % 4 == 0 { 2 } else { 1 },
            reserved,
        };
        let at = self.config.place(size_of::<fa_config>(), true).cast::<fa_config>();
        // SAFETY: our memory, as large. What C calls true may be any byte but 0.
        unsafe {
            at.write_unaligned(config);
            (&raw mut (*at).causal).cast::<u8>().write(causal);
        }
        let config_at = if control[2] == 0xff { ptr::null() } else { at.cast_const() };
        verdict.demand(!config_at.is_null());

        self.memory.blank();
        let mut random = Random(hash(data));
        for pointer in &pointers[..3] {
            if !pointer.at.is_null() && pointer.bytes <= MOST as i128 {
                // SAFETY: as many bytes of our memory.
                let to = unsafe { std::slice::from_raw_parts_mut(pointer.at, pointer.bytes as usize) };
                if pointer.is_shared {
                    anything(&mut random, to);
                } else if is_i8 {
                    to.iter_mut().for_each(|x| *x = random.bits() as u8);
                } else {
                    to.chunks_exact_mut(4).for_each(|x| x.copy_from_slice(&random.normal().to_ne_bytes()));
                }
            }
        }
        self.memory.keep();
        let isas = [c"amx", c"avx512bf16", c"avx512vnni", c"avx512", c"avxvnni", c"avx2", c"scalar"];
        // SAFETY: a string.
        assert_eq!(unsafe { fa_limit_isa(isas[usize::from(control[0]) % 6].as_ptr()) }, fa_status::FA_OK);
        let mut scratch = 77;
        // SAFETY: a configuration, or NULL, and a number.
        let planned = unsafe { fa_scratch_bytes(config_at, dtype, heads, len_q, len_kv, &mut scratch) };
        assert!(planned == fa_status::FA_OK || scratch == 77, "bytes was written");
        assert!(verdict != Verdict::Legal || planned == fa_status::FA_OK, "scratch: {planned:?}, but legal");
        let work = wide(heads)
            .saturating_mul(wide(len_q))
            .saturating_mul(wide(len_kv) + 1)
            .saturating_mul(wide(dim));
        if verdict != Verdict::Refused && (!is_real || work > WORK || scratch > 1 << 24) {
            return;
        }
        let [q, k, v, o] = [0, 1, 2, 3].map(|i| pointers[i].at);
        // SAFETY: memory of the sizes that are stated, where they are legal.
        let status = unsafe {
            if is_mha {
                fa_mha(config_at, q.cast(), k.cast(), v.cast(), heads, len_q, len_kv, o.cast())
            } else if is_i8 {
                let [a, b, c] = scales;
                fa_forward_i8(config_at, q.cast(), k.cast(), v.cast(), a, b, c, len_q, len_kv, o.cast())
            } else {
                fa_forward_f32(config_at, q.cast(), k.cast(), v.cast(), len_q, len_kv, o.cast())
            }
        };
        let fits = match verdict {
            Verdict::Legal => status == fa_status::FA_OK,
            Verdict::Either => true,
            Verdict::Refused => status != fa_status::FA_OK,
        };
        let label = format!("{config:?} {heads} {len_q} {len_kv} {pointers:?} {scales:?}");
        assert!(fits, "{verdict:?}, but {status:?}: {label}");
        assert_ne!(status, fa_status::FA_ERR_INTERNAL, "{label}");
        if status != fa_status::FA_OK || bytes[3] == 0 {
            assert!(self.memory.is_untouched_but(&[]), "refused, but touched: {label}");
            return;
        }

        // The same problem for the definition.
        let quants = scales.each_ref().map(|scale| fa_quant {
            scale,
            zero: ptr::null(),
            stride: [0; 4],
            group_tokens: 1,
            group_dims: 1,
        });
        let tensor = |i: usize, len: usize| {
            let dtype = if i == 3 { F32 } else { dtype };
            let row = dim as i64 * block(dtype)[1];
            fa_tensor {
                data: pointers[i].at.cast(),
                stride: [0, len as i64 * row, row],
                dtype,
                stride_dim: 0,
                quant: if is_i8 && i < 3 { &quants[i] } else { ptr::null() },
            }
        };
        let mut a = crate::description::empty();
        a.batch = 1;
        (a.heads_q, a.heads_kv) = (heads as i64, heads as i64);
        (a.len_q, a.len_kv, a.dim_qk, a.dim_v) = (len_q as i64, len_kv as i64, dim as i64, dim as i64);
        (a.q, a.k, a.v, a.o) = (tensor(0, len_q), tensor(1, len_kv), tensor(2, len_kv), tensor(3, len_q));
        a.scale = softmax_scale;
        if causal != 0 {
            a.window_right = 0;
        }
        // SAFETY: a static string.
        let isa = unsafe { std::ffi::CStr::from_ptr(fa_isa()) }.to_str().unwrap();
        let is_shared = pointers.iter().any(|pointer| pointer.is_shared);
        // Products of scales need not be numbers of f32 where those are none of any data.
        let is_usual = |scale: f32| scale == 0.0 || (1e-15..1e15).contains(&scale.abs());
        let largest = match is_i8 {
            true if !scales.into_iter().all(is_usual) => f64::INFINITY,
            true => 128.0 * f64::from(scales[2].abs()),
            false if is_shared => 200.0,
            false => 8.0,
        };
        let mut written = Vec::new();
        Definition(&a).check(isa, largest, &label, |at, n| written.push((at, n)));
        assert!(self.memory.is_untouched_but(&written), "wrote beside the output: {label}");
    }
}
