//! Attention of a real model on real text, from Zig, against the exact outputs that come with the
//! data.
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
