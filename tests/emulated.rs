//! Kernels of instruction sets that this machine lacks, with their instructions emulated one by
//! one: the tests that reach every kernel, on few of their cases. Where the machine has the
//! instructions, this runs them, and the other test programs have tested these kernels in full.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(clippy::duplicate_mod, reason = "each of the test programs has modules of its own")]

mod common;
#[path = "common/emulate.rs"]
mod emulate;
#[path = "common/store.rs"]
mod store;

#[path = "adversarial.rs"]
mod adversarial;
#[path = "emulated/amx.rs"]
mod amx;
#[path = "emulated/calls.rs"]
mod calls;
#[path = "common/child.rs"]
mod child;

#[path = "general.rs"]
mod general;
#[path = "integers.rs"]
mod integers;
#[path = "oracle.rs"]
mod oracle;
#[path = "quantize.rs"]
mod quantize;
#[path = "scales.rs"]
mod scales;
#[path = "types.rs"]
mod types;
#[path = "weights.rs"]
mod weights;

use std::arch::asm;
use std::cell::RefCell;

use common::{Inputs, KernelPath, Random, Size, is_tested, kernels, run};
use flash_attention::dtype::Dtype;
use flash_attention::kernel::Path;
use flash_attention::problem::{Problem, Semantics, Tensors};
use flash_attention::view::{Layout, View, ViewMut};
use store::encode;

/// Before anything else runs: the tests above read these variables, and threads of theirs execute
/// the instructions.
#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = {
    extern "C" fn begin() {
        let isas = emulate::emulated_isas();
        if !isas.is_empty() || emulate::emulates_tiles() {
            emulate::install();
        }
        // No tests of kernels where none is emulated.
        let isas = if isas.is_empty() { "none".to_owned() } else { isas.join(",") };
        // SAFETY: nothing else runs yet. The handler executes the instructions.
        unsafe {
            if emulate::emulates_vnni() {
                flash_attention::simd::emulate_vnni();
            }
            if emulate::emulates_amx() {
                flash_attention::machine::amx::emulate(emulate::emulates_f16());
            }
            for (name, value) in [("FA_TEST_ISA", &*isas), ("FA_TEST_SHARE", "17"), ("FA_TEST_THIN", "61")] {
                if std::env::var_os(name).is_none() {
                    std::env::set_var(name, value);
                }
            }
        }
    }
    begin
};

/// Two paths of each kernel whose instructions are emulated, and that they are. Tiles are not used
/// in decode.
#[test]
fn instructions_are_emulated() {
    let inputs = Inputs::normal(Size::new(1, 20, 33, 16), 1);
    let mut found = Vec::new();
    let mut check = |kernel: KernelPath, compute: &dyn Fn(KernelPath)| {
        let isa = kernel.kernel.isa().to_str().unwrap();
        let before = emulate::own_count();
        compute(kernel);
        let is_on_tiles = isa.starts_with("amx");
        let is_emulated = !is_on_tiles || kernel.path == Path::Prefill;
        assert_eq!(emulate::own_count() > before, is_emulated, "{kernel:?}");
        assert!(!is_on_tiles || amx::are_released(), "{kernel:?}: tiles are left");
        found.push(isa);
    };
    let of_bytes = inputs.quantised();
    for kernel in kernels(Dtype::I8) {
        check(kernel, &|kernel| drop(of_bytes.run(kernel, 1)));
    }
    let (rows, keys, dim) = (20, 33, 16);
    for dtype in [Dtype::Bf16, Dtype::F16] {
        let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(|x| encode(dtype, x, dim).0);
        for kernel in kernels(dtype) {
            let mut o = vec![0f32; rows * dim];
            // SAFETY: as many numbers, which outlive the problem.
            let [q, k, v] = [(&q, rows), (&k, keys), (&v, keys)].map(|(data, rows)| unsafe {
                View::new(data.as_ptr(), Layout::dense(dtype, 1, rows, dim).unwrap()).unwrap()
            });
            let o = ViewMut::of(&mut o, Layout::dense(Dtype::F32, 1, rows, dim).unwrap()).unwrap();
            let tensors = Tensors::new(q, k, v, o);
            let mut problem = Problem::new(tensors, Semantics::with_scale(1.0)).unwrap();
            let problem = RefCell::new(&mut problem);
            check(kernel, &|kernel| run(&mut problem.borrow_mut(), kernel, 1).unwrap());
        }
    }
    let count = |isa: &str| found.iter().filter(|found| **found == isa).count();
    let isas = emulate::emulated_isas();
    // Two paths of each: i8 and i16, or i8, bf16 and f16.
    for (isa, kernels) in [(c"avxvnni", 2), (c"amx", if emulate::emulates_f16() { 3 } else { 2 })] {
        let name = isa.to_str().unwrap();
        let is_there = isas.contains(&name) && is_tested(isa);
        assert_eq!(count(name), if is_there { 2 * kernels } else { 0 }, "{name}");
    }
}

/// Processors with tiles that do not multiply binary16: the kernel of f16 is not there, and all
/// else is as it was.
#[test]
fn tiles_without_products_of_f16() {
    let mut program = std::process::Command::new(std::env::current_exe().unwrap());
    program.args(["instructions_are_emulated", "amx::", "types::errors_of_16_bits"]);
    let run = program.env("FA_TEST_AMX_F16", "0").output().unwrap();
    let text = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && text.contains("running 6 tests"), "{text}");
}

/// Executes an instruction on three vectors, `$a` and `$b` its second and third operand.
macro_rules! execute {
    ($name:literal, $width:literal, $sum:expr, $a:expr, $b:expr) => {{
        let mut sum: [u8; 32] = $sum;
        // SAFETY: vectors of 32 bytes are read and written. The machine or the handler executes the
        // instruction.
        unsafe {
            asm!(
                "vmovdqu ymm9, [{sum}]",
                "vmovdqu ymm2, [{a}]",
                "vmovdqu ymm12, [{b}]",
                concat!("{{vex}} ", $name, " ", $width, "mm9, ", $width, "mm2, ", $width, "mm12"),
                "vmovdqu [{sum}], ymm9",
                sum = in(reg) sum.as_mut_ptr(), a = in(reg) $a.as_ptr(), b = in(reg) $b.as_ptr(),
                out("ymm9") _, out("ymm2") _, out("ymm12") _,
            );
        }
        sum
    }};
}

/// Executes `vpdpbusd ymm1, ymm2, MEMORY`, where memory is addressed from the registers `base` and
/// `index`, in different ways.
macro_rules! execute_memory {
    ($memory:literal, $base:expr, $index:expr, $sum:expr, $a:expr) => {{
        let mut sum: [u8; 32] = $sum;
        // SAFETY: as above, and `$memory` is a vector of 32 bytes.
        unsafe {
            asm!(
                "vmovdqu ymm1, [{sum}]",
                "vmovdqu ymm2, [{a}]",
                concat!("{{vex}} vpdpbusd ymm1, ymm2, ymmword ptr ", $memory),
                "vmovdqu [{sum}], ymm1",
                sum = in(reg) sum.as_mut_ptr(), a = in(reg) $a.as_ptr(),
                in("r13") $base, in("r14") $index, in("rdi") $base,
                out("ymm1") _, out("ymm2") _,
            );
        }
        sum
    }};
}

/// What a dot product of four bytes, or of pairs of 16 bits, gives by plain integers, with
/// saturation or without.
fn by_hand(sum: [u8; 32], a: [u8; 32], b: [u8; 32], of_bytes: bool, saturates: bool) -> [u8; 32] {
    let mut out = [0; 32];
    for i in (0..32).step_by(4) {
        let mut exact = i64::from(i32::from_le_bytes(sum[i..i + 4].try_into().unwrap()));
        for j in (i..i + 4).step_by(if of_bytes { 1 } else { 2 }) {
            exact += if of_bytes {
                i64::from(a[j]) * i64::from(b[j] as i8)
            } else {
                let of = |x: [u8; 32]| i64::from(i16::from_le_bytes([x[j], x[j + 1]]));
                of(a) * of(b)
            };
        }
        let most = exact.clamp(i64::from(i32::MIN), i64::from(i32::MAX));
        out[i..i + 4].copy_from_slice(&(if saturates { most } else { exact } as i32).to_le_bytes());
    }
    out
}

/// Each instruction, on vectors of both lengths, in registers with small and large numbers, and in
/// memory however it is addressed; with random numbers and those that saturate.
#[test]
fn emulated_instructions_are_right() {
    if !emulate::emulates_vnni() && !is_x86_feature_detected!("avxvnni") {
        return;
    }
    let mut random = Random(1);
    let mut vector = || -> [u8; 32] { std::array::from_fn(|_| (random.bits() >> 24) as u8) };
    for round in 0..200 {
        let (mut sum, mut a, mut b) = (vector(), vector(), vector());
        if round % 4 == 0 {
            // The largest sums and products, of both signs.
            sum = if round % 8 == 0 { [0xff; 32] } else { [0; 32] };
            sum.iter_mut().skip(3).step_by(4).for_each(|x| *x ^= 0x80);
            (a, b) = ([0xff; 32], if round % 8 == 0 { [0x7f; 32] } else { [0x80; 32] });
        }
        for (of_bytes, saturates, long, short) in [
            (true, false, execute!("vpdpbusd", "y", sum, a, b), execute!("vpdpbusd", "x", sum, a, b)),
            (true, true, execute!("vpdpbusds", "y", sum, a, b), execute!("vpdpbusds", "x", sum, a, b)),
            (false, false, execute!("vpdpwssd", "y", sum, a, b), execute!("vpdpwssd", "x", sum, a, b)),
            (false, true, execute!("vpdpwssds", "y", sum, a, b), execute!("vpdpwssds", "x", sum, a, b)),
        ] {
            let mut expected = by_hand(sum, a, b, of_bytes, saturates);
            assert_eq!(long, expected, "{round} {of_bytes} {saturates}");
            expected[16..].fill(0);
            assert_eq!(short, expected, "{round} {of_bytes} {saturates}, 128 bits");
        }
        let memory: [u8; 600] = std::array::from_fn(|i| (i * 7 + round) as u8);
        let at = |offset: usize| -> [u8; 32] { memory[offset..][..32].try_into().unwrap() };
        let base = memory.as_ptr() as usize;
        for (offset, got) in [
            (0, execute_memory!("[rdi]", base, 0usize, sum, a)),
            (0, execute_memory!("[r13]", base, 0usize, sum, a)),
            (100, execute_memory!("[rdi + 100]", base, 0usize, sum, a)),
            (100, execute_memory!("[r13 - 28]", base + 128, 0usize, sum, a)),
            (400, execute_memory!("[r13 + 400]", base, 0usize, sum, a)),
            (3, execute_memory!("[rdi + r14]", base, 3usize, sum, a)),
            (150, execute_memory!("[r13 + 8 * r14 + 126]", base, 3usize, sum, a)),
            (8, execute_memory!("[r14 * 4 + 0]", 0usize, base / 4 + 2, sum, a)),
        ] {
            // The last way has no base, and forgets what is not a multiple of 4.
            let offset = if offset == 8 { 8 - base % 4 } else { offset };
            assert_eq!(got, by_hand(sum, a, at(offset), true, false), "{round} {offset}");
        }
        let mut got = sum;
        // SAFETY: as above. The constant stands behind a jump, relative to the instruction.
        unsafe {
            asm!(
                "vmovdqu ymm1, [{sum}]",
                "vmovdqu ymm2, [{a}]",
                "{{vex}} vpdpbusd ymm1, ymm2, ymmword ptr [rip + 3f]",
                "jmp 2f",
                "3:", ".fill 8, 4, 0x81027f03",
                "2:",
                "vmovdqu [{sum}], ymm1",
                sum = in(reg) got.as_mut_ptr(), a = in(reg) a.as_ptr(), out("ymm1") _, out("ymm2") _,
            );
        }
        let constant = std::array::from_fn(|i| 0x8102_7f03u32.to_le_bytes()[i % 4]);
        assert_eq!(got, by_hand(sum, a, constant, true, false), "{round}, relative");
    }
}
