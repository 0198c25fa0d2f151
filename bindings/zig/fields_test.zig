//! Every field and function that attention_test.zig has not, against the formula.
const std = @import("std");
const testing = std.testing;
const attention = @import("attention");
const In = attention.In;
const Out = attention.Out;

/// Largest error; values are around 1.
const bound = 1e-5;

const heads_q = 4;
const heads_kv = 2;
const len_q = 5;
const len_kv = 12;
const dim = 32;

/// One sequence, [head][token][dim].
const Problem = struct {
    q: [heads_q * len_q * dim]f32,
    k: [heads_kv * len_kv * dim]f32,
    v: [heads_kv * len_kv * dim]f32,

    fn init() Problem {
        var p: Problem = undefined;
        var random = std.Random.DefaultPrng.init(1);
        for ([_][]f32{ &p.q, &p.k, &p.v }) |x| for (x) |*e| {
            e.* = random.random().floatNorm(f32);
        };
        return p;
    }

    fn tensors(p: *const Problem) [3]In {
        return .{ In.headFirst(&p.q, 1, heads_q, len_q, dim), In.headFirst(&p.k, 1, heads_kv, len_kv, dim), In.headFirst(&p.v, 1, heads_kv, len_kv, dim) };
    }

    /// rule, with public functions: score(h, i, j, s) f64 and sees(h, i, j) bool and sink(h) f64,
    /// where it has them.
    fn formula(p: *const Problem, rule: anytype, out: *[heads_q * len_q * dim]f64, lse: *[heads_q * len_q]f64) void {
        const Rule = @TypeOf(rule);
        for (0..heads_q * len_q) |row| {
            const h, const i = .{ row / len_q, row % len_q };
            var sum: f64 = if (@hasDecl(Rule, "sink")) @exp(Rule.sink(h)) else 0;
            const o = out[row * dim ..][0..dim];
            @memset(o, 0);
            for (0..len_kv) |j| {
                if (@hasDecl(Rule, "sees")) if (!Rule.sees(h, i, j)) continue;
                const at = (h * heads_kv / heads_q * len_kv + j) * dim;
                var s: f64 = 0;
                for (0..dim) |d| s += @as(f64, p.q[row * dim + d]) * p.k[at + d];
                s /= @sqrt(@as(f64, dim));
                if (@hasDecl(Rule, "score")) s = Rule.score(h, i, j, s);
                sum += @exp(s);
                for (o, p.v[at..][0..dim]) |*e, x| e.* += @exp(s) * x;
            }
            if (sum > 0) for (o) |*e| {
                e.* /= sum;
            };
            lse[row] = @log(sum);
        }
    }

    fn expect(p: *const Problem, options: attention.Options, rule: anytype) !void {
        var out: [heads_q * len_q * dim]f32 = @splat(std.math.nan(f32));
        var lse: [heads_q * len_q]f32 = @splat(std.math.nan(f32));
        var want: [out.len]f64 = undefined;
        var want_lse: [lse.len]f64 = undefined;
        const q, const k, const v = p.tensors();
        var with_lse = options;
        with_lse.lse = &lse;
        try attention.run(testing.allocator, q, k, v, Out.headFirst(&out, 1, heads_q, len_q, dim), with_lse);
        p.formula(rule, &want, &want_lse);
        try near(&out, &want, bound);
        try near(&lse, &want_lse, bound);
    }
};

fn near(got: []const f32, want: []const f64, most: f64) !void {
    for (got, want) |x, e| if (x != e) try testing.expectApproxEqAbs(e, x, most);
}

fn distance(i: usize, j: usize) f64 {
    return @abs(@as(f64, @floatFromInt(i + len_kv - len_q)) - @as(f64, @floatFromInt(j)));
}

const slopes = [heads_q]f32{ 0.5, 0.25, 0.125, 1 };
const sinks = [heads_q]f32{ 0, 1, -1, -std.math.inf(f32) };
const kept: attention.Kept = .{ .start = &.{ 0, 1, 3, 3, 5, 6 }, .blocks = &.{ 0, 1, 2, 0, 2, 1 }, .stride = .{ 0, 3 }, .heads = heads_kv, .q = 3, .kv = 4 };

fn inKept(h: usize, i: usize, j: usize) bool {
    const at = h * heads_kv / heads_q * 3 + i / 3;
    for (kept.blocks[@intCast(kept.start[at])..@intCast(kept.start[at + 1])]) |block| if (block == j / 4) return true;
    return false;
}

fn isVisible(n: usize) bool {
    return n * 7 % 5 != 0;
}

fn square(i: usize, j: usize) f32 {
    return -@as(f32, @floatFromInt((i * len_kv + j) * 3 % 11));
}

test "fields" {
    const p = Problem.init();
    try p.expect(.{}, struct {}{});
    try p.expect(.{ .softcap = 1.5 }, struct {
        pub fn score(_: usize, _: usize, _: usize, s: f64) f64 {
            return 1.5 * std.math.tanh(s / 1.5);
        }
    }{});
    try p.expect(.{ .alibi_slopes = &slopes }, struct {
        pub fn score(h: usize, i: usize, j: usize, s: f64) f64 {
            return s - slopes[h] * distance(i, j);
        }
    }{});
    var squares: [len_q * len_kv]f32 = undefined;
    var bools: [len_q * len_kv]u8 = undefined;
    for (&squares, &bools, 0..) |*e, *b, n| e.*, b.* = .{ square(n / len_kv, n % len_kv), @intFromBool(isVisible(n)) };
    try p.expect(.{ .alibi_slopes = &slopes, .mask_times_slope = true, .mask = In.headFirst(&squares, 1, 1, len_q, len_kv) }, struct {
        pub fn score(h: usize, i: usize, j: usize, s: f64) f64 {
            return s + slopes[h] * square(i, j);
        }
    }{});
    try p.expect(.{ .mask = In.headFirst(&.{}, 1, 1, len_q, len_kv).stored(.bool8, &bools) }, struct {
        pub fn sees(_: usize, i: usize, j: usize) bool {
            return isVisible(i * len_kv + j);
        }
    }{});
    try p.expect(.{ .sinks = &sinks }, struct {
        pub fn sink(h: usize) f64 {
            return sinks[h];
        }
    }{});
    var visible: [heads_q * 9]u8 = undefined;
    for (&visible, 0..) |*e, n| e.* = @intFromBool(isVisible(n));
    try p.expect(.{ .block_mask = .{ .visible = &visible, .stride = .{ 0, 9, 3 }, .q = 2, .kv = 5 } }, struct {
        pub fn sees(h: usize, i: usize, j: usize) bool {
            return isVisible(h * 9 + i / 2 * 3 + j / 5);
        }
    }{});
    try p.expect(.{ .kept = kept }, struct {
        pub const sees = inKept;
    }{});
    const columns: attention.Columns = .{ .start = &.{ 0, 2, 3 }, .keys = &.{ 1, 9, 6 }, .stride = .{ 0, 1 }, .heads = heads_kv };
    try p.expect(.{ .kept = kept, .columns = columns, .causal = true }, struct {
        pub fn sees(h: usize, i: usize, j: usize) bool {
            const listed = if (h < 2) j == 1 or j == 9 else j == 6;
            return j <= i + len_kv - len_q and (listed or inKept(h, i, j));
        }
    }{});
    try p.expect(.{ .causal = true, .look_ahead = 2 }, struct {
        pub fn sees(_: usize, i: usize, j: usize) bool {
            return j <= i + len_kv - len_q + 2;
        }
    }{});
    try p.expect(.{ .causal = true, .q_pos = -2 }, struct {
        pub fn sees(_: usize, i: usize, j: usize) bool {
            return j + 2 <= i;
        }
    }{});
    try p.expect(.{ .block_q = 2, .block_kv = 3, .precise = true, .len_kv = 7 }, struct {
        pub fn sees(_: usize, _: usize, j: usize) bool {
            return j < 7;
        }
    }{});
    try p.expect(.{ .fast = true }, struct {}{});
}

test "refusals of fields" {
    const p = Problem.init();
    const q, const k, const v = p.tensors();
    var x: [heads_q * len_q * dim]f32 = @splat(7);
    const out = Out.headFirst(&x, 1, heads_q, len_q, dim);
    var lse: [heads_q * len_q]f32 = undefined;
    const cases = [_]struct { attention.Error, attention.Options }{
        .{ error.Shape, .{ .len_kv = len_kv + 1 } },
        .{ error.Shape, .{ .look_ahead = 1 } },
        .{ error.Refused, .{ .softcap = -1 } },
        .{ error.Refused, .{ .precise = true, .fast = true } },
        .{ error.Shape, .{ .alibi_slopes = slopes[0..3] } },
        .{ error.Shape, .{ .sinks = slopes[0..3] } },
        .{ error.SliceTooShort, .{ .block_mask = .{ .visible = &.{1}, .q = 5, .kv = 11 } } },
        .{ error.Shape, .{ .block_mask = .{ .visible = &.{1}, .q = 0, .kv = 12 } } },
        .{ error.SliceTooShort, .{ .kept = .{ .start = &.{ 0, 0 }, .blocks = &.{}, .q = 4, .kv = 12 } } },
        .{ error.SliceTooShort, .{ .kept = .{ .start = &.{ 0, 1 }, .blocks = &.{}, .q = 5, .kv = 12 } } },
        .{ error.SliceTooShort, .{ .columns = .{ .start = &.{ 0, 1 }, .keys = &.{} } } },
        .{ error.Refused, .{ .columns = .{ .start = &.{ 0, 1 }, .keys = &.{len_kv} } } },
        .{ error.Refused, .{ .cu_len_q = &.{ 2, 1 } } },
        .{ error.SliceTooShort, .{ .cu_len_q = &.{ 0, len_q + 1 } } },
        .{ error.Shape, .{ .cu_len_kv = &.{ 0, 2, 4 } } },
        .{ error.SliceTooShort, .{ .block_table = &.{0}, .block_table_start = &.{ 0, 2 } } },
        .{ error.Shape, .{ .block_table = &.{0}, .table_head_stride = 2 } },
        .{ error.SliceTooShort, .{ .lse = &lse, .lse_stride = .{ 0, 1, heads_q + 1 } } },
        .{ error.Shape, .{ .mask = k } },
    };
    for (cases) |case| try testing.expectError(case[0], attention.run(testing.allocator, q, k, v, out, case[1]));
    var bytes: [heads_kv * len_kv * dim]u8 = @splat(0);
    const v8 = v.stored(.int8, &bytes);
    try testing.expectError(error.SliceTooShort, attention.run(testing.allocator, q, k, v.stored(.float16, &bytes), out, .{}));
    try testing.expectError(error.SliceTooShort, attention.run(testing.allocator, q, k, v8.scalePerToken(slopes[0..3]), out, .{}));
    // A list that leads out of its slice after it was described is refused by each call.
    var start = [2]i32{ 0, 1 };
    const a = try attention.Attention.init(q, k, v, out, .{ .kept = .{ .start = &start, .blocks = &.{0}, .q = len_q, .kv = len_kv } });
    start[1] = 2;
    var workspace = attention.Workspace.init(testing.allocator);
    defer workspace.deinit();
    try testing.expectError(error.SliceTooShort, a.run(&workspace, null));
    try testing.expectError(error.SliceTooShort, a.part(&.{}, 0, 1));
    try testing.expectError(error.SliceTooShort, a.finish(&.{}, 0, 1));
    try testing.expectError(error.SliceTooShort, a.plan(1));
    for (x) |e| try testing.expectEqual(7, e);
}

test "ragged lists that lead out of one slice after they were described" {
    const p = Problem.init();
    for (0..6) |short| {
        var memory: [4][p.q.len + p.k.len]f32 = @splat(@splat(0));
        var lse: [heads_q * len_q * 2]f32 = undefined;
        var cu = [2][2]i32{ .{ 0, len_q }, .{ 0, len_kv } };
        var slices: [4][]f32 = undefined;
        for (&slices, &memory, [_]usize{ p.q.len, p.k.len, p.v.len, p.q.len }, 0..) |*slice, *room, n, i| {
            slice.* = if (short == i) room[0..n] else room;
        }
        const q, const to = .{ In.tokenFirst(slices[0], 1, len_q, heads_q, dim), Out.tokenFirst(slices[3], 1, len_q, heads_q, dim) };
        const k, const v = .{ In.headFirst(slices[1], 1, heads_kv, len_kv, dim), In.headFirst(slices[2], 1, heads_kv, len_kv, dim) };
        const of_rows: []f32 = if (short == 4) lse[0 .. heads_q * len_q] else &lse;
        const a = try attention.Attention.init(q, k, v, to, .{ .cu_len_q = &cu[0], .cu_len_kv = &cu[1], .lse = of_rows, .lse_stride = .{ 0, 1, heads_q } });
        var workspace = attention.Workspace.init(testing.allocator);
        defer workspace.deinit();
        try a.run(&workspace, null);
        cu = .{ .{ 1, len_q + 1 }, .{ 1, len_kv + 1 } };
        const again = a.run(&workspace, null);
        // The library knows how long each slice is.
        if (short == 5) try again else try testing.expectError(error.Shape, again);
    }
}

test "types" {
    const p = Problem.init();
    const q, const k, const v = p.tensors();
    var want: [heads_q * len_q * dim]f64 = undefined;
    var lse: [heads_q * len_q]f64 = undefined;
    p.formula(struct {}{}, &want, &lse);
    const pages, const page = .{ 5, 4 };
    const table = [_]i32{ 3, 0, 4 };
    const types = [_]attention.Type{ .float16, .bfloat16, .int8, .uint8, .float8_e4m3, .float8_e5m2, .q15 };
    for (types, [_]f64{ 2e-3, 2e-2, 2e-2, 2e-2, 2e-1, 4e-1, 1e-3 }) |of, most| {
        var bytes: [2][heads_kv * len_kv * dim * 2]u8 = undefined;
        var in_pages: [2][pages * page * heads_kv * dim * 2]u8 = undefined;
        var scales: [2][pages * page * heads_kv * 2]f32 = undefined;
        var zeros: [2][pages * page * heads_kv * 2]f32 = undefined;
        var dense: [2]Out = undefined;
        var paged: [2]Out = undefined;
        for (0..2) |i| {
            dense[i] = Out.headFirst(&.{}, 1, heads_kv, len_kv, dim).stored(of, &bytes[i]);
            paged[i] = Out.tokenFirst(&.{}, pages, page, heads_kv, dim).stored(of, &in_pages[i]);
            if (of.bytes() == 1 or of == .q15) {
                dense[i] = dense[i].scalePerToken(scales[i][0 .. heads_kv * len_kv]);
                paged[i] = paged[i].scalePerToken(scales[i][pages * page * heads_kv ..]);
            }
            if (of == .uint8) {
                dense[i].quant.?.zero = zeros[i][0 .. heads_kv * len_kv];
                paged[i].quant.?.zero = zeros[i][pages * page * heads_kv ..];
            }
        }
        try attention.quantize(k, dense[0]);
        try attention.quantize(v, dense[1]);
        const lists: attention.Options = .{ .block_table = &table, .kv_lens = &.{len_kv} };
        try attention.append(paged[0], paged[1], k, null, lists);
        try attention.append(paged[0], paged[1], null, v, lists);
        var outs: [2][p.q.len]f32 = @splat(@splat(std.math.nan(f32)));
        try attention.run(testing.allocator, q, dense[0].in(), dense[1].in(), Out.headFirst(&outs[0], 1, heads_q, len_q, dim), .{});
        try attention.run(testing.allocator, q, paged[0].in(), paged[1].in(), Out.headFirst(&outs[1], 1, heads_q, len_q, dim), lists);
        try near(&outs[0], &want, most);
        try testing.expectEqualSlices(f32, &outs[0], &outs[1]);
    }
    // A mean subtracted from keys, and queries and outputs of 16 bits.
    var bytes: [p.k.len]u8 = undefined;
    var scales: [heads_kv]f32 = undefined;
    const k8 = Out.headFirst(&.{}, 1, heads_kv, len_kv, dim).stored(.int8, &bytes).quantised(.{ .scale = &scales, .stride = .{ 0, 1, 0, 0 } });
    var smooth: [heads_kv * dim]f32 = @splat(0);
    for (p.k, 0..) |e, i| smooth[i / (len_kv * dim) * dim + i % dim] += e / len_kv;
    try attention.quantizeI8(k, k8, &smooth);
    try testing.expectError(error.Shape, attention.quantizeI8(k, k8, smooth[1..]));
    var q16: [p.q.len]u16 = undefined;
    var out16: [p.q.len]f16 = undefined;
    const half = Out.headFirst(&.{}, 1, heads_q, len_q, dim).stored(.bfloat16, std.mem.sliceAsBytes(&q16));
    try attention.quantize(q, half);
    try attention.run(testing.allocator, half.in(), k8.in(), v, Out.headFirst(&.{}, 1, heads_q, len_q, dim).stored(.float16, std.mem.sliceAsBytes(&out16)), .{});
    for (out16, want) |x, e| try testing.expectApproxEqAbs(e, @as(f64, x), 3e-2);
    // An output of fractions is divided by its scale.
    var fractions: [p.q.len]i16 = undefined;
    var scale = [_]f32{8};
    const scaled = Out.headFirst(&.{}, 1, heads_q, len_q, dim).stored(.q15, std.mem.sliceAsBytes(&fractions)).quantised(.{ .scale = &scale });
    try attention.run(testing.allocator, q, k, v, scaled, .{});
    for (fractions, want) |x, e| try testing.expectApproxEqAbs(e, @as(f64, @floatFromInt(x)) / 32768 * 8, 2e-4);
}

/// Two sequences of 2 and 3 rows on 7 and 12 keys.
const Ragged = struct {
    const lens = [2]usize{ 7, 12 };
    const first = [2]usize{ 0, 2 };
    const count = [2]usize{ 2, 3 };

    fn Rule(comptime b: usize) type {
        return struct {
            pub fn sees(_: usize, i: usize, j: usize) bool {
                return i >= first[b] and j < lens[b] and j + first[b] + count[b] <= i + lens[b];
            }
        };
    }
};

test "ragged, and lists of pages" {
    const p = Problem.init();
    const q, _, _ = p.tensors();
    var x: [2][heads_kv * 19 * dim]f32 = undefined;
    for ([_][]const f32{ &p.k, &p.v }, &x) |from, *to| for (0..heads_kv) |h| {
        const head = from[h * len_kv * dim ..][0 .. len_kv * dim];
        @memcpy(to[h * 19 * dim ..][0 .. 7 * dim], head[0 .. 7 * dim]);
        @memcpy(to[(h * 19 + 7) * dim ..][0 .. 12 * dim], head);
    };
    const k, const v = .{ In.headFirst(&x[0], 1, heads_kv, 19, dim), In.headFirst(&x[1], 1, heads_kv, 19, dim) };
    const pages, const page = .{ 7, 3 };
    var cache: [2][pages * heads_kv * page * dim]f32 = undefined;
    const paged = [2]Out{ Out.headFirst(&cache[0], pages, heads_kv, page, dim), Out.headFirst(&cache[1], pages, heads_kv, page, dim) };
    var in_pages: attention.Options = .{ .cu_len_q = &.{ 0, 7, 19 }, .block_table = &.{ 1, 0, 6, 2, 3, 5, 4 }, .block_table_start = &.{ 0, 3, 7 }, .kv_lens = &.{ 7, 12 } };
    try attention.append(paged[0], paged[1], k, v, in_pages);
    in_pages.cu_len_q, in_pages.causal = .{ &.{ 0, 2, 5 }, true };
    const behind: attention.Options = .{ .causal = true, .cu_len_q = &.{ 0, 2, 5 }, .cu_len_kv = &.{ 0, 7, 19 } };
    for ([_]attention.Options{ behind, in_pages }, [_][2]In{ .{ k, v }, .{ paged[0].in(), paged[1].in() } }) |options, kv| {
        var out: [p.q.len]f32 = @splat(std.math.nan(f32));
        var lse: [heads_q * len_q]f32 = @splat(std.math.nan(f32));
        var with_lse = options;
        with_lse.lse = &lse;
        try attention.run(testing.allocator, q, kv[0], kv[1], Out.headFirst(&out, 1, heads_q, len_q, dim), with_lse);
        inline for (0..2) |b| {
            var want: [p.q.len]f64 = undefined;
            var want_lse: [lse.len]f64 = undefined;
            p.formula(Ragged.Rule(b){}, &want, &want_lse);
            for (0..heads_q) |h| {
                const at, const n = .{ h * len_q + Ragged.first[b], Ragged.count[b] };
                try near(out[at * dim ..][0 .. n * dim], want[at * dim ..][0 .. n * dim], bound);
                try near(lse[at..][0..n], want_lse[at..][0..n], bound);
            }
        }
    }
}

test "pages of heads" {
    const p = Problem.init();
    const q, var k, var v = p.tensors();
    for ([_]*In{ &k, &v }) |t| {
        t.batch, t.tokens, t.stride = .{ 3, 4, .{ 4 * dim, len_kv * dim, dim } };
    }
    var out: [p.q.len]f32 = undefined;
    var want: [p.q.len]f64 = undefined;
    var lse: [heads_q * len_q]f64 = undefined;
    try attention.run(testing.allocator, q, k, v, Out.headFirst(&out, 1, heads_q, len_q, dim), .{ .block_table = &.{ 2, 0, 0, 1 }, .table_head_stride = 2 });
    p.formula(struct {
        pub fn sees(h: usize, _: usize, j: usize) bool {
            return if (h < 2) j / 4 != 1 else j / 4 != 2;
        }
    }{}, &want, &lse);
    try near(&out, &want, bound);
}

/// Threads of the caller, which here are one: it calls the tasks backward.
const Backward = struct {
    calls: usize = 0,

    pub fn width(_: *Backward) usize {
        return 3;
    }
    pub fn parallelFor(self: *Backward, n: usize, task: attention.Task) void {
        self.calls += 1;
        for (0..n) |i| task.call(n - 1 - i);
    }
};

test "threads, parts and plans" {
    const heads, const len = .{ 8, 100 };
    var x: [heads * len * dim]f32 = undefined;
    var random = std.Random.DefaultPrng.init(4);
    for (&x) |*e| e.* = random.random().floatNorm(f32);
    var outs: [4][x.len]f32 = @splat(@splat(std.math.nan(f32)));
    const t = In.headFirst(&x, 1, heads, len, dim);
    var problems: [4]attention.Attention = undefined;
    for (&problems, &outs) |*a, *out| a.* = try .init(t, t, t, Out.headFirst(out, 1, heads, len, dim), .{ .causal = true });
    var workspace = attention.Workspace.init(testing.allocator);
    defer workspace.deinit();
    try problems[0].run(&workspace, null);
    const pool = try attention.Pool.init(2);
    defer pool.deinit();
    try problems[1].run(&workspace, pool.pool);
    var backward: Backward = .{};
    const own = attention.poolOf(&backward);
    try problems[2].run(&workspace, &own);
    try testing.expect(backward.calls > 0);
    var why: [400]u8 = undefined;
    try testing.expect(try problems[2].explainRun(&workspace, &own, &why) > 0);
    try testing.expect(try problems[2].explain(&why) > 0);
    const none = attention.Workspace.init(testing.allocator);
    try testing.expectError(error.Refused, problems[2].explainRun(&none, &own, &why));
    try testing.expect(std.mem.findScalar(u8, &why, 0).? > 0);

    const parts = 3;
    const bytes = try problems[3].workspaceBytes(parts);
    try testing.expect(try problems[3].workspaceBytesMax(parts) >= bytes);
    try workspace.reserve(bytes);
    for (0..parts) |i| try problems[3].part(workspace.memory, @intCast(i), parts);
    for (0..parts) |i| try problems[3].finish(workspace.memory, @intCast(i), parts);
    try testing.expectError(error.Refused, problems[3].part(workspace.memory, parts, parts));
    for (outs[1..]) |out| try testing.expectEqualSlices(f32, &outs[0], &out);
    const plan = try problems[3].plan(parts);
    try testing.expect(plan.threads >= 2 and plan.threads <= parts and plan.path == attention.c.FA_PATH_PREFILL);
    try testing.expectEqual(bytes, plan.workspace_bytes);
    try testing.expectError(error.Refused, problems[3].plan(0));
    try testing.expectError(error.Refused, attention.Pool.init(-1));
}

test "merge" {
    const p = Problem.init();
    const q, const k, const v = p.tensors();
    var outs: [2][p.q.len]f32 = undefined;
    var lses: [2][heads_q * len_q]f32 = undefined;
    for (&outs, &lses, 0..) |*out, *lse, i| {
        var half = [2]In{ k, v };
        for (&half) |*t| t.data, t.tokens = .{ t.data[i * 6 * dim ..], 6 };
        // Rows of lse in the order of those of the output, which is [token][head][dim].
        try attention.run(testing.allocator, q, half[0], half[1], Out.tokenFirst(out, 1, len_q, heads_q, dim), .{ .lse = lse, .lse_stride = .{ 0, 1, heads_q } });
    }
    try attention.merge(&outs[0], &lses[0], &outs[1], &lses[1], dim);
    try testing.expectError(error.Shape, attention.merge(&outs[0], &lses[0], &outs[1], lses[1][1..], dim));
    var want: [p.q.len]f64 = undefined;
    var want_lse: [heads_q * len_q]f64 = undefined;
    p.formula(struct {}{}, &want, &want_lse);
    for (0..heads_q * len_q) |row| {
        const other = row % heads_q * len_q + row / heads_q;
        try near(outs[0][row * dim ..][0..dim], want[other * dim ..][0..dim], bound);
        try near(lses[0][row..][0..1], want_lse[other..][0..1], bound);
    }
}

test "partitions" {
    const len = 40;
    var parts = try attention.Partitions.init(&.{ 0, 16, 24 }, &.{ 0, 16, 24 }, len);
    parts.config.kept_q, parts.config.kept_kv, parts.config.window = .{ 8, 8, 2 };
    const found = try parts.measure(&.{});
    const memory = try testing.allocator.alloc(i32, @intCast(found.room));
    defer testing.allocator.free(memory);
    const lists = try parts.lists(memory, &.{});
    try testing.expectEqual(found.pairs, lists.pairs);
    const in_blocks, const columns = .{ parts.kept(lists), attention.Partitions.columns(lists) };
    try testing.expect(attention.Partitions.columns(std.mem.zeroes(attention.c.fa_sparse_lists)) == null);

    // Values of 1 where a row sees the key: the sum of all weights is the number of rows.
    var x: [len * dim]f32 = @splat(0);
    var eye: [len * len]f32 = @splat(0);
    for (0..len) |i| eye[i * len + i] = 1;
    var out: [len * len]f32 = undefined;
    const zeros = In.headFirst(&x, 1, 1, len, dim);
    try attention.run(testing.allocator, zeros, zeros, In.headFirst(&eye, 1, 1, len, len), Out.headFirst(&out, 1, 1, len, len), .{ .causal = true, .kept = in_blocks, .columns = columns });
    var pairs: i64 = 0;
    for (0..len) |i| for (0..len) |j| {
        var sees = j == 0 or j == 16 or j == 24;
        for (in_blocks.blocks[@intCast(in_blocks.start[i / 8])..@intCast(in_blocks.start[i / 8 + 1])]) |block| {
            sees = sees or block == j / 8;
        }
        sees = sees and j <= i;
        pairs += @intFromBool(sees);
        try testing.expectEqual(sees, out[i * len + j] > 0);
    };
    try testing.expectEqual(pairs, lists.pairs);
    var why: [200]u8 = undefined;
    parts.config.window = -1;
    try testing.expectError(error.Refused, parts.measure(&why));
    try testing.expect(std.mem.findScalar(u8, &why, 0).? > 0);
}

test "fixed point" {
    const keys, const width = .{ 9, 16 };
    var x: [2 * 3 * width]i16 = undefined;
    var kv: [keys * width]i16 = undefined;
    for ([_][]i16{ &x, &kv }) |list| for (list, 0..) |*e, i| {
        e.* = @bitCast(@as(u16, @truncate(i *% 7919)));
    };
    var out: [x.len]i16 = undefined;
    const f: attention.Fixed = .{ .heads = 2, .heads_kv = 1, .len_q = 3, .len_kv = keys, .dim = width, .causal = true };
    try attention.runQ15(&x, &kv, &kv, &out, f);
    try testing.expectError(error.SliceTooShort, attention.runQ15(&x, kv[1..], &kv, &out, f));
    for (0..2 * 3) |row| {
        var sum: f64 = 0;
        var want: [width]f64 = @splat(0);
        for (0..row % 3 + keys - 2) |j| {
            var s: f64 = 0;
            for (0..width) |d| s += @as(f64, @floatFromInt(x[row * width + d])) * @as(f64, @floatFromInt(kv[j * width + d])) / (32768.0 * 32768.0);
            const w = @exp(s / 4);
            sum += w;
            for (0..width) |d| want[d] += w * @as(f64, @floatFromInt(kv[j * width + d])) / 32768;
        }
        for (0..width) |d| try testing.expectApproxEqAbs(want[d] / sum, @as(f64, @floatFromInt(out[row * width + d])) / 32768, 1e-3);
    }
}

test "the machine" {
    try testing.expectEqual(@as(u32, attention.c.FA_ABI_VERSION), attention.abiVersion());
    try testing.expect(attention.version().order(.{ .major = 0, .minor = 2, .patch = 0 }) != .lt);
    try testing.expectError(error.Refused, attention.limitIsa("no such"));
    try attention.limitIsa("scalar");
    try testing.expectEqualStrings("scalar", attention.isa());
    try attention.limitIsa(null);
    var why: [400]u8 = undefined;
    attention.enableAmx(&why) catch |err| {
        try testing.expectEqual(error.Refused, err);
        try testing.expect(std.mem.findScalar(u8, &why, 0).? > 0);
    };
    try testing.expect(attention.words(attention.c.FA_ERR_PAGE).len > 0);
}
