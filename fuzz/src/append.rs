//! New tokens into a cache, by any description.
//!
//! An input is what it is for the general call ([`Described`]): Q stands for the new keys, O for
//! the new values. Where tokens go is said by the definition of attention; what they become there,
//! by the functions that write one row.

use std::ffi::{CStr, c_char};
use std::ptr;

use flash_attention::capi::append::fa_cache_append;
use flash_attention::capi::attention::{FA_FAST, FA_MASK_TIMES_SLOPE, FA_POS_END, FA_PRECISE, fa_attention};
use flash_attention::capi::isa::fa_limit_isa;
use flash_attention::capi::quantize::fa_quantize;
use flash_attention::capi::status::fa_status;
use flash_attention::capi::tensor::{fa_quant, fa_tensor};

use crate::common::Random;
use crate::definition::{
    BF16, BLOCKS, Definition, F8_E4M3, F8_E5M2, F16, F32, I8, Q15, U8, at, block, stored,
};
use crate::general::{
    Described, FIRSTS, K, LENS, O, POINTERS, POSITIONS, Q, SCALES, SPAN_STARTS, SPANS, STARTS_KV, STARTS_Q,
    TABLE, TABLE_STARTS, V, is_enough, lists, numbers, put,
};
use crate::input::{Input, hash};
use crate::layout::{Rows, Verdict, cells_are_apart, dim_verdict, quant_verdict, unit, values};
use crate::memory::Guarded;
use crate::pointers::{Code, Kind, MOST, Memory, Pointer, anything};

/// Elements that are written, at most.
const WORK: i128 = 1 << 13;

/// Numbers of the pointers to new rows, a cache, its scales and zeros: of keys, and of values.
const PLACES: [[usize; 4]; 2] = [[Q, K, SCALES + 1, SCALES + 4], [O, V, SCALES + 2, SCALES + 5]];

/// Names of both caches, for messages.
const NAMES: [&str; 2] = ["k", "v"];

/// What a description says about new rows and a cache.
#[derive(Clone, Copy, Debug)]
struct Target {
    /// Keys or values.
    which: usize,
    /// Whether there are scales or zeros.
    has_quant: bool,
    /// Whether they are written.
    is_own: bool,
}

impl Target {
    fn outputs(&self) -> &'static [usize] {
        &PLACES[self.which][1..if self.is_own { 4 } else { 2 }]
    }
    fn inputs(&self) -> Vec<usize> {
        let [new, _, scale, zero] = PLACES[self.which];
        if self.is_own || !self.has_quant { vec![new] } else { vec![new, scale, zero] }
    }
}

/// What a description says about sizes, as far as it says it.
struct Sizes {
    verdict: Verdict,
    targets: Vec<Target>,
    /// Bytes behind each pointer.
    bytes: [i128; POINTERS],
    work: i128,
}

/// Tensors of new rows and of the cache, elements of a row, and the quant of the cache.
fn tensors(d: &Described, which: usize) -> (fa_tensor, fa_tensor, i64, fa_quant) {
    let a = &d.a;
    if which == 0 { (a.q, a.k, a.dim_qk, d.quants[1]) } else { (a.o, a.v, a.dim_v, d.quants[2]) }
}

/// Judges everything but NULL and overlaps, which need addresses.
fn sizes(d: &mut Described, is_given: [bool; 2]) -> Sizes {
    let mut verdict = Verdict::Legal;
    let mut bytes = [0; POINTERS];
    let lengths = d.lengths();
    bytes[STARTS_Q..STARTS_Q + lengths.len()].copy_from_slice(&lengths.map(|n| 4 * n));
    let a = d.a;
    let known = size_of::<fa_attention>();
    verdict.demand((known..=known + 4096).contains(&a.struct_size));
    verdict.demand(a.flags & !(FA_MASK_TIMES_SLOPE | FA_PRECISE | FA_FAST) == 0 && a.reserved0 == 0);
    verdict.demand(a.heads_kv >= 1 && a.batch >= 0 && a.len_q >= 0 && a.len_kv >= 0);
    verdict.demand(a.q_pos == FA_POS_END || a.q_pos.checked_add(a.len_q).is_some());
    let [[entries, rows], [entries_kv, keys]] = lists(d, &lengths, &mut verdict);
    verdict.demand(a.table_head_stride == 0 || d.codes[TABLE].is_null());
    let heads = a.heads_kv.max(0);
    let (new, cache) = ([entries, heads, rows], [entries_kv, heads, keys]);
    let has = |pointer: usize| !d.codes[pointer].is_null();

    // Sequences without lists are all alike.
    let is_uneven = [STARTS_Q, STARTS_KV, LENS, FIRSTS, POSITIONS].into_iter().any(has);
    let batch = i128::from(a.batch.max(0));
    for b in 0..if is_uneven { batch } else { batch.min(1) } {
        let count = match has(STARTS_Q) {
            true => d.listed(0, b + 1) - d.listed(0, b),
            false => a.len_q,
        };
        if count <= 0 || rows == 0 {
            continue;
        }
        let used = d.keys_in_use(b);
        let first = match (has(POSITIONS), a.q_pos) {
            (true, _) => d.listed(5, b),
            (_, FA_POS_END) => used.saturating_sub(count),
            (_, at) => at,
        };
        let seen = if has(FIRSTS) { d.listed(6, b) } else { 0 };
        verdict.demand(seen <= first && first.saturating_add(count) <= used);
    }

    let mut targets = Vec::new();
    for which in (0..2).filter(|&which| is_given[which]) {
        let (from, to, dim, quant) = tensors(d, which);
        let [of_new, of_cache, of_scale, of_zero] = PLACES[which];
        verdict.demand(dim >= 1);
        let dim = dim.max(0);
        verdict.demand([F32, F16, BF16].contains(&from.dtype) && d.has_quant[of_new] & 3 == 0);
        let is_f8 = [F8_E4M3, F8_E5M2].contains(&to.dtype);
        let is_integer = [I8, U8].contains(&to.dtype);
        let is_other = [F32, F16, BF16, Q15].contains(&to.dtype) || BLOCKS.contains(&to.dtype);
        verdict.demand(is_f8 || is_integer || is_other);
        verdict.demand(dim % block(to.dtype)[0] == 0);
        verdict.join(dim_verdict(from.dtype, from.stride_dim, false));
        // One element lies apart from no other.
        verdict.join(dim_verdict(to.dtype, to.stride_dim, dim == 1));
        let from = Rows::of(from.dtype, new, dim, from.stride);
        verdict.join(from.verdict(unit(tensors(d, which).0.dtype)));
        let into = Rows::of(to.dtype, cache, dim, to.stride);
        verdict.join(into.verdict(unit(to.dtype)));
        verdict.join(into.are_apart());
        (bytes[of_new], bytes[of_cache]) = (from.span(), into.span());
        verdict.demand(is_enough([a.k_bytes, a.v_bytes][which], into.span()));
        let mut target = Target { which, has_quant: d.has_quant[of_cache] & 3 != 0, is_own: false };
        if target.has_quant {
            let group = [quant.group_tokens, quant.group_dims];
            let n = values(cache, dim, quant.stride, group);
            let is_of_tokens = quant.stride[2] != 0 && group[0] == 1;
            target.is_own = has(of_scale) && is_of_tokens && (quant.stride[0] != 0 || entries_kv <= 1);
            verdict.demand(is_integer || ((is_f8 || to.dtype == Q15) && !has(of_zero)));
            verdict.demand(!(to.dtype == U8 && target.is_own && !has(of_zero)));
            verdict.join(quant_verdict(quant.stride, group, n));
            let [x, y, z] = cache;
            if target.is_own && verdict < Verdict::Refused {
                verdict.join(cells_are_apart([x, y, z, dim], quant.stride, group));
            }
            (bytes[of_scale], bytes[of_zero]) = (n.saturating_mul(4), n.saturating_mul(4));
        }
        targets.push(target);
    }
    let dims = a.dim_qk.max(0).saturating_add(a.dim_v.max(0));
    let work = [rows, entries, heads, dims].into_iter().fold(1, |n: i128, m| n.saturating_mul(i128::from(m)));
    Sizes { verdict, targets, bytes, work }
}

/// What is needed once.
pub struct Bench {
    memory: Memory<POINTERS>,
    description: Guarded,
    words: Guarded,
}

impl Default for Bench {
    fn default() -> Self {
        Bench { memory: Memory::new(), description: Guarded::new(8192), words: Guarded::new(4096) }
    }
}

impl Bench {
    pub fn try_out(&mut self, data: &[u8]) {
        let mut d = Described::read(&mut Input(data));
        let [which, kind, _, extra, why_size, ..] = d.control;
        let is_given = [which & 3 != 1, which & 3 != 2].map(|is_given| is_given && which != 255);
        let Sizes { mut verdict, targets, bytes, work } = sizes(&mut d, is_given);
        let mut wanted = [(Code(0), 0, Kind::Input); POINTERS];
        for i in STARTS_Q..=SPAN_STARTS {
            wanted[i] = (d.codes[i], bytes[i], Kind::List);
        }
        for target in &targets {
            for i in target.inputs() {
                wanted[i] = (d.codes[i], bytes[i], Kind::Input);
            }
            for &i in target.outputs() {
                wanted[i] = (d.codes[i], bytes[i], Kind::Output);
            }
        }
        let (pointers, is_real) = self.memory.place(wanted);
        let hits = |i: usize, j: usize| {
            let is_somewhere = !pointers[i].at.is_null() && !pointers[j].at.is_null();
            is_somewhere && pointers[i].overlaps(&pointers[j])
        };
        for target in &targets {
            let [new, cache, ..] = PLACES[target.which];
            for i in [new, cache] {
                verdict.demand(!pointers[i].at.is_null() || bytes[i] == 0);
            }
            let outputs = target.outputs();
            for (n, &i) in outputs.iter().enumerate() {
                verdict.demand(outputs[n + 1..].iter().all(|&j| !hits(i, j)));
                let inputs = targets.iter().flat_map(Target::inputs).chain(STARTS_Q..=SPAN_STARTS);
                verdict.demand(inputs.into_iter().all(|j| !hits(i, j)));
            }
        }
        if let [k, v] = &targets[..] {
            for (&i, &j) in k.outputs().iter().zip(v.outputs()) {
                verdict.demand(!(pointers[i].at == pointers[j].at && hits(i, j)));
            }
        }
        if verdict < Verdict::Refused && (!is_real || work > WORK) {
            return;
        }
        self.fill(&d, &targets, &pointers, &mut verdict, kind, hash(data));

        let mut a = d.a;
        let mut quants = d.quants;
        for (i, quant) in quants.iter_mut().enumerate().skip(1) {
            quant.scale = pointers[SCALES + i].at.cast();
            quant.zero = pointers[SCALES + 3 + i].at.cast();
        }
        a.k.data = pointers[K].at.cast();
        a.v.data = pointers[V].at.cast();
        for (i, tensor) in [(1, &mut a.k), (2, &mut a.v)] {
            if d.has_quant[i] & 3 != 0 {
                tensor.quant = &quants[i];
            }
        }
        let mut new = [a.q, a.o];
        for (which, new) in new.iter_mut().enumerate() {
            let of_new = PLACES[which][0];
            new.data = pointers[of_new].at.cast();
            if d.has_quant[of_new] & 3 != 0 {
                new.quant = &quants[0];
            }
        }
        (a.cu_len_q, a.cu_len_kv) = (pointers[STARTS_Q].at.cast(), pointers[STARTS_KV].at.cast());
        a.kv_lens = pointers[LENS].at.cast();
        a.block_table = pointers[TABLE].at.cast();
        a.block_table_start = pointers[TABLE_STARTS].at.cast();
        (a.q_positions, a.kv_starts) = (pointers[POSITIONS].at.cast(), pointers[FIRSTS].at.cast());
        (a.spans, a.span_starts) = (pointers[SPANS].at.cast(), pointers[SPAN_STARTS].at.cast());
        let described = put(&mut self.description, &a, extra, &mut verdict);
        self.memory.keep();

        let given = [0, 1].map(|i| if is_given[i] { &raw const new[i] } else { ptr::null() });
        let label = || format!("{verdict:?}: {a:?}\n{new:?}\n{quants:?}\n{:?}\n{targets:?}", d.lists);
        let is_legal = verdict == Verdict::Legal;
        // All of it is there: what was refused may be nowhere. Without rows nothing bounds the
        // sequences.
        let places = if is_legal && work > 0 { written(&a, &new, &targets) } else { Vec::new() };
        for isa in [c"avx512", c"avx2", c"scalar"] {
            self.memory.restore();
            // SAFETY: a string.
            assert_eq!(unsafe { fa_limit_isa(isa.as_ptr()) }, fa_status::FA_OK);
            let (status, why) = self.call(described, given, why_size);
            let fits = match verdict {
                Verdict::Legal => status == fa_status::FA_OK,
                Verdict::Either => true,
                Verdict::Refused => status != fa_status::FA_OK,
            };
            assert!(fits, "{status:?}, {why}: {}", label());
            assert_ne!(status, fa_status::FA_ERR_INTERNAL, "{}", label());
            assert_eq!(why.is_empty(), status == fa_status::FA_OK, "words {why:?}: {}", label());
            if status != fa_status::FA_OK {
                assert!(self.memory.is_untouched_but(&[]), "refused, but touched: {}", label());
                break;
            }
            if !is_legal {
                break;
            }
            let all: Vec<_> = places.iter().map(|(at, bytes)| (*at, bytes.len())).collect();
            assert!(self.memory.is_untouched_but(&all), "wrote beside new tokens: {}", label());
            // One place for two tokens has what is written last, and nobody says which that is.
            if are_apart(&all) {
                for (at, bytes) in &places {
                    // SAFETY: outputs of our memory.
                    let now = unsafe { std::slice::from_raw_parts(*at as *const u8, bytes.len()) };
                    assert!(now == &bytes[..], "{isa:?} wrote {now:?}, not {bytes:?}: {}", label());
                }
            }
        }
    }

    /// Numbers into inputs; what outputs hold before.
    fn fill(
        &mut self,
        d: &Described,
        targets: &[Target],
        pointers: &[Pointer; POINTERS],
        verdict: &mut Verdict,
        kind: u8,
        seed: u64,
    ) {
        self.memory.blank();
        let mut random = Random(seed);
        for (i, pointer) in pointers.iter().enumerate() {
            let is_somewhere = !pointer.at.is_null() && pointer.bytes <= MOST as i128;
            if !is_somewhere || pointer.kind == Kind::Output {
                continue;
            }
            // SAFETY: as many bytes of our memory, which nobody else has now.
            let to = unsafe { std::slice::from_raw_parts_mut(pointer.at, pointer.bytes as usize) };
            match i {
                Q | O if !pointer.is_shared => {
                    numbers(&mut random, if i == Q { d.a.q.dtype } else { d.a.o.dtype }, false, to);
                    // NaN, infinities, and sizes that no usual number has.
                    if kind % 4 == 1 {
                        to.iter_mut().filter(|_| kind / 4 == 0).for_each(|x| *x = random.bits() as u8);
                        let n = to.len() / 7;
                        (0..n).for_each(|_| to[random.below(7 * n)] = random.bits() as u8);
                    }
                }
                STARTS_Q..=SPAN_STARTS => {
                    for (at, to) in to.chunks_exact_mut(4).enumerate() {
                        to.copy_from_slice(&(d.listed(i - STARTS_Q, at as i128) as i32).to_ne_bytes());
                    }
                }
                SCALES.. if !pointer.is_shared => {
                    for x in to.chunks_exact_mut(4) {
                        let value = match i {
                            _ if kind % 8 == 5 => f32::from_bits(random.bits()),
                            _ if i < SCALES + 3 => 0.005 + 0.02 * random.uniform() as f32,
                            _ => random.below(19) as f32 - 9.0,
                        };
                        x.copy_from_slice(&value.to_ne_bytes());
                    }
                }
                _ => anything(&mut random, to),
            }
        }
        // A value shared by a whole tensor must be finite.
        for target in targets.iter().filter(|target| target.has_quant) {
            if tensors(d, target.which).3.stride != [0; 4] {
                continue;
            }
            for i in &PLACES[target.which][2..] {
                let pointer = &pointers[*i];
                if pointer.bytes == 4 && !pointer.at.is_null() {
                    // SAFETY: four bytes of our memory.
                    verdict.demand(unsafe { pointer.at.cast::<f32>().read_unaligned() }.is_finite());
                }
            }
        }
    }

    fn call(
        &mut self,
        described: *const fa_attention,
        [new_k, new_v]: [*const fa_tensor; 2],
        why_size: u8,
    ) -> (fa_status, String) {
        let n = usize::from(why_size);
        self.words.bytes().fill(0xa5);
        let words = if n == 255 { ptr::null_mut() } else { self.words.place(n, true) };
        // SAFETY: the description is what it says, and there is room for that many bytes.
        let status = unsafe { fa_cache_append(described, new_k, new_v, words.cast::<c_char>(), n) };
        let all = self.words.bytes();
        let beside = if words.is_null() { all.len() } else { all.len() - n };
        assert!(all[..beside].iter().all(|&x| x == 0xa5), "words written before their place");
        if n < 2 || words.is_null() {
            // No room for them: what they would be like.
            let is_ok = status == fa_status::FA_OK;
            return (status, if is_ok { String::new() } else { "no room".to_owned() });
        }
        let words = CStr::from_bytes_until_nul(&all[beside..]).expect("words without an end");
        (status, words.to_string_lossy().into_owned())
    }
}

/// Whether no two of these places, of addresses and bytes, share a byte.
fn are_apart(places: &[(usize, usize)]) -> bool {
    let mut places = places.to_vec();
    places.sort_unstable();
    places.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0)
}

/// Addresses of all that new tokens have in the caches, and what must be there then.
fn written(a: &fa_attention, new: &[fa_tensor; 2], targets: &[Target]) -> Vec<(usize, Vec<u8>)> {
    // SAFETY: a string.
    assert_eq!(unsafe { fa_limit_isa(c"scalar".as_ptr()) }, fa_status::FA_OK);
    let a = fa_attention { struct_size: size_of::<fa_attention>(), ..*a };
    let definition = Definition(&a);
    let mut places = Vec::new();
    // Strides of axes with one entry do not matter.
    for target in targets {
        let (cache, dim) = if target.which == 0 { (&a.k, a.dim_qk) } else { (&a.v, a.dim_v) };
        for b in 0..a.batch {
            for i in 0..definition.queries_of(b) {
                let key = definition.position(b, i) as i64;
                let (from, to) = (definition.query_at(b, i), definition.key_at(b, 0, key));
                token(&new[target.which], from, cache, to, [a.heads_kv, dim], target, &mut places);
            }
        }
    }
    places
}

/// Address of a row; strides of axes with one entry do not matter.
fn row(tensor: &fa_tensor, [entry, row]: [i64; 2], head: i64) -> usize {
    let mut tensor = *tensor;
    for (stride, i) in tensor.stride.iter_mut().zip([entry, head, row]) {
        if i == 0 {
            *stride = 0;
        }
    }
    at(&tensor, [entry, row], head)
}

/// What a token has in a cache.
fn token(
    new: &fa_tensor,
    from: [i64; 2],
    cache: &fa_tensor,
    to: [i64; 2],
    [heads, dim]: [i64; 2],
    target: &Target,
    places: &mut Vec<(usize, Vec<u8>)>,
) {
    let [of_block, bytes] = block(cache.dtype);
    let bytes = (dim / of_block * bytes) as usize;
    let mut rows = vec![0u8; bytes * heads as usize];
    let about = format!("{} at {to:?}", NAMES[target.which]);
    let src = fa_tensor {
        data: row(new, from, 0) as *mut _,
        stride: [0, if heads > 1 { new.stride[1] } else { 0 }, 0],
        ..*new
    };
    let stride = [0, bytes as i64, 0];
    let data = rows.as_mut_ptr().cast();
    let mut dst = fa_tensor { data, stride, dtype: cache.dtype, stride_dim: 0, quant: ptr::null() };
    let none =
        fa_quant { scale: ptr::null(), zero: ptr::null(), stride: [0; 4], group_tokens: 1, group_dims: 1 };
    // SAFETY: NULL, or the quant of the cache.
    let quant = if target.has_quant { unsafe { cache.quant.read() } } else { none };
    let [of_entry, of_head, of_token, of_dims] = quant.stride;
    let far = |i: i64, stride: i64| if i == 0 { 0 } else { i * stride };
    let first = far(to[0], of_entry);
    let group =
        |i: i64, size: i32, stride: i64| if stride == 0 { 0 } else { far(i / i64::from(size), stride) };
    if target.is_own {
        let part = [0, of_head, 0, of_dims];
        let n = values([1, heads, 1], dim, part, [1, quant.group_dims]) as usize;
        let (mut scale, mut zero) = (vec![0f32; n], vec![0f32; n]);
        let has_zero = !quant.zero.is_null();
        let of_rows = fa_quant {
            scale: scale.as_mut_ptr(),
            zero: if has_zero { zero.as_mut_ptr() } else { ptr::null() },
            stride: part,
            ..quant
        };
        dst.quant = &raw const of_rows;
        // SAFETY: rows of the description, and room for theirs.
        let status = unsafe { fa_quantize(&src, 1, heads, 1, dim, &dst) };
        assert_eq!(status, fa_status::FA_OK, "{about}");
        let mut of_token: Vec<usize> = (0..heads)
            .flat_map(|h| (0..dim).map(move |d| (h, d)))
            .map(|(h, d)| (far(h, of_head) + group(d, quant.group_dims, of_dims)) as usize)
            .collect();
        of_token.sort_unstable();
        of_token.dedup();
        let first = first + group(to[1], 1, quant.stride[2]);
        for at in of_token {
            let mut list = |list: *const f32, x: f32| {
                places.push((
                    list.wrapping_offset(first as isize + at as isize).addr(),
                    x.to_ne_bytes().to_vec(),
                ));
            };
            list(quant.scale, scale[at]);
            if has_zero {
                list(quant.zero, zero[at]);
            }
        }
    } else if [I8, U8].contains(&cache.dtype) || target.has_quant {
        for h in 0..heads {
            let place = first + far(h, of_head) + group(to[1], quant.group_tokens, of_token);
            let mut divided = vec![0f32; dim as usize];
            for d in 0..dim {
                let place = place + group(d, quant.group_dims, of_dims);
                let value = |list: *const f32, none: f32| {
                    if list.is_null() {
                        return none;
                    }
                    // SAFETY: a value of the list.
                    unsafe { list.wrapping_offset(place as isize).read_unaligned() }
                };
                let x = stored(new.dtype, row(new, from, h), d) as f32 / value(quant.scale, 1.0);
                divided[d as usize] = x;
                let x = (x + value(quant.zero, 0.0)).round_ties_even();
                let least = if cache.dtype == U8 { 0.0 } else { -128.0 };
                let x = if x.is_nan() { 0.0 } else { x.clamp(least, least + 255.0) };
                rows[h as usize * bytes + d as usize] = (x as i32) as u8;
            }
            if ![I8, U8].contains(&cache.dtype) {
                let data = divided.as_mut_ptr().cast();
                let src = fa_tensor { data, stride: [0; 3], dtype: F32, stride_dim: 0, quant: ptr::null() };
                let data = rows[h as usize * bytes..].as_mut_ptr().cast();
                let dst = fa_tensor { data, stride: [0; 3], ..dst };
                // SAFETY: a row, and room for its elements.
                let status = unsafe { fa_quantize(&src, 1, 1, 1, dim, &dst) };
                assert_eq!(status, fa_status::FA_OK, "{about}");
            }
        }
    } else {
        // SAFETY: rows of the description, and room for theirs.
        let status = unsafe { fa_quantize(&src, 1, heads, 1, dim, &dst) };
        assert_eq!(status, fa_status::FA_OK, "{about}");
    }
    for h in 0..heads {
        places.push((row(cache, to, h), rows[h as usize * bytes..][..bytes].to_vec()));
    }
}
