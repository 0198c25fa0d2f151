//! Executes instructions that the machine lacks, in the handler of the signal that it gives for
//! them: Linux on x86-64.
//!
//! The parts, so that further instructions are easy to add: [`Instruction`] decodes VEX prefixes,
//! ModRM, SIB and displacements; [`Registers`] reads and writes the registers of the thread, as the
//! kernel has saved them for the handler; [`execute`] is the list of instructions. One costs a few
//! microseconds.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part of this")]

use std::arch::x86_64::__cpuid_count;
use std::mem::zeroed;
use std::ptr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The instruction set whose kernels run with emulated instructions on this machine: it has all
/// else that these need.
pub fn emulated_isa() -> Option<&'static str> {
    let has_base = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
        // The parts of a saved state have a place of their own.
        && is_x86_feature_detected!("xsave");
    (has_base && !is_x86_feature_detected!("avxvnni")).then_some("avxvnni")
}

/// From now on the instructions of [`execute`] work in all threads of the process.
pub fn install() {
    UPPER_HALVES.store(__cpuid_count(0xd, UPPER_HALVES_BIT as u32).ebx as usize, Ordering::Relaxed);
    // SAFETY: the handler calls nothing but code of this file, which does not allocate, and changes
    // nothing but what the instruction would.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        assert_eq!(libc::sigaction(libc::SIGILL, &action, ptr::null_mut()), 0);
    }
}

/// How many instructions have been emulated.
pub fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

static COUNT: AtomicU64 = AtomicU64::new(0);

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
        COUNT.fetch_add(done, Ordering::Relaxed);
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
