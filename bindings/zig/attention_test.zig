//! What the binding refuses, and its options against the formula.
const std = @import("std");
const testing = std.testing;
const attention = @import("attention");

/// Largest error; values are around 1.
const bound = 1e-5;

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
    far = q;
    far.stride_dim = most;
    try testing.expectError(error.Stride, attention.run(a, q, far, q, out, .{}));
    far.stride_dim = 7;
    try testing.expectError(error.SliceTooShort, attention.run(a, q, q, far, out, .{}));
    far.stride_dim = 0;
    try testing.expectError(error.Stride, attention.run(a, q, q, far, out, .{}));
    try testing.expectError(error.Stride, attention.run(a, In.transposed(&x, 1, 2, 4, 3), q, q, out, .{}));
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
    try testing.expectError(error.Shape, attention.run(a, q, keys, keys, out, .{ .kv_starts = &.{} }));
    try testing.expectError(error.Refused, attention.run(a, q, keys, keys, out, .{ .kv_starts = &.{4} }));
    try testing.expectError(error.Shape, attention.run(a, q, keys, keys, out, .{ .q_positions = &.{ 0, 0 } }));
    try testing.expectError(error.Shape, attention.run(a, q, keys, keys, out, .{ .prefix_keys = most }));
    try testing.expectError(error.Shape, attention.run(a, q, keys, keys, out, .{ .spans = .{ .list = &.{}, .starts = &.{} } }));
    try testing.expectError(error.SliceTooShort, attention.run(a, q, keys, keys, out, .{ .spans = .{ .list = &.{}, .starts = &.{ 0, 1 } } }));
    try testing.expectError(error.Refused, attention.run(a, q, keys, keys, out, .{ .spans = .{ .list = &.{.{ 2, 1 }}, .starts = &.{ 0, 1 } } }));
    try testing.expectError(error.Refused, attention.run(a, q, keys, keys, out, .{ .spans = .{ .list = &.{.{ 0, 1 }}, .starts = &.{ 0, -1 } } }));
    try testing.expectError(error.SliceTooShort, attention.run(a, q, keys, keys, out, .{ .lse = x[0..5] }));
    try testing.expectError(error.Shape, attention.run(a, q, keys, keys, out, .{ .window = 0 }));
    for (y) |e| try testing.expectEqual(7, e);
    try attention.run(a, q, q, q, out, .{});
    for (y) |e| try testing.expectEqual(0, e);
    // Nothing to do.
    try attention.run(a, In.headFirst(&.{}, 0, 2, 3, 4), In.headFirst(&.{}, 0, 2, 3, 4), In.headFirst(&.{}, 0, 2, 3, 4), Out.headFirst(&.{}, 0, 2, 3, 4), .{});
}

test "transposed keys and values give the same bits" {
    const heads, const len_q, const len_kv, const dim = .{ 2, 3, 7, 5 };
    var q: [heads * len_q * dim]f32 = undefined;
    for (&q, 0..) |*e, i| e.* = @as(f32, @floatFromInt(i * 37 % 101)) / 50 - 1;
    var kv: [heads * len_kv * dim]f32 = undefined;
    var transposed: [kv.len]f32 = undefined;
    for (&kv, 0..) |*e, i| {
        e.* = @as(f32, @floatFromInt(i * 53 % 97)) / 50 - 1;
        transposed[(i / dim / len_kv * dim + i % dim) * len_kv + i / dim % len_kv] = e.*;
    }
    var outs: [2][q.len]f32 = undefined;
    const In = attention.In;
    const keys = [2]In{ In.headFirst(&kv, 1, heads, len_kv, dim), In.transposed(&transposed, 1, heads, dim, len_kv) };
    for (&outs, keys) |*out, k| {
        try attention.run(testing.allocator, In.headFirst(&q, 1, heads, len_q, dim), k, k, attention.Out.headFirst(out, 1, heads, len_q, dim), .{});
    }
    try testing.expectEqualSlices(f32, &outs[0], &outs[1]);
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
        const position = if (options.q_positions) |at| i + @as(usize, @intCast(at[b])) else i + len - len_q;
        const first: usize = if (options.kv_starts) |starts| @intCast(starts[b]) else 0;
        for (first..len) |j| {
            if (!inOneSpan(options, b, position, j)) {
                if (options.causal and j > position) continue;
                if (options.window) |n| if (j + n <= position and j >= first + options.prefix_keys) continue;
            }
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

fn inOneSpan(options: attention.Options, b: usize, position: usize, j: usize) bool {
    const spans = options.spans orelse return false;
    for (spans.list[@intCast(spans.starts[b])..@intCast(spans.starts[b + 1])]) |span| {
        const begin: usize, const end: usize = .{ @intCast(span[0]), @intCast(span[1]) };
        if (begin <= position and position < end and begin <= j and j < end) return true;
    }
    return false;
}

test "weights" {
    const batch, const heads, const len_q, const len_kv, const dim = .{ 2, 2, 3, 7, 8 };
    var random = std.Random.DefaultPrng.init(2);
    var x: [batch * heads * len_kv * dim]f32 = undefined;
    for (&x) |*e| e.* = random.random().floatNorm(f32);
    var out: [batch * heads * len_q * dim]f32 = undefined;
    var all: [batch * heads * len_q * len_kv]f32 = @splat(-1);
    var one: [batch * len_kv]f32 = @splat(-1);
    const q = attention.In.headFirst(&x, batch, heads, len_q, dim);
    const kv = attention.In.headFirst(&x, batch, heads, len_kv, dim);
    const to = attention.Out.headFirst(&out, batch, heads, len_q, dim);
    const few = attention.Out.headFirst(&one, batch, 1, 1, len_kv);
    const every = attention.Out.headFirst(&all, batch, heads, len_q, len_kv);
    try attention.run(testing.allocator, q, kv, kv, to, .{ .weights = every });
    try attention.run(testing.allocator, q, kv, kv, to, .{ .weights = few, .weight_heads = &.{1}, .weight_rows = &.{-1} });
    for (0..batch) |b| {
        var sum: f64 = 0;
        for (one[b * len_kv ..][0..len_kv], all[((b + 1) * heads * len_q - 1) * len_kv ..][0..len_kv]) |e, same| {
            try testing.expectEqual(same, e);
            sum += e;
        }
        try testing.expectApproxEqAbs(1, sum, bound);
    }
    try testing.expectError(error.Shape, attention.run(testing.allocator, q, kv, kv, to, .{ .weights = few }));
    try testing.expectError(error.Refused, attention.run(testing.allocator, q, kv, kv, to, .{ .weights = few, .weight_heads = &.{2}, .weight_rows = &.{0} }));
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
    const spans: attention.Spans = .{ .list = &.{ .{ 0, 3 }, .{ 3, 6 }, .{ 5, 7 } }, .starts = &.{ 0, 2, 3 } };
    try checkOptions(.{ .kv_starts = &.{ 2, 0 } });
    try checkOptions(.{ .causal = true, .q_positions = &.{ 2, 4 } });
    try checkOptions(.{ .causal = true, .window = 1, .kv_starts = &.{ 2, 0 }, .prefix_keys = 2 });
    try checkOptions(.{ .causal = true, .q_positions = &.{ 2, 4 }, .spans = spans });
    try checkOptions(.{ .spans = .{ .list = &.{}, .starts = &.{ 0, 0, 0 } } });
    try checkOptions(.{ .causal = true, .window = 2, .q_positions = &.{ 2, 4 }, .kv_starts = &.{ 2, 0 }, .prefix_keys = 1, .spans = spans });
}

fn half(bytes: []const u8) f64 {
    return @as(f16, @bitCast(std.mem.readInt(u16, bytes[0..2], .little)));
}

/// What blocks stand for, by the formats of ggml.
fn decode(of: attention.Type, bytes: []const u8, x: []f32) void {
    const table = [16]f64{ -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113 };
    const size = of.bytes();
    for (x, 0..) |*e, at| {
        const b = bytes[at / 32 * size ..][0..size];
        const i = at % 32;
        var code: u8 = b[size - 16 + i % 16];
        code = if (i < 16) code & 15 else code >> 4;
        if (of == .q5_0 or of == .q5_1) code |= (b[size - 20 + i / 8] >> @intCast(i % 8) & 1) << 4;
        const n: f64 = @floatFromInt(code);
        e.* = @floatCast(switch (of) {
            .float32, .float16, .bfloat16, .int8, .uint8, .bool8, .float8_e4m3, .float8_e5m2, .q15 => unreachable,
            .q8_0 => half(b) * @as(f64, @floatFromInt(@as(i8, @bitCast(b[2 + i])))),
            .q4_0 => half(b) * (n - 8),
            .q5_0 => half(b) * (n - 16),
            .iq4_nl => half(b) * table[code],
            .q4_1, .q5_1 => half(b) * n + half(b[2..]),
        });
    }
}

test "blocks, and pages that tokens are appended to" {
    const In, const Out = .{ attention.In, attention.Out };
    const heads, const len_q, const len_kv, const dim, const page = .{ 2, 3, 37, 64, 8 };
    const table = [_]i32{ 3, 0, 5, 1, 2 };
    const types = [_]attention.Type{ .q8_0, .q4_0, .q4_1, .q5_0, .q5_1, .iq4_nl };
    const steps = [_]f32{ 0.0045, 0.127, 0.069, 0.064, 0.034, 0.125 };
    var random = std.Random.DefaultPrng.init(3);
    var q: [heads * len_q * dim]f32 = undefined;
    var x: [heads * len_kv * dim]f32 = undefined;
    for ([_][]f32{ &q, &x }) |numbers| for (numbers) |*e| {
        e.* = random.random().floatNorm(f32);
    };
    const from = In.headFirst(&x, 1, heads, len_kv, dim);
    for (types, 0..) |of_k, n| {
        const kinds = [2]attention.Type{ of_k, types[(n + 1) % types.len] };
        var bytes: [2][x.len / 32 * 34]u8 = undefined;
        var in_pages: [2][6 * heads * page * dim / 32 * 34]u8 = undefined;
        var stored: [2][x.len]f32 = undefined;
        var dense: [2]In = undefined;
        var pages: [2]Out = undefined;
        for (kinds, 0..) |of, i| {
            try attention.quantize(from, Out.headFirst(&.{}, 1, heads, len_kv, dim).stored(of, &bytes[i]));
            dense[i] = from.stored(of, &bytes[i]);
            pages[i] = Out.headFirst(&.{}, 6, heads, page, dim).stored(of, &in_pages[i]);
            decode(of, &bytes[i], &stored[i]);
            var most: f32 = 0;
            for (x, stored[i], 0..) |e, is, at| {
                if (at % 32 == 0) most = std.mem.max(f32, x[at..][0..32]) - @min(0, std.mem.min(f32, x[at..][0..32]));
                try testing.expectApproxEqAbs(e, is, most * steps[(n + i) % types.len]);
            }
        }
        var first: usize = 0;
        while (first < len_kv) {
            const count = @min(1 + first % 5, len_kv - first);
            var rows = from;
            rows.data, rows.tokens = .{ x[first * dim ..], count };
            first += count;
            try attention.append(pages[0], pages[1], rows, rows, .{ .block_table = &table, .kv_lens = &.{@intCast(first)} });
        }
        var outs: [2][q.len]f32 = undefined;
        const query = In.headFirst(&q, 1, heads, len_q, dim);
        try attention.run(testing.allocator, query, dense[0], dense[1], Out.headFirst(&outs[0], 1, heads, len_q, dim), .{ .causal = true });
        const k = In.headFirst(&.{}, 6, heads, page, dim).stored(kinds[0], &in_pages[0]);
        const v = In.headFirst(&.{}, 6, heads, page, dim).stored(kinds[1], &in_pages[1]);
        try attention.run(testing.allocator, query, k, v, Out.headFirst(&outs[1], 1, heads, len_q, dim), .{ .causal = true, .block_table = &table, .kv_lens = &.{len_kv} });
        for (0..heads * len_q) |row| {
            const head, const i = .{ row / len_q, row % len_q };
            var want: [dim]f64 = @splat(0);
            var sum: f64 = 0;
            for (head * len_kv..head * len_kv + len_kv - len_q + i + 1) |j| {
                var score: f64 = 0;
                for (0..dim) |d| score += @as(f64, q[row * dim + d]) * stored[0][j * dim + d];
                const weight = @exp(score / @sqrt(@as(f64, dim)));
                sum += weight;
                for (0..dim) |d| want[d] += weight * stored[1][j * dim + d];
            }
            for (0..dim) |d| {
                // Queries become integers of 16 bits, or of 8.
                try testing.expectApproxEqAbs(want[d] / sum, outs[0][row * dim + d], 2e-2);
                try testing.expectApproxEqAbs(outs[0][row * dim + d], outs[1][row * dim + d], bound);
            }
        }
    }
    // What does not fit.
    var bytes: [10 * 34]u8 = @splat(9);
    const to = Out.headFirst(&.{}, 1, 2, 5, 32).stored(.q8_0, &bytes);
    const new = In.headFirst(x[0..320], 1, 2, 5, 32);
    try testing.expectError(error.SliceTooShort, attention.quantize(new, to.stored(.q8_0, bytes[1..])));
    try testing.expectError(error.Shape, attention.quantize(In.headFirst(&x, 1, 2, 5, 33), Out.headFirst(&.{}, 1, 2, 5, 33).stored(.q8_0, &bytes)));
    try testing.expectError(error.Shape, attention.quantize(In.headFirst(&x, 1, 2, 5, 64), to));
    var far = to;
    far.stride[2] = 33;
    try testing.expectError(error.Stride, attention.append(far, far, new, new, .{}));
    try testing.expectError(error.Overlap, attention.append(to, to, new, new, .{}));
    try testing.expectError(error.Refused, attention.append(to, to, new, new, .{ .kv_lens = &.{4} }));
    try testing.expectError(error.Refused, attention.append(to, to, new, new, .{ .block_table = &.{1} }));
    try testing.expectError(error.Shape, attention.append(to, to, new, new, .{ .block_table = &.{}, .kv_starts = &.{} }));
    for (bytes) |e| try testing.expectEqual(9, e);
}
