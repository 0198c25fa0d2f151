//! Tile registers of AMX: Sapphire Rapids and later. The instructions have no stable intrinsics,
//! and the compiler uses no tiles of its own, so that they are inline assembly.
//!
//! Instructions on tiles that are not configured are illegal. `src/kernel.rs` configures them for
//! each work item of a kernel that has them, and releases them behind it, also when a panic unwinds
//! (invariant I11 in `docs/safety.md`). By the calling convention no caller has tiles that a call
//! must keep.

use std::arch::asm;

use super::half::Format;
use super::tiles::{SIDE, TileRegisters, WORD};

/// C += A · B by an instruction.
macro_rules! dot {
    ($name:ident, $instruction:literal) => {
        #[inline(always)]
        fn $name<const C: usize, const A: usize, const B: usize>(&mut self) {
            // SAFETY: I4, I11: the machine has the instruction, and the tiles are configured. It
            // changes one of them only.
            unsafe {
                asm!(
                    concat!($instruction, " tmm{c}, tmm{a}, tmm{b}"),
                    c = const C, a = const A, b = const B,
                    options(nostack, preserves_flags),
                );
            }
        }
    };
}

/// The tiles of the thread, with products of 16-bit numbers of a format. Made by tokens of levels
/// of AVX-512 that include AMX, alone.
#[derive(Clone, Copy)]
pub(crate) struct Amx(Format);

impl Amx {
    /// The tiles, for tiles of `columns` columns: 16.
    ///
    /// # Safety
    /// The machine has AMX, with products of this format, and the process the permission to use it.
    #[inline(always)]
    pub(super) unsafe fn new(columns: usize, format: Format) -> Amx {
        debug_assert_eq!(columns, SIDE);
        Amx(format)
    }

    dot!(dot_bf16, "tdpbf16ps");
    dot!(dot_f16, "tdpfp16ps");
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row of each tile, of which there are 8, and zeros.
    row_bytes: [u16; 16],
    /// Rows of each tile, and zeros.
    rows: [u8; 16],
}

static WHOLE_TILES: Configuration = {
    let mut configuration =
        Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    let mut tile = 0;
    while tile < 8 {
        configuration.row_bytes[tile] = (SIDE * WORD) as u16;
        configuration.rows[tile] = SIDE as u8;
        tile += 1;
    }
    configuration
};

impl TileRegisters for Amx {
    #[inline(always)]
    fn configure(&self) {
        // SAFETY: I4: the machine has the instruction, which reads 64 bytes.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const WHOLE_TILES, options(nostack, preserves_flags, readonly));
        }
    }

    #[inline(always)]
    fn release(&self) {
        // SAFETY: I4: the machine has the instruction, which changes tiles only.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags)) };
    }

    #[inline(always)]
    fn zero<const T: usize>(&mut self) {
        // SAFETY: I4, I11: the tile is configured.
        unsafe { asm!("tilezero tmm{t}", t = const T, options(nostack, preserves_flags)) };
    }

    #[inline(always)]
    unsafe fn load<const T: usize>(&mut self, from: *const u8, stride: usize) {
        // SAFETY: I4, I11: the tile is configured; 16 rows of 64 bytes are readable (caller).
        unsafe {
            asm!(
                "tileloadd tmm{t}, [{from} + {stride}]",
                t = const T, from = in(reg) from, stride = in(reg) stride,
                options(nostack, preserves_flags, readonly),
            );
        }
    }

    #[inline(always)]
    unsafe fn load_a<const T: usize>(&mut self, from: *const u8, stride: usize) {
        // SAFETY: 16 rows of 64 bytes are readable (caller).
        unsafe { self.load::<T>(from, stride) };
    }

    #[inline(always)]
    unsafe fn store<const T: usize>(&self, to: *mut u8, stride: usize) {
        // SAFETY: I4, I11: the tile is configured; 16 rows of 64 bytes are writable (caller).
        unsafe {
            asm!(
                "tilestored [{to} + {stride}], tmm{t}",
                t = const T, to = in(reg) to, stride = in(reg) stride,
                options(nostack, preserves_flags),
            );
        }
    }

    #[inline(always)]
    fn dot_halves<const C: usize, const A: usize, const B: usize>(&mut self) {
        match self.0 {
            Format::Bf16 => self.dot_bf16::<C, A, B>(),
            Format::F16 => self.dot_f16::<C, A, B>(),
        }
    }

    dot!(dot_u8_i8, "tdpbusd");
    dot!(dot_i8_u8, "tdpbsud");
}
