//! A decode loop of one layer and sequence: grouped heads, and a cache of 8-bit integers in pages,
//! in which each token of each head has a scale of its own.
const std = @import("std");
const attention = @import("attention");
const In = attention.In;
const Out = attention.Out;

const heads = 8;
const heads_kv = 2;
const dim = 64;
const page_size = 4;

/// What a layer of the model computes for a token.
const Projected = struct { q: [heads * dim]f32, k: [heads_kv * dim]f32, v: [heads_kv * dim]f32 };

/// Pages of a cache, [page][token][head][dim].
const Cache = struct {
    bytes: [pages * page_size * heads_kv * dim]u8,
    scales: [pages * page_size * heads_kv]f32,

    const pages = 16;

    fn tensor(self: *Cache) Out {
        return Out.tokenFirst(&.{}, pages, page_size, heads_kv, dim).stored(.int8, &self.bytes).scalePerToken(&self.scales);
    }
};

fn decodePaged(allocator: std.mem.Allocator, tokens: []const Projected, outs: [][heads * dim]f32) !void {
    const pool = try attention.Pool.init(0); // one thread per core
    defer pool.deinit();
    var workspace = attention.Workspace.init(allocator); // grows at the first token, then is kept
    defer workspace.deinit();
    const caches = try allocator.create([2]Cache);
    defer allocator.destroy(caches);
    const k, const v = .{ caches[0].tensor(), caches[1].tensor() };

    const table = [_]i32{ 7, 2, 9, 4 }; // the pages of this sequence
    var length = [_]i32{0}; // its keys in use
    const options: attention.Options = .{ .causal = true, .block_table = &table, .kv_lens = &length };
    for (tokens, outs) |*new, *out| {
        length[0] += 1; // counts the new token, for append and for run
        try attention.append(k, v, In.tokenFirst(&new.k, 1, 1, heads_kv, dim), In.tokenFirst(&new.v, 1, 1, heads_kv, dim), options);
        const step = try attention.Attention.init(In.tokenFirst(&new.q, 1, 1, heads, dim), k.in(), v.in(), Out.tokenFirst(out, 1, 1, heads, dim), options);
        try step.run(&workspace, pool.pool);
    }
}

test "each token attends to the one of half its position" {
    var tokens: [13]Projected = @splat(std.mem.zeroes(Projected));
    var outs: [tokens.len][heads * dim]f32 = undefined;
    for (&tokens, 0..) |*new, token| {
        // A key in a direction of its own, and queries in that of another.
        for (0..heads_kv) |h| new.k[h * dim + token], new.v[h * dim] = .{ 30, @floatFromInt(token) };
        for (0..heads) |h| new.q[h * dim + token / 2] = 30;
    }
    try decodePaged(std.testing.allocator, &tokens, &outs);
    for (outs, 0..) |out, token| for (0..heads) |h| {
        try std.testing.expectApproxEqAbs(@as(f32, @floatFromInt(token / 2)), out[h * dim], 1e-3);
    };
}
