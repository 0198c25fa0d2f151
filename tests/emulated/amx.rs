//! The instructions of AMX, one by one against plain arithmetic: emulated, or the machine's own.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;

use crate::common::Random;
use crate::emulate;

/// Rows and columns of tiles, in words.
const SIDE: usize = 16;

type Tile = [[u32; SIDE]; SIDE];

/// What `ldtilecfg` reads: rows and bytes of a row of the first tiles.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq)]
struct Configuration([u8; 64]);

fn configuration(tiles: &[[usize; 2]]) -> Configuration {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    for (tile, [rows, row]) in tiles.iter().enumerate() {
        (bytes[16 + 2 * tile], bytes[48 + tile]) = (*row as u8, *rows as u8);
    }
    Configuration(bytes)
}

/// Whether nothing of the tiles is left on this thread.
pub(crate) fn are_released() -> bool {
    let mut stored = Configuration([9; 64]);
    // SAFETY: 64 bytes are written. The machine or the handler executes the instruction.
    unsafe { asm!("sttilecfg [{}]", in(reg) &raw mut stored) };
    stored == Configuration([0; 64])
}

/// Whether the instructions can be executed here.
fn is_there() -> bool {
    emulate::emulates_tiles() || flash_attention::enable_amx().is_ok()
}

/// Whether those are among them that multiply binary16.
fn has_f16() -> bool {
    let is_own = || __cpuid_count(7, 0).eax >= 1 && __cpuid_count(7, 1).eax >> 21 & 1 == 1;
    if emulate::emulates_tiles() { emulate::emulates_f16() } else { is_own() }
}

fn configure(tiles: &[[usize; 2]]) {
    let configuration = configuration(tiles);
    // SAFETY: 64 bytes are read. The machine or the handler executes the instruction.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const configuration) };
}

fn release() {
    // SAFETY: as above.
    unsafe { asm!("tilerelease") };
}

macro_rules! load {
    ($tile:literal, $from:expr) => {
        // SAFETY: 16 rows of 64 bytes are read.
        unsafe { asm!(concat!("tileloadd tmm", $tile, ", [{} + {}]"), in(reg) $from.as_ptr(), in(reg) 64usize) }
    };
}

macro_rules! store {
    ($tile:literal) => {{
        let mut to: Tile = [[0; SIDE]; SIDE];
        // SAFETY: 16 rows of 64 bytes are written.
        unsafe { asm!(concat!("tilestored [{} + {}], tmm", $tile), in(reg) to.as_mut_ptr(), in(reg) 64usize) };
        to
    }};
}

/// C + A · B by an instruction, of tiles of 16 rows of 16 words.
macro_rules! product {
    ($instruction:literal, $c:expr, $a:expr, $b:expr) => {{
        load!("1", $c);
        load!("6", $a);
        load!("7", $b);
        // SAFETY: three tiles, which are configured.
        unsafe { asm!(concat!($instruction, " tmm1, tmm6, tmm7")) };
        store!("1")
    }};
}

/// C + A · B by plain arithmetic: `add` adds the products of all words of a row and of a column.
fn by_hand(c: &Tile, a: &Tile, b: &Tile, add: impl Fn(u32, &[(u32, u32)]) -> u32) -> Tile {
    std::array::from_fn(|m| {
        std::array::from_fn(|n| {
            let pairs: Vec<_> = (0..SIDE).map(|k| (a[m][k], b[k][n])).collect();
            add(c[m][n], &pairs)
        })
    })
}

fn of_bytes(signed: [bool; 2]) -> impl Fn(u32, &[(u32, u32)]) -> u32 {
    move |c, pairs| {
        let number = |word: u32, i: u32, is_signed: bool| {
            let byte = (word >> (8 * i)) as u8;
            if is_signed { i64::from(byte as i8) } else { i64::from(byte) }
        };
        let products = pairs
            .iter()
            .flat_map(|&(a, b)| (0..4).map(move |i| number(a, i, signed[0]) * number(b, i, signed[1])));
        (i64::from(c as i32) + products.sum::<i64>()) as u32
    }
}

fn bf16(bits: u32) -> f64 {
    f64::from(half::bf16::from_bits(bits as u16).to_f32())
}

fn f16(bits: u32) -> f64 {
    half::f16::from_bits(bits as u16).to_f64()
}

/// Sums of products whose exact values are numbers of f32, so that no order of them matters.
fn exact(number: fn(u32) -> f64) -> impl Fn(u32, &[(u32, u32)]) -> u32 {
    move |c, pairs| {
        let products = pairs.iter().map(|&(a, b)| number(a) * number(b) + number(a >> 16) * number(b >> 16));
        ((f64::from(f32::from_bits(c)) + products.sum::<f64>()) as f32).to_bits()
    }
}

fn random_tile(random: &mut Random) -> Tile {
    std::array::from_fn(|_| std::array::from_fn(|_| random.bits()))
}

/// Integers of magnitudes up to 31, as numbers of 16 bits.
fn integers(random: &mut Random, bits: fn(f32) -> u16) -> Tile {
    let mut number = || u32::from(bits(random.below(63) as f32 - 31.0));
    std::array::from_fn(|_| std::array::from_fn(|_| number() | number() << 16))
}

#[test]
fn products_are_those_of_plain_arithmetic() {
    if !is_there() {
        return;
    }
    configure(&[[16, 64]; 8]);
    let mut random = Random(5);
    for round in 0..20 {
        let [mut c, mut a, mut b] = [0; 3].map(|_| random_tile(&mut random));
        if round == 0 {
            // The largest magnitudes of each sign, and sums that wrap.
            (c, a, b) =
                ([[0x7fff_fff0; SIDE]; SIDE], [[0x80ff_7f80; SIDE]; SIDE], [[0x80ff_7fff; SIDE]; SIDE]);
        }
        assert_eq!(product!("tdpbssd", c, a, b), by_hand(&c, &a, &b, of_bytes([true, true])), "{round}");
        assert_eq!(product!("tdpbsud", c, a, b), by_hand(&c, &a, &b, of_bytes([true, false])), "{round}");
        assert_eq!(product!("tdpbusd", c, a, b), by_hand(&c, &a, &b, of_bytes([false, true])), "{round}");
        assert_eq!(product!("tdpbuud", c, a, b), by_hand(&c, &a, &b, of_bytes([false, false])), "{round}");
        let c: Tile =
            std::array::from_fn(|_| std::array::from_fn(|_| (random.below(2001) as f32 - 1000.0).to_bits()));
        let [a, b] = [0; 2].map(|_| integers(&mut random, |x| half::bf16::from_f32(x).to_bits()));
        assert_eq!(product!("tdpbf16ps", c, a, b), by_hand(&c, &a, &b, exact(bf16)), "{round}");
        if has_f16() {
            let [a, b] = [0; 2].map(|_| integers(&mut random, |x| half::f16::from_f32(x).to_bits()));
            assert_eq!(product!("tdpfp16ps", c, a, b), by_hand(&c, &a, &b, exact(f16)), "{round}");
        }
    }
    release();
}

/// Numbers at even places have a sum of their own, those at odd places another one, and both
/// together are added to C; each step is rounded to nearest even.
#[test]
fn sums_are_rounded_as_the_manual_says() {
    if !is_there() {
        return;
    }
    configure(&[[16, 64]; 8]);
    let word = |low: f32, high: f32| {
        u32::from(half::bf16::from_f32(low).to_bits()) | u32::from(half::bf16::from_f32(high).to_bits()) << 16
    };
    let (large, small) = (2f32.powi(24), 1.0);
    let of = |products: [[f32; 2]; 3], c: f32| {
        let (mut a, b) = ([[0; SIDE]; SIDE], [[word(1.0, 1.0); SIDE]; SIDE]);
        for (k, [low, high]) in products.into_iter().enumerate() {
            a[3][k] = word(low, high);
        }
        let sums = product!("tdpbf16ps", [[c.to_bits(); SIDE]; SIDE], a, b);
        let left = if c.is_subnormal() { 0.0 } else { c };
        assert!(sums[2].iter().all(|&x| f32::from_bits(x) == left), "other rows");
        f32::from_bits(sums[3][7])
    };
    // 2^24 + 1 is a tie, and 2^24 + 3 one to 2^24 + 4.
    assert_eq!(of([[large, 0.0], [small, 0.0], [small, 0.0]], 0.0), large);
    assert_eq!(of([[small, 0.0], [small, 0.0], [large, 0.0]], 0.0), large + 2.0);
    // The small ones do not meet the large one until both sums are whole.
    assert_eq!(of([[large, small], [0.0, small], [0.0, small]], 0.0), large + 4.0);
    assert_eq!(of([[large, small], [-large, small], [0.0, small]], 0.0), 3.0);
    // C is added at last.
    assert_eq!(of([[small, 0.0], [small, 0.0], [0.0, small]], large), large + 4.0);
    // Subnormal operands and sums are 0; those of C, too.
    let tiny = f32::from_bits(0x0040_0000);
    assert_eq!(of([[tiny, 0.0]; 3], 0.0).to_bits(), 0);
    assert_eq!(of([[2f32.powi(-126), 0.0], [0.0, -2f32.powi(-126)], [0.0; 2]], 0.0), 0.0);
    assert_eq!(of([[2f32.powi(-126) * 1.5, -2f32.powi(-126)], [0.0; 2], [0.0; 2]], 0.0), 0.0);
    assert_eq!(of([[0.0; 2]; 3], f32::from_bits(0x8000_0001)), 0.0);
    assert!(of([[f32::INFINITY, 0.0], [f32::NEG_INFINITY, 0.0], [0.0; 2]], 1.0).is_nan());
    if has_f16() {
        // A subnormal number of binary16 counts.
        let (mut a, mut b) = ([[0; SIDE]; SIDE], [[0; SIDE]; SIDE]);
        (a[0][0], b[0][0]) = (0x0001, u32::from(half::f16::from_f32(0.5).to_bits()));
        let sums = product!("tdpfp16ps", [[0; SIDE]; SIDE], a, b);
        assert_eq!(f32::from_bits(sums[0][0]), 2f32.powi(-25));
    }
    release();
}

/// Shapes other than whole tiles, distances of rows however they are given, and what is left of a
/// tile.
#[test]
fn tiles_are_loaded_and_stored_as_they_are_configured() {
    if !is_there() {
        return;
    }
    // Three rows of 20 bytes, and products of tiles of odd shapes: 3 x 7 words by 7 x 5.
    let shapes = [[3, 20], [3, 28], [7, 20]];
    configure(&shapes);
    let mut stored = Configuration([9; 64]);
    // SAFETY: 64 bytes are written.
    unsafe { asm!("sttilecfg [{}]", in(reg) &raw mut stored) };
    assert_eq!(stored, configuration(&shapes));
    let memory: [u8; 1000] = std::array::from_fn(|i| (i * 7 + i / 256) as u8);
    let mut to = [0xee; 1000];
    // SAFETY: rows of the arrays: from byte 700 backwards by 80, by twice 50, by 0.
    unsafe {
        asm!("tileloadd tmm0, [{} + {} + 200]", in(reg) &raw const memory[500], in(reg) -80isize);
        asm!("tilestored [{} + 2 * {} - 6], tmm0", in(reg) &raw mut to[106], in(reg) 50usize);
    }
    for (i, &byte) in to.iter().enumerate() {
        let (row, column) = (i.wrapping_sub(100) / 100, i.wrapping_sub(100) % 100);
        let expected = if row < 3 && column < 20 { memory[700 - 80 * row + column] } else { 0xee };
        assert_eq!(byte, expected, "{i}");
    }
    let mut once = [0u8; 60];
    // SAFETY: the same row three times; 60 bytes are written.
    unsafe {
        asm!("tileloaddt1 tmm0, [{} + {}]", in(reg) &raw const memory[31], in(reg) 0usize);
        asm!("tilestored [{} + {}], tmm0", in(reg) once.as_mut_ptr(), in(reg) 20usize);
    }
    assert!(once.chunks(20).all(|row| *row == memory[31..51]));
    let mut product = [0i32; 15];
    // SAFETY: tiles of these shapes lie in the arrays.
    unsafe {
        asm!("tilezero tmm0");
        asm!("tileloadd tmm1, [{} + {}]", in(reg) memory.as_ptr(), in(reg) 28usize);
        asm!("tileloadd tmm2, [{} + {}]", in(reg) &raw const memory[300], in(reg) 20usize);
        asm!("tdpbuud tmm0, tmm1, tmm2");
        asm!("tilestored [{} + {}], tmm0", in(reg) product.as_mut_ptr(), in(reg) 20usize);
    }
    for (i, &got) in product.iter().enumerate() {
        let (m, n) = (i / 5, i % 5);
        let expected: i32 = (0..7 * 4)
            .map(|i| i32::from(memory[m * 28 + i]) * i32::from(memory[300 + i / 4 * 20 + n * 4 + i % 4]))
            .sum();
        assert_eq!(got, expected, "{m} {n}");
    }
    // Configured again, all tiles are 0.
    configure(&[[16, 64]; 8]);
    assert_eq!(store!("0"), [[0; SIDE]; SIDE]);
    release();
    // SAFETY: as above.
    unsafe { asm!("sttilecfg [{}]", in(reg) &raw mut stored) };
    assert_eq!(stored, Configuration([0; 64]), "released");
}

/// Each thread has tiles of its own.
#[test]
fn threads_have_tiles_of_their_own() {
    if !is_there() {
        return;
    }
    configure(&[[16, 64]; 8]);
    let mine = random_tile(&mut Random(1));
    load!("3", mine);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            configure(&[[16, 64]; 8]);
            let other = random_tile(&mut Random(2));
            load!("3", other);
            let same = store!("3") == other;
            release();
            same
        });
        assert!(other.join().unwrap());
    });
    assert_eq!(store!("3"), mine);
    release();
}
