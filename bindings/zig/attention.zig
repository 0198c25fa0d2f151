//! flash_attention on slices; `c` is the whole C interface, as Zig translates its header.
const std = @import("std");
pub const c = @import("flash_attention_h");

pub const Error = error{ Shape, Stride, Overlap, Memory, SliceTooShort, Refused };

/// [batch][head][token][dim] in a slice of f32 (T: f32 for the output, or const). Strides count ELEMENTS, from one
/// batch entry, head, token to the next, and from one element of a row to the next, which is 1 but for k and v.
pub fn Tensor(comptime Slice: type) type {
    return struct {
        data: Slice,
        batch: usize,
        heads: usize,
        tokens: usize,
        dim: usize,
        stride: [3]usize,
        stride_dim: usize = 1,

        const Self = @This();

        /// Dense [batch][token][head][dim], as the projections of a model make it.
        pub fn tokenFirst(data: Slice, batch: usize, tokens: usize, heads: usize, dim: usize) Self {
            return .{ .data = data, .batch = batch, .heads = heads, .tokens = tokens, .dim = dim, .stride = .{ tokens *| heads *| dim, dim, heads *| dim } };
        }

        /// Dense [batch][head][token][dim].
        pub fn headFirst(data: Slice, batch: usize, heads: usize, tokens: usize, dim: usize) Self {
            return .{ .data = data, .batch = batch, .heads = heads, .tokens = tokens, .dim = dim, .stride = .{ heads *| tokens *| dim, tokens *| dim, dim } };
        }

        /// Dense [batch][head][dim][token], for k and v: a transposed cache.
        pub fn transposed(data: Slice, batch: usize, heads: usize, dim: usize, tokens: usize) Self {
            return .{ .data = data, .batch = batch, .heads = heads, .tokens = tokens, .dim = dim, .stride = .{ heads *| dim *| tokens, dim *| tokens, 1 }, .stride_dim = tokens };
        }

        /// The same for C, if all elements lie within the slice.
        fn toC(self: Self) Error!c.fa_tensor {
            var t = std.mem.zeroes(c.fa_tensor);
            t.dtype = c.FA_DTYPE_F32;
            const extents = [3]usize{ self.batch, self.heads, self.tokens };
            var end = self.dim;
            if (self.dim > 1 and self.stride_dim != 1) {
                end = (self.dim - 1) *| self.stride_dim +| 1;
                // 0 would mean neighbours.
                if (self.stride_dim == 0 and self.tokens > 0) return error.Stride;
                t.stride_dim = std.math.cast(i32, self.stride_dim *| 4) orelse return error.Stride;
            }
            for (extents, self.stride, &t.stride) |n, stride, *bytes| {
                if (n == 0) return t;
                end +|= (n - 1) *| stride;
                if (n > 1) bytes.* = std.math.cast(i64, stride *| 4) orelse return error.Stride;
            }
            if (end > self.data.len) return error.SliceTooShort;
            t.data = @ptrCast(@constCast(self.data.ptr));
            return t;
        }
    };
}
pub const In = Tensor([]const f32);
pub const Out = Tensor([]f32);

pub const Options = struct {
    /// Multiplied to every dot product; 0 = 1/sqrt(dim), c.FA_SCALE_ZERO weighs all keys that a row sees alike.
    scale: f32 = 0,
    /// The last query is on the last key, and none sees a later one.
    causal: bool = false,
    /// How many keys up to its own position a query sees; null = all.
    window: ?usize = null,
    /// Added to the scores, -inf hides a key: [batch or 1][heads_q or 1][len_q or 1][len_kv].
    mask: ?In = null,
    /// How many keys of each sequence are in use, the first ones.
    kv_lens: ?[]const i32 = null,
    /// The first key of each sequence that any row sees (left padding, dropped keys).
    kv_starts: ?[]const i32 = null,
    /// The key position of query 0 of each sequence; null = the last query is on the last key.
    q_positions: ?[]const i32 = null,
    /// How many first keys are seen beside the window.
    prefix_keys: usize = 0,
    spans: ?Spans = null,
    /// Where to put the logarithm of each row's sum of exponentials: [batch][heads_q][len_q].
    lse: ?[]f32 = null,
    /// Where to put the probabilities of all keys: [batch][heads_q][len_q][len_kv], or of the heads and rows of lists.
    weights: ?Out = null,
    /// The query heads whose probabilities are wanted, ascending.
    weight_heads: ?[]const i32 = null,
    /// The query rows whose probabilities are wanted, ascending; negative ones count from the end.
    weight_rows: ?[]const i32 = null,
};

/// Keys that see each other both ways, whatever the window: the first, and the one behind the last, ascending and
/// disjoint in each sequence. Those of sequence b are list[starts[b]] to list[starts[b + 1] - 1].
pub const Spans = struct { list: []const [2]i32, starts: []const i32 };

/// Writes attention of q [batch][heads_q][len_q][dim], k [batch][heads_kv][len_kv][dim] and
/// v [batch][heads_kv][len_kv][dim_v] to out [batch][heads_q][len_q][dim_v], on the calling thread. Scratch memory is
/// the allocator's for the time of the call. On errors out is as it was.
pub fn run(allocator: std.mem.Allocator, q: In, k: In, v: In, out: Out, options: Options) Error!void {
    if (k.batch != q.batch or v.batch != q.batch or out.batch != q.batch or v.heads != k.heads or out.heads != q.heads or
        v.tokens != k.tokens or out.tokens != q.tokens or k.dim != q.dim or out.dim != v.dim) return error.Shape;
    var a: c.fa_attention = undefined;
    try check(c.fa_attention_init(&a, @sizeOf(c.fa_attention)));
    a.batch, a.heads_q, a.heads_kv = .{ try size(q.batch), try size(q.heads), try size(k.heads) };
    a.len_q, a.len_kv, a.dim_qk, a.dim_v = .{ try size(q.tokens), try size(k.tokens), try size(q.dim), try size(v.dim) };
    a.q, a.k, a.v, a.o = .{ try q.toC(), try k.toC(), try v.toC(), try out.toC() };
    a.scale = options.scale;
    if (options.causal) a.window_right = 0;
    if (options.window) |n| a.window_left = if (n == 0) return error.Shape else try size(n - 1);
    if (options.mask) |mask| {
        const given = [3]usize{ mask.batch, mask.heads, mask.tokens };
        for (given, [3]usize{ q.batch, q.heads, q.tokens }) |is, wanted| if (is != 1 and is != wanted) return error.Shape;
        if (mask.dim != k.tokens) return error.Shape;
        // An axis of one element has a stride of 0, which repeats it.
        a.mask = try mask.toC();
    }
    inline for (.{ "kv_lens", "kv_starts", "q_positions" }) |name| if (@field(options, name)) |list| {
        if (list.len != q.batch) return error.Shape;
        @field(a, name) = list.ptr;
    };
    a.prefix_keys = try size(options.prefix_keys);
    if (options.spans) |spans| {
        if (spans.starts.len == 0 or spans.starts.len - 1 != q.batch) return error.Shape;
        if (spans.starts[q.batch] > spans.list.len) return error.SliceTooShort;
        a.spans, a.span_starts = .{ @ptrCast(spans.list.ptr), spans.starts.ptr };
    }
    if (options.lse) |lse| {
        if (lse.len != q.batch *| q.heads *| q.tokens) return error.Shape;
        a.lse = lse.ptr;
        a.lse_stride = .{ try size(q.heads *| q.tokens), try size(q.tokens), 1 };
    }

    const weight_heads = if (options.weight_heads) |list| list.len else q.heads;
    const weight_rows = if (options.weight_rows) |list| list.len else q.tokens;
    a.num_weight_heads, a.num_weight_rows = .{ try size(weight_heads), try size(weight_rows) };
    if (options.weight_heads) |list| a.weight_heads = list.ptr;
    if (options.weight_rows) |list| a.weight_rows = list.ptr;
    if (options.weights) |weights| {
        if (weights.batch != q.batch or weights.heads != weight_heads or weights.tokens != weight_rows or
            weights.dim != k.tokens) return error.Shape;
        a.weights = try weights.toC();
    }

    var bytes: usize = 0;
    try check(c.fa_attention_workspace(&a, 1, &bytes));
    const ws = allocator.alloc(u8, bytes) catch return error.Memory;
    defer allocator.free(ws);
    try check(c.fa_attention_run(&a, ws.ptr, ws.len, null));
}

fn size(n: usize) Error!i64 {
    return std.math.cast(i64, n) orelse error.Shape;
}

/// fa_status_string has the words for a status of the C interface.
pub fn check(status: c.fa_status) Error!void {
    return switch (status) {
        c.FA_OK => {},
        c.FA_ERR_SHAPE, c.FA_ERR_ZERO_EXTENT => error.Shape,
        c.FA_ERR_STRIDE => error.Stride,
        c.FA_ERR_OVERLAP => error.Overlap,
        c.FA_ERR_MEMORY => error.Memory,
        else => error.Refused,
    };
}
