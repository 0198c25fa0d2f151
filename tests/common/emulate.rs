//! Executes instructions that the machine lacks, in the handler of the signal that it gives for
//! them: Linux on x86-64.
//!
//! The parts, so that further instructions are easy to add: [`Instruction`] decodes VEX prefixes,
//! ModRM, SIB and displacements; [`Registers`] reads and writes the registers of the thread, as the
//! kernel has saved them for the handler; [`execute`] is the list of instructions. One costs a few
//! microseconds.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part of this")]

use std::arch::x86_64::__cpuid_count;
use std::cell::{Cell, UnsafeCell};
use std::mem::zeroed;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Whether kernels of AVX-VNNI run with emulated instructions on this machine: it has all else that
/// these need.
pub fn emulates_vnni() -> bool {
    let has_base = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
        // The parts of a saved state have a place of their own.
        && is_x86_feature_detected!("xsave");
    has_base && !is_x86_feature_detected!("avxvnni")
}

/// [`emulates_vnni`], of AMX.
pub fn emulates_amx() -> bool {
    let has_base = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("xsave");
    has_base && !has_tiles()
}

/// Whether products of tiles of binary16 are emulated with the others: unless the environment
/// variable `FA_TEST_AMX_F16` is 0.
pub fn emulates_f16() -> bool {
    std::env::var_os("FA_TEST_AMX_F16").is_none_or(|wanted| wanted != "0")
}

/// Whether instructions of AMX are emulated where they are executed: no kernel need be there.
pub fn emulates_tiles() -> bool {
    is_x86_feature_detected!("avx") && is_x86_feature_detected!("xsave") && !has_tiles()
}

/// Whether the processor has the tiles of AMX.
fn has_tiles() -> bool {
    __cpuid_count(7, 0).edx >> 24 & 1 == 1
}

/// The instruction sets whose kernels run with emulated instructions on this machine.
pub fn emulated_isas() -> Vec<&'static str> {
    let of_amx = ["amx"].into_iter().filter(|_| emulates_amx());
    of_amx.chain(["avxvnni"].into_iter().filter(|_| emulates_vnni())).collect()
}

/// From now on the instructions of [`execute`] work in all threads of the process.
pub fn install() {
    HAS_F16.store(emulates_f16(), Ordering::Relaxed);
    UPPER_HALVES.store(__cpuid_count(0xd, UPPER_HALVES_BIT as u32).ebx as usize, Ordering::Relaxed);
    // SAFETY: the handler calls nothing but code of this file, which does not allocate, and changes
    // nothing but what the instruction would.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = handler as *const () as usize;
        // On the thread's own stack: the alternate ones have no room for tiles.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        assert_eq!(libc::sigaction(libc::SIGILL, &action, ptr::null_mut()), 0);
    }
}

/// How many instructions of this thread have been emulated.
pub fn own_count() -> u64 {
    COUNT.with(Cell::get)
}

/// [`emulates_f16`], for the handler.
static HAS_F16: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Without a destructor, and in the thread's own memory: the handler may use it.
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// # Safety
/// The kernel calls it, with the state of the thread.
unsafe extern "C" fn handler(_signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a context. Its instruction pointer leads to code, as do those of the
    // instructions behind one that has been executed.
    unsafe {
        let Some(mut registers) = Registers::of(context.cast()) else { return give_up() };
        let mut done = 0;
        // A signal costs more than an instruction: those that follow are taken along.
        while let Some(instruction) = Instruction::at(registers.rip()) {
            if !execute(&instruction, &mut registers) {
                break;
            }
            registers.set_rip(registers.rip() + instruction.bytes);
            done += 1;
        }
        COUNT.with(|count| count.set(count.get() + done));
        if done == 0 {
            give_up();
        }
    }
}

/// What the signal does without a handler, when the instruction is executed again.
///
/// # Safety
/// In the handler.
unsafe fn give_up() {
    // SAFETY: `signal` may be called in handlers.
    unsafe { libc::signal(libc::SIGILL, libc::SIG_DFL) };
}

/// The instructions: whether this is one of them.
///
/// # Safety
/// Operands in memory are readable, or the instruction would give a signal of its own, which this
/// does, too.
unsafe fn execute(instruction: &Instruction, registers: &mut Registers) -> bool {
    // SAFETY: the caller vouches for operands in memory.
    if unsafe { execute_on_tiles(instruction, registers) } {
        return true;
    }
    let dot: fn(i32, [u8; 4], [u8; 4]) -> i32 = match instruction.code() {
        // The map 0F38 with the prefix 66 and W = 0.
        (2, 1, 0, 0x50) => |sum, a, b| sum.wrapping_add(sum_of_bytes(a, b) as i32),
        (2, 1, 0, 0x51) => |sum, a, b| saturated(i64::from(sum) + sum_of_bytes(a, b)),
        (2, 1, 0, 0x52) => |sum, a, b| sum.wrapping_add(sum_of_pairs(a, b) as i32),
        (2, 1, 0, 0x53) => |sum, a, b| saturated(i64::from(sum) + sum_of_pairs(a, b)),
        _ => return false,
    };
    // SAFETY: the caller vouches for the operand in memory.
    unsafe {
        let (first, second) = (registers.vector(instruction.second), registers.operand(instruction));
        let mut sum = registers.vector(instruction.register);
        for ((sum, a), b) in words(&mut sum).zip(first.chunks_exact(4)).zip(second.chunks_exact(4)) {
            let x = i32::from_le_bytes(*sum);
            *sum = dot(x, [a[0], a[1], a[2], a[3]], [b[0], b[1], b[2], b[3]]).to_le_bytes();
        }
        registers.set_vector(instruction.register, sum, instruction.is_long);
    }
    true
}

fn words(vector: &mut [u8; 32]) -> impl Iterator<Item = &mut [u8; 4]> {
    vector.as_chunks_mut::<4>().0.iter_mut()
}

/// Unsigned bytes times signed ones.
fn sum_of_bytes(a: [u8; 4], b: [u8; 4]) -> i64 {
    a.into_iter().zip(b).map(|(a, b)| i64::from(a) * i64::from(b as i8)).sum()
}

/// Signed numbers of 16 bits.
fn sum_of_pairs(a: [u8; 4], b: [u8; 4]) -> i64 {
    let of = |x: [u8; 4]| [i16::from_le_bytes([x[0], x[1]]), i16::from_le_bytes([x[2], x[3]])].map(i64::from);
    let ([a, b], [c, d]) = (of(a), of(b));
    a * c + b * d
}

/// Rows of a tile.
const ROWS: usize = 16;

/// Bytes of a row of a tile.
const ROW: usize = 64;

type Tile = [[u8; ROW]; ROWS];

/// The tiles of a thread, and their configuration as `ldtilecfg` reads it.
struct Tiles {
    tiles: UnsafeCell<[Tile; 8]>,
    configuration: UnsafeCell<[u8; 64]>,
}

thread_local! {
    /// Without a destructor, and in the thread's own memory: the handler may use it.
    static TILES: Tiles = const {
        Tiles { tiles: UnsafeCell::new([[[0; ROW]; ROWS]; 8]), configuration: UnsafeCell::new([0; 64]) }
    };
}

/// Rows and bytes of a row of a tile, as they are configured.
fn shape(configuration: &[u8; 64], tile: usize) -> Option<[usize; 2]> {
    let bytes = usize::from(u16::from_le_bytes([configuration[16 + 2 * tile], configuration[17 + 2 * tile]]));
    let rows = usize::from(configuration[48 + tile]);
    (configuration[0] == 1 && (1..=ROWS).contains(&rows) && (1..=ROW).contains(&bytes))
        .then_some([rows, bytes])
}

/// Products of tiles by the manual's arithmetic: of one row of A with one column of B.
#[derive(Clone, Copy)]
enum Dot {
    /// Four bytes; whether those of A and those of B are signed.
    Bytes([bool; 2]),
    Bf16,
    Fp16,
}

impl Dot {
    /// C += A · B, of tiles of so many rows and bytes a row.
    fn add(self, c: &mut Tile, a: &Tile, b: &Tile, [rows, columns]: [usize; 2], words: usize) {
        match self {
            Dot::Bytes(signed) => {
                for (c, a) in c.iter_mut().zip(a).take(rows) {
                    for n in 0..columns / 4 {
                        let sum = sum_of_all_bytes(word(c, n), signed, &a[..4 * words], |k| word(&b[k], n));
                        c[4 * n..4 * n + 4].copy_from_slice(&sum);
                    }
                }
            }
            Dot::Bf16 => add_halves(bf16_without_subnormals, c, a, b, [rows, columns], words),
            Dot::Fp16 => add_halves(f16, c, a, b, [rows, columns], words),
        }
    }
}

fn word(row: &[u8; ROW], i: usize) -> [u8; 4] {
    [row[4 * i], row[4 * i + 1], row[4 * i + 2], row[4 * i + 3]]
}

/// [`Dot::add`] of numbers of 16 bits: those at even places and those at odd places have a sum
/// each, and both together are added to C.
fn add_halves(
    number: fn(u16) -> f32,
    c: &mut Tile,
    a: &Tile,
    b: &Tile,
    [rows, columns]: [usize; 2],
    words: usize,
) {
    let numbers = |tile: &Tile| -> [[[f32; 2]; 16]; ROWS] {
        let of = |row: &[u8; ROW], i: usize| number(u16::from_le_bytes([row[2 * i], row[2 * i + 1]]));
        tile.each_ref().map(|row| std::array::from_fn(|i| [of(row, 2 * i), of(row, 2 * i + 1)]))
    };
    let (a, b) = (numbers(a), numbers(b));
    for (c, a) in c.iter_mut().zip(&a).take(rows) {
        let mut sums = [[0f32; 2]; 16];
        for (a, b) in a.iter().zip(&b).take(words) {
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = [fused(a[0], b[0], sum[0]), fused(a[1], b[1], sum[1])];
            }
        }
        for n in 0..columns / 4 {
            let more = flushed(sums[n][0] + sums[n][1]);
            let sum = flushed(flushed(f32::from_le_bytes(word(c, n))) + more);
            c[4 * n..4 * n + 4].copy_from_slice(&sum.to_le_bytes());
        }
    }
}

/// a · b + c, rounded once, without subnormals. Products of such short numbers are exact where they
/// are normal.
fn fused(a: f32, b: f32, c: f32) -> f32 {
    let product = a * b;
    if product.is_normal() {
        return flushed(product + c);
    }
    flushed((f64::from(a) * f64::from(b) + f64::from(c)) as f32)
}

fn sum_of_all_bytes(sum: [u8; 4], signed: [bool; 2], a: &[u8], column: impl Fn(usize) -> [u8; 4]) -> [u8; 4] {
    let number = |byte: u8, is_signed: bool| match is_signed {
        true => i32::from(byte as i8),
        false => i32::from(byte),
    };
    let mut sum = i32::from_le_bytes(sum);
    for (k, a) in a.chunks_exact(4).enumerate() {
        for (&a, b) in a.iter().zip(column(k)) {
            sum = sum.wrapping_add(number(a, signed[0]) * number(b, signed[1]));
        }
    }
    sum.to_le_bytes()
}

/// Subnormal numbers become 0 of the same sign.
fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

fn bf16_without_subnormals(bits: u16) -> f32 {
    flushed(f32::from_bits(u32::from(bits) << 16))
}

/// Subnormal numbers count.
fn f16(bits: u16) -> f32 {
    let (sign, exponent, fraction) = (bits >> 15, bits >> 10 & 31, f32::from(bits & 0x3ff));
    let magnitude = match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (fraction + 1024.0) * 2f32.powi(i32::from(exponent) - 25),
    };
    if sign == 1 { -magnitude } else { magnitude }
}

/// The instructions of AMX: whether this is one of them, and the tiles are configured for it.
///
/// # Safety
/// As [`execute`].
unsafe fn execute_on_tiles(instruction: &Instruction, registers: &Registers) -> bool {
    let Instruction { register, second, third, .. } = *instruction;
    if instruction.is_long {
        return false;
    }
    // SAFETY: the tiles of this thread, which nothing else uses while its handler runs; the caller
    // vouches for operands in memory.
    TILES.with(|all| unsafe {
        let (tiles, configuration) = (&mut *all.tiles.get(), &mut *all.configuration.get());
        let known = |tile: usize| shape(configuration, tile).filter(|_| tile < 8);
        match (instruction.code(), third) {
            // ldtilecfg, sttilecfg, tilerelease, tilezero.
            ((2, 0, 0, 0x49), Operand::Memory(of)) if register == 0 => {
                *configuration = registers.address(instruction, of).cast::<[u8; 64]>().read_unaligned();
                *tiles = [[[0; ROW]; ROWS]; 8];
                true
            }
            ((2, 1, 0, 0x49), Operand::Memory(of)) if register == 0 => {
                registers
                    .address(instruction, of)
                    .cast_mut()
                    .cast::<[u8; 64]>()
                    .write_unaligned(*configuration);
                true
            }
            ((2, 0, 0, 0x49), Operand::Register(0)) if register == 0 => {
                *configuration = [0; 64];
                *tiles = [[[0; ROW]; ROWS]; 8];
                true
            }
            ((2, 3, 0, 0x49), Operand::Register(0)) if known(register).is_some() => {
                tiles[register] = [[0; ROW]; ROWS];
                true
            }
            // tileloadd and tileloaddt1, tilestored: the index is the distance of rows.
            ((2, prefix @ 1..=3, 0, 0x4b), Operand::Memory(of)) => {
                let Some([rows, bytes]) = known(register) else { return false };
                let first = registers.address(instruction, Address { index: None, ..of });
                let distance =
                    of.index.map_or(0, |(number, scale)| registers.general(number) as isize * scale as isize);
                for (row, tile) in tiles[register].iter_mut().enumerate() {
                    let at = first.wrapping_offset(distance * row as isize);
                    match prefix {
                        2 if row < rows => ptr::copy_nonoverlapping(tile.as_ptr(), at.cast_mut(), bytes),
                        2 => {}
                        _ => {
                            *tile = [0; ROW];
                            if row < rows {
                                ptr::copy_nonoverlapping(at, tile.as_mut_ptr(), bytes);
                            }
                        }
                    }
                }
                true
            }
            ((2, prefix, 0, opcode @ (0x5c | 0x5e)), Operand::Register(first)) => {
                let dot = match (opcode, prefix) {
                    (0x5c, 2) => Dot::Bf16,
                    (0x5c, 3) if HAS_F16.load(Ordering::Relaxed) => Dot::Fp16,
                    (0x5e, 0) => Dot::Bytes([false, false]),
                    (0x5e, 1) => Dot::Bytes([false, true]),
                    (0x5e, 2) => Dot::Bytes([true, false]),
                    (0x5e, 3) => Dot::Bytes([true, true]),
                    _ => return false,
                };
                let (Some(c), Some(a), Some(b)) = (known(register), known(first), known(second)) else {
                    return false;
                };
                // What else is illegal: rows and columns that do not meet, and a tile twice.
                let meets = c[0] == a[0] && c[1] == b[1] && a[1] == 4 * b[0];
                if !meets || register == first || register == second || first == second {
                    return false;
                }
                let (of_a, of_b) = (tiles[first], tiles[second]);
                dot.add(&mut tiles[register], &of_a, &of_b, c, b[0]);
                for sums in tiles[register].iter_mut().skip(c[0]) {
                    *sums = [0; ROW];
                }
                true
            }
            _ => false,
        }
    })
}

fn saturated(x: i64) -> i32 {
    x.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32
}

/// A decoded instruction with a VEX prefix and no immediate. Registers are numbers from 0 to 15.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Instruction {
    /// 1 is 0F, 2 is 0F38, 3 is 0F3A.
    pub map: u8,
    /// 0 is no prefix, 1 is 66, 2 is F3, 3 is F2.
    pub prefix: u8,
    pub w: u8,
    pub opcode: u8,
    /// L: vectors of 256 bits, not 128.
    pub is_long: bool,
    /// The operand `reg` of ModRM.
    pub register: usize,
    /// The operand `vvvv` of VEX.
    pub second: usize,
    /// The operand `r/m` of ModRM.
    pub third: Operand,
    /// Its length.
    pub bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operand {
    Register(usize),
    Memory(Address),
}

/// base + index · scale + displacement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Address {
    pub base: Base,
    pub index: Option<(usize, usize)>,
    pub displacement: i64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Base {
    None,
    Register(usize),
    /// The end of the instruction.
    Next,
}

impl Instruction {
    /// The instruction at an address, if it has a VEX prefix.
    ///
    /// # Safety
    /// There is an instruction.
    pub unsafe fn at(address: usize) -> Option<Instruction> {
        let start = address as *const u8;
        let mut code = start;
        // SAFETY: bytes of the instruction, each read only if those before say that it is one.
        let mut next = || unsafe {
            let byte = code.read();
            code = code.add(1);
            byte
        };
        // Bits of prefixes are inverted: R, X, B and vvvv.
        let (first, map, last) = match next() {
            0xc5 => {
                let byte = next();
                (byte | 0x60, 1, byte & 0x7f)
            }
            0xc4 => {
                let byte = next();
                (byte, byte & 31, next())
            }
            _ => return None,
        };
        let [r, x, b] = [7, 6, 5].map(|bit| !first >> bit & 1);
        let w = last >> 7;
        let (second, is_long, prefix) = (usize::from(!last >> 3 & 15), last >> 2 & 1 == 1, last & 3);
        let opcode = next();
        let mod_rm = next();
        let (mode, register, rm) = (mod_rm >> 6, mod_rm >> 3 & 7, mod_rm & 7);
        let with = |bit: u8, low: u8| usize::from(bit << 3 | low);
        let third = if mode == 3 {
            Operand::Register(with(b, rm))
        } else {
            let mut index = None;
            let mut base = Base::Register(with(b, rm));
            let mut has_four_bytes = mode == 2;
            if rm == 4 {
                let sib = next();
                let number = with(x, sib >> 3 & 7);
                index = (number != 4).then_some((number, 1 << (sib >> 6)));
                base = Base::Register(with(b, sib & 7));
                if mode == 0 && sib & 7 == 5 {
                    (base, has_four_bytes) = (Base::None, true);
                }
            } else if mode == 0 && rm == 5 {
                (base, has_four_bytes) = (Base::Next, true);
            }
            let displacement = match () {
                () if has_four_bytes => i64::from(i32::from_le_bytes([next(), next(), next(), next()])),
                () if mode == 1 => i64::from(next() as i8),
                () => 0,
            };
            Operand::Memory(Address { base, index, displacement })
        };
        let register = with(r, register);
        let bytes = code as usize - address;
        Some(Instruction { map, prefix, w, opcode, is_long, register, second, third, bytes })
    }

    /// Map, prefix, W and opcode.
    fn code(&self) -> (u8, u8, u8, u8) {
        (self.map, self.prefix, self.w, self.opcode)
    }
}

/// Where the upper halves of vectors of 256 bits begin in a saved state.
static UPPER_HALVES: AtomicUsize = AtomicUsize::new(0);
/// Their number among the parts of a state.
const UPPER_HALVES_BIT: u64 = 2;
/// The number of the lower halves.
const LOWER_HALVES_BIT: u64 = 1;

/// The registers of a thread that has been interrupted, in the context of the handler.
pub struct Registers<'a> {
    general: &'a mut [i64; 23],
    /// As the instruction XSAVE writes it, not compacted.
    state: *mut u8,
}

impl Registers<'_> {
    /// `None` if the kernel has saved no vectors of 256 bits.
    ///
    /// # Safety
    /// A context as the kernel gives it, which nothing else uses.
    unsafe fn of(context: *mut libc::ucontext_t) -> Option<Self> {
        /// Bytes of the old state, in which the last ones are for software, and the number that
        /// Linux writes there if a whole state follows.
        const SOFTWARE: usize = 464;
        const MAGIC: u32 = 0x4650_5853;
        // SAFETY: the kernel has written the context.
        unsafe {
            let machine = &mut (*context).uc_mcontext;
            let state = machine.fpregs.cast::<u8>();
            if state.is_null() || state.add(SOFTWARE).cast::<u32>().read_unaligned() != MAGIC {
                return None;
            }
            let saved = state.add(SOFTWARE + 8).cast::<u64>().read_unaligned();
            let has_vectors = saved >> UPPER_HALVES_BIT & 1 == 1;
            has_vectors.then_some(Registers { general: &mut machine.gregs, state })
        }
    }

    fn rip(&self) -> usize {
        self.general[libc::REG_RIP as usize] as usize
    }

    fn set_rip(&mut self, rip: usize) {
        self.general[libc::REG_RIP as usize] = rip as i64;
    }

    /// A register by its number in instructions.
    pub fn general(&self, number: usize) -> i64 {
        use libc::{REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
        use libc::{REG_RAX, REG_RBP, REG_RBX, REG_RCX, REG_RDI, REG_RDX, REG_RSI, REG_RSP};
        let order = [
            REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9, REG_R10,
            REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
        ];
        self.general[order[number] as usize]
    }

    /// Where an operand in memory is.
    pub fn address(&self, instruction: &Instruction, of: Address) -> *const u8 {
        let base = match of.base {
            Base::None => 0,
            Base::Register(number) => self.general(number),
            Base::Next => (self.rip() + instruction.bytes) as i64,
        };
        let index = of.index.map_or(0, |(number, scale)| self.general(number).wrapping_mul(scale as i64));
        base.wrapping_add(index).wrapping_add(of.displacement) as usize as *const u8
    }

    /// The operand `r/m`, with zeros behind 128 bits.
    ///
    /// # Safety
    /// It is readable if it is in memory.
    pub unsafe fn operand(&self, instruction: &Instruction) -> [u8; 32] {
        match instruction.third {
            Operand::Register(number) => self.vector(number),
            Operand::Memory(of) => {
                let mut vector = [0; 32];
                let bytes = if instruction.is_long { 32 } else { 16 };
                let from = self.address(instruction, of);
                // SAFETY: the caller vouches for so many bytes.
                unsafe { ptr::copy_nonoverlapping(from, vector.as_mut_ptr(), bytes) };
                vector
            }
        }
    }

    /// Which parts of the state have been saved: the others are zeros.
    fn parts(&self) -> *mut u64 {
        self.state.wrapping_add(512).cast()
    }

    fn half(&self, number: usize, bit: u64) -> *mut u8 {
        let first = if bit == LOWER_HALVES_BIT { 160 } else { UPPER_HALVES.load(Ordering::Relaxed) };
        self.state.wrapping_add(first + 16 * number)
    }

    /// A vector of 256 bits.
    pub fn vector(&self, number: usize) -> [u8; 32] {
        let mut vector = [0; 32];
        for (half, bit) in vector.chunks_exact_mut(16).zip([LOWER_HALVES_BIT, UPPER_HALVES_BIT]) {
            // SAFETY: the state has both halves of each register, as `of` has seen.
            unsafe {
                if self.parts().read_unaligned() >> bit & 1 == 1 {
                    ptr::copy_nonoverlapping(self.half(number, bit), half.as_mut_ptr(), 16);
                }
            }
        }
        vector
    }

    /// Writes a vector, with zeros in its upper half unless `is_long`.
    pub fn set_vector(&mut self, number: usize, mut vector: [u8; 32], is_long: bool) {
        if !is_long {
            vector[16..].fill(0);
        }
        for (half, bit) in vector.chunks_exact(16).zip([LOWER_HALVES_BIT, UPPER_HALVES_BIT]) {
            // SAFETY: as in `vector`. The halves of the 16 registers lie side by side.
            unsafe {
                let parts = self.parts().read_unaligned();
                if parts >> bit & 1 == 0 {
                    self.half(0, bit).write_bytes(0, 16 * 16);
                    self.parts().write_unaligned(parts | 1 << bit);
                }
                ptr::copy_nonoverlapping(half.as_ptr(), self.half(number, bit), 16);
            }
        }
    }
}
