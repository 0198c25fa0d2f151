//! A fuzzer's bytes as the fields of C structures.

/// Reads one field after another; zeros where there are no bytes left, so that every input is one.
pub struct Input<'a>(pub &'a [u8]);

impl Input<'_> {
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let n = self.0.len().min(N);
        let (first, rest) = self.0.split_at(n);
        self.0 = rest;
        let mut bytes = [0; N];
        bytes[..n].copy_from_slice(first);
        bytes
    }

    pub fn u8(&mut self) -> u8 {
        self.bytes::<1>()[0]
    }
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }
    pub fn i32(&mut self) -> i32 {
        i32::from_le_bytes(self.bytes())
    }
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }
    pub fn i64(&mut self) -> i64 {
        i64::from_le_bytes(self.bytes())
    }
    pub fn f32(&mut self) -> f32 {
        f32::from_bits(self.u32())
    }
}

/// A number that makes a difference for the same bytes, and that mutations far apart in them do not
/// keep.
pub fn hash(bytes: &[u8]) -> u64 {
    // FNV-1a.
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// Writes a value that such fields often have, or a neighbour of the one that it has, over one of
/// the fields (of 8 bytes) in `data`: what random bytes hardly ever give.
pub fn mutate_field(data: &mut [u8], seed: u32) {
    let fields = data.len() / 8;
    if fields == 0 {
        return;
    }
    let mut random = crate::common::Random(u64::from(seed));
    let field = &mut data[8 * random.below(fields)..][..8];
    let mut value = [0; 8];
    value.copy_from_slice(field);
    let value = i64::from_le_bytes(value);
    let usual =
        [0, 1, 2, 3, 4, 5, 7, 8, 16, 17, 32, 34, 64, 100, -1, -2, 1 << 31, (1 << 31) - 1, 1 << 32, 1 << 62];
    let next = match random.below(12) {
        0..4 => usual[random.below(usual.len())],
        4 => value.wrapping_add(1),
        5 => value.wrapping_sub(1),
        6 => value.wrapping_mul(2),
        7 => value / 2,
        8 => [i64::MAX, i64::MIN, i64::MAX - 1, i64::MAX / 2, i64::MAX / 4, i64::MAX / 8][random.below(6)],
        9 => value.wrapping_add(usual[random.below(usual.len())]),
        10 => (value & !0xffff_ffff) | usual[random.below(14)],
        _ => (value & 0xffff_ffff) | (usual[random.below(14)] << 32),
    };
    field.copy_from_slice(&next.to_le_bytes());
}

/// A mutation of an input of `size` bytes, of which as many as `fields` fields are of 8 bytes:
/// every other time that of [`mutate_field`], else the fuzzer's `own`. Returns the new size.
pub fn mutate(
    data: &mut [u8],
    [size, max_size]: [usize; 2],
    seed: u32,
    fields: usize,
    own: fn(&mut [u8], usize, usize) -> usize,
) -> usize {
    if seed.is_multiple_of(2) {
        mutate_field(&mut data[..size.min(fields * 8)], seed / 2);
        return size;
    }
    own(data, size, max_size)
}
