//! Attention of one query to two keys, the first of which it matches.
const std = @import("std");
const attention = @import("attention");

pub fn main() !void {
    const x = [_]f32{ 9, 0, 0, 9 };
    var out: [2]f32 = undefined;
    const keys = attention.In.headFirst(&x, 1, 1, 2, 2);
    try attention.run(std.heap.page_allocator, attention.In.headFirst(x[0..2], 1, 1, 1, 2), keys, keys, attention.Out.headFirst(&out, 1, 1, 1, 2), .{});
    if (!(@abs(out[0] - 9) < 1e-3 and @abs(out[1]) < 1e-3)) return error.WrongOutput;
}
