//! Attention of a real model on real text, from Zig, against the exact outputs that come with the data.
const std = @import("std");
const testing = std.testing;
const attention = @import("attention");
const data_folder = @import("options").data;

/// Largest error, as a share of the largest |v|.
const bound = 1e-5;

const Set = struct {
    name: []const u8,
    heads: usize,
    len_q: usize,
    len_kv: usize,
    dim: usize,
    scale: f32,
    causal: bool,
    q: []const f32, // [token][head][dim]
    k: []const f32,
    v: []const f32,
    exact: []const f64,
};

// README begin
fn modelAttention(allocator: std.mem.Allocator, s: Set, out: []f32) !void {
    const In = attention.In; // slices of [batch][token][head][dim], as the model computes them
    const q = In.tokenFirst(s.q, 1, s.len_q, s.heads, s.dim);
    const k = In.tokenFirst(s.k, 1, s.len_kv, s.heads, s.dim);
    const v = In.tokenFirst(s.v, 1, s.len_kv, s.heads, s.dim);
    const to = attention.Out.tokenFirst(out, 1, s.len_q, s.heads, s.dim);
    try attention.run(allocator, q, k, v, to, .{ .scale = s.scale, .causal = s.causal });
}
// README end

fn load(comptime T: type, arena: std.mem.Allocator, name: []const u8, suffix: []const u8, count: usize) ![]const T {
    const path = try std.fmt.allocPrint(arena, "{s}/{s}{s}", .{ data_folder, name, suffix });
    const x = try arena.alloc(T, count);
    const bytes = std.mem.sliceAsBytes(x);
    const read = try std.Io.Dir.cwd().readFile(testing.io, path, bytes);
    if (read.len != bytes.len) return error.FileTooShort;
    return x;
}

fn checkSet(s: Set) !void {
    const out = try testing.allocator.alloc(f32, s.q.len);
    defer testing.allocator.free(out);
    @memset(out, std.math.nan(f32));
    try modelAttention(testing.allocator, s, out);
    var largest: f64 = 0;
    for (s.v) |x| largest = @max(largest, @abs(x));
    for (out, s.exact) |x, want| {
        // So a NaN is wrong, too.
        if (!(@abs(x - want) <= bound * largest)) {
            std.debug.print("{s} causal={}: {} instead of {}\n", .{ s.name, s.causal, x, want });
            return error.WrongOutput;
        }
    }
}

test "real model" {
    var memory = std.heap.ArenaAllocator.init(testing.allocator);
    defer memory.deinit();
    const arena = memory.allocator();
    var buffer: [4096]u8 = undefined;
    const index = try std.Io.Dir.cwd().readFile(testing.io, data_folder ++ "/index.txt", &buffer);
    var lines = std.mem.tokenizeScalar(u8, index, '\n');
    var sets: usize = 0;
    while (lines.next()) |line| {
        if (line[0] == '#') continue;
        var words = std.mem.tokenizeScalar(u8, line, ' ');
        var s: Set = undefined;
        s.name = words.next().?;
        s.heads = try std.fmt.parseInt(usize, words.next().?, 10);
        s.len_q = try std.fmt.parseInt(usize, words.next().?, 10);
        s.len_kv = try std.fmt.parseInt(usize, words.next().?, 10);
        s.dim = try std.fmt.parseInt(usize, words.next().?, 10);
        s.scale = try std.fmt.parseFloat(f32, words.next().?);
        const causal_too = std.mem.eql(u8, words.next().?, "1");
        const token = s.heads * s.dim;
        s.q = try load(f32, arena, s.name, "_q.f32", s.len_q * token);
        s.k = try load(f32, arena, s.name, "_k.f32", s.len_kv * token);
        s.v = try load(f32, arena, s.name, "_v.f32", s.len_kv * token);
        for ([_]bool{ false, true }, [_][]const u8{ "_out.f64", "_out_causal.f64" }) |causal, suffix| {
            if (causal and !causal_too) continue;
            s.causal = causal;
            s.exact = try load(f64, arena, s.name, suffix, s.q.len);
            try checkSet(s);
            sets += 1;
        }
    }
    try testing.expect(sets >= 6);
}

test "refusals" {
    const In = attention.In;
    const Out = attention.Out;
    const most = std.math.maxInt(usize);
    var x: [24]f32 = @splat(0);
    var y: [24]f32 = @splat(7);
    const q = In.headFirst(&x, 1, 2, 3, 4);
    const out = Out.headFirst(&y, 1, 2, 3, 4);
    const a = testing.allocator;
    try testing.expectError(error.SliceTooShort, attention.run(a, In.headFirst(x[0..23], 1, 2, 3, 4), q, q, out, .{}));
    try testing.expectError(error.SliceTooShort, attention.run(a, q, In.headFirst(&x, 1, 2, 1000, 4), In.headFirst(&x, 1, 2, 1000, 4), out, .{}));
    var far = q;
    far.stride[2] = most;
    try testing.expectError(error.Stride, attention.run(a, q, far, q, out, .{}));
    try testing.expectError(error.Shape, attention.run(a, q, In.headFirst(&x, 1, 2, 2, 4), q, out, .{}));
    try testing.expectError(error.Shape, attention.run(a, q, In.headFirst(&x, 1, 2, most, 4), In.headFirst(&x, 1, 2, most, 4), out, .{}));
    try testing.expectError(error.Overlap, attention.run(a, q, q, q, Out.headFirst(&x, 1, 2, 3, 4), .{}));
    try testing.expectError(error.Refused, attention.run(a, q, q, q, out, .{ .scale = std.math.nan(f32) }));
    const keys = In.headFirst(&x, 1, 2, 3, 4);
    try testing.expectError(error.SliceTooShort, attention.run(a, q, keys, keys, out, .{ .mask = In.headFirst(x[0..8], 1, 1, 3, 3) }));
    try testing.expectError(error.Shape, attention.run(a, q, keys, keys, out, .{ .mask = In.headFirst(&x, 1, 1, 3, 4) }));
    try testing.expectError(error.Shape, attention.run(a, q, keys, keys, out, .{ .mask = In.headFirst(&x, 1, 1, 2, 3) }));
    try testing.expectError(error.Shape, attention.run(a, q, keys, keys, out, .{ .kv_lens = &.{ 3, 3 } }));
    try testing.expectError(error.Refused, attention.run(a, q, keys, keys, out, .{ .kv_lens = &.{4} }));
    try testing.expectError(error.Shape, attention.run(a, q, keys, keys, out, .{ .lse = x[0..5] }));
    try testing.expectError(error.Shape, attention.run(a, q, keys, keys, out, .{ .window = 0 }));
    for (y) |e| try testing.expectEqual(7, e);
    try attention.run(a, q, q, q, out, .{});
    for (y) |e| try testing.expectEqual(0, e);
}

/// Two query heads on one of the keys, of which the second sequence uses fewer, from the formula.
fn checkOptions(options: attention.Options) !void {
    const batch, const heads, const len_q, const len_kv, const dim = .{ 2, 2, 3, 7, 8 };
    var random = std.Random.DefaultPrng.init(1);
    var q: [batch * heads * len_q * dim]f32 = undefined;
    var k: [batch * len_kv * dim]f32 = undefined;
    var v: [batch * len_kv * dim]f32 = undefined;
    for ([_][]f32{ &q, &k, &v }) |x| for (x) |*e| {
        e.* = random.random().floatNorm(f32);
    };
    var out: [q.len]f32 = @splat(std.math.nan(f32));
    var lse: [batch * heads * len_q]f32 = @splat(std.math.nan(f32));
    const In = attention.In;
    var with_lse = options;
    with_lse.lse = &lse;
    const keys = In.headFirst(&k, batch, 1, len_kv, dim);
    const values = In.headFirst(&v, batch, 1, len_kv, dim);
    const to = attention.Out.headFirst(&out, batch, heads, len_q, dim);
    try attention.run(testing.allocator, In.headFirst(&q, batch, heads, len_q, dim), keys, values, to, with_lse);
    for (0..lse.len) |row| {
        const b, const head, const i = .{ row / (heads * len_q), row / len_q % heads, row % len_q };
        const len: usize = if (options.kv_lens) |lens| @intCast(lens[b]) else len_kv;
        var want: [dim]f64 = @splat(0);
        var sum: f64 = 0;
        for (0..len) |j| {
            const position = i + len - len_q;
            if (options.causal and j > position) continue;
            if (options.window) |n| if (j + n <= position) continue;
            var score: f64 = 0;
            for (0..dim) |d| score += @as(f64, q[row * dim + d]) * k[(b * len_kv + j) * dim + d];
            score /= @sqrt(@as(f64, dim));
            if (options.mask) |mask| score += mask.data[(head * len_q + i) * len_kv + j];
            sum += @exp(score);
            for (0..dim) |d| want[d] += @exp(score) * v[(b * len_kv + j) * dim + d];
        }
        for (0..dim) |d| try testing.expectApproxEqAbs(want[d] / sum, out[row * dim + d], bound);
        try testing.expectApproxEqAbs(@log(sum), lse[row], bound);
    }
}

test "options" {
    var added: [2 * 3 * 7]f32 = undefined;
    for (&added, 0..) |*e, i| e.* = @as(f32, @floatFromInt(i * 5 % 7)) / 3;
    added[4] = -std.math.inf(f32);
    const mask = attention.In.headFirst(&added, 1, 2, 3, 7);
    try checkOptions(.{});
    try checkOptions(.{ .causal = true });
    try checkOptions(.{ .window = 3 });
    try checkOptions(.{ .mask = mask });
    try checkOptions(.{ .kv_lens = &.{ 7, 5 } });
    try checkOptions(.{ .causal = true, .window = 4, .mask = mask, .kv_lens = &.{ 7, 5 } });
}
