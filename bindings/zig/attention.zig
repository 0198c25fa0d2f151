//! flash_attention on slices; `c` is the whole C interface, as Zig translates its header.
const std = @import("std");
pub const c = @import("flash_attention_h");

pub const Error = error{ Shape, Stride, Overlap, Memory, SliceTooShort, Refused };

/// How numbers are stored: as f32, or in blocks of 32 as ggml has them.
pub const Type = enum(i32) {
    float32 = c.FA_DTYPE_F32,
    q8_0 = c.FA_DTYPE_Q8_0,
    q4_0 = c.FA_DTYPE_Q4_0,
    q4_1 = c.FA_DTYPE_Q4_1,
    q5_0 = c.FA_DTYPE_Q5_0,
    q5_1 = c.FA_DTYPE_Q5_1,
    iq4_nl = c.FA_DTYPE_IQ4_NL,

    /// Elements of a block.
    pub fn elements(self: Type) usize {
        return if (self == .float32) 1 else 32;
    }

    /// Bytes of a block.
    pub fn bytes(self: Type) usize {
        return switch (self) {
            .float32 => 4,
            .q8_0 => 34,
            .q4_0, .iq4_nl => 18,
            .q4_1 => 20,
            .q5_0 => 22,
            .q5_1 => 24,
        };
    }
};

/// [batch][head][token][dim] in a slice of f32 (T: f32 for what is written, or const), or in
/// blocks. Strides count ELEMENTS, from one batch entry, head, token to the next, and from one
/// element of a row to the next, which is 1 but for k and v.
pub fn Tensor(comptime Slice: type) type {
    return struct {
        data: Slice,
        batch: usize,
        heads: usize,
        tokens: usize,
        dim: usize,
        stride: [3]usize,
        stride_dim: usize = 1,
        /// Of blocks dim and strides are multiples of 32.
        type: Type = .float32,
        /// In place of data, if the type is not float32.
        blocks: Bytes = &.{},

        const Self = @This();
        const Bytes = if (Slice == []f32) []u8 else []const u8;

        /// This tensor, but of another type: headFirst(&.{}, 1, 2, 100, 64).inBlocks(.q8_0, bytes).
        pub fn inBlocks(self: Self, of: Type, blocks: Bytes) Self {
            var t = self;
            t.type, t.blocks, t.data = .{ of, blocks, &.{} };
            return t;
        }

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
            t.dtype = @backingInt(self.type);
            const block, const bytes_of_block = .{ self.type.elements(), self.type.bytes() };
            if (self.dim % block != 0) return error.Shape;
            const extents = [3]usize{ self.batch, self.heads, self.tokens };
            var end = self.dim;
            if (self.dim > 1 and self.stride_dim != 1) {
                end = (self.dim - 1) *| self.stride_dim +| 1;
                // 0 would mean neighbours.
                if (self.stride_dim == 0 and self.tokens > 0 or block != 1) return error.Stride;
                t.stride_dim = std.math.cast(i32, self.stride_dim *| 4) orelse return error.Stride;
            }
            for (extents, self.stride, &t.stride) |n, stride, *bytes| {
                if (n == 0) return t;
                end +|= (n - 1) *| stride;
                if (n <= 1) continue;
                if (stride % block != 0) return error.Stride;
                bytes.* = std.math.cast(i64, stride / block *| bytes_of_block) orelse return error.Stride;
            }
            const room = if (self.type == .float32) self.data.len else self.blocks.len / bytes_of_block * block;
            if (end > room) return error.SliceTooShort;
            t.data = if (self.type == .float32) @ptrCast(@constCast(self.data.ptr)) else @ptrCast(@constCast(self.blocks.ptr));
            return t;
        }
    };
}
pub const In = Tensor([]const f32);
pub const Out = Tensor([]f32);

pub const Options = struct {
    /// Multiplied to every dot product; 0 = 1/sqrt(dim), c.FA_SCALE_ZERO weighs all keys that a row
    /// sees alike.
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
    /// K and V are pages, [page][heads_kv][tokens of a page][dim]: [sequence][number] those of each
    /// sequence, in the order of its keys. Of pages without keys in use anything may stand there.
    block_table: ?[]const i32 = null,
    /// How many first keys are seen beside the window.
    prefix_keys: usize = 0,
    spans: ?Spans = null,
    /// Where to put the logarithm of each row's sum of exponentials: [batch][heads_q][len_q].
    lse: ?[]f32 = null,
    /// Where to put the probabilities of all keys: [batch][heads_q][len_q][len_kv], or of the heads
    /// and rows of lists.
    weights: ?Out = null,
    /// The query heads whose probabilities are wanted, ascending.
    weight_heads: ?[]const i32 = null,
    /// The query rows whose probabilities are wanted, ascending; negative ones count from the end.
    weight_rows: ?[]const i32 = null,
};

/// Keys that see each other both ways, whatever the window: the first, and the one behind the last,
/// ascending and disjoint in each sequence. Those of sequence b are list[starts[b]] to
/// list[starts[b + 1] - 1].
pub const Spans = struct { list: []const [2]i32, starts: []const i32 };

/// Writes attention of q [batch][heads_q][len_q][dim], k [batch][heads_kv][len_kv][dim] and v
/// [batch][heads_kv][len_kv][dim_v] to out [batch][heads_q][len_q][dim_v], on the calling thread.
/// Scratch memory is the allocator's for the time of the call. On errors out is as it was.
pub fn run(allocator: std.mem.Allocator, q: In, k: In, v: In, out: Out, options: Options) Error!void {
    if (out.batch != q.batch or out.heads != q.heads or out.tokens != q.tokens or k.dim != q.dim or out.dim != v.dim) return error.Shape;
    var a: c.fa_attention = undefined;
    const keys = try describe(&a, q, k, v, options);
    a.heads_q = try size(q.heads);
    a.q, a.o = .{ try q.toC(), try out.toC() };
    a.scale = options.scale;
    if (options.causal) a.window_right = 0;
    if (options.window) |n| a.window_left = if (n == 0) return error.Shape else try size(n - 1);
    if (options.mask) |mask| {
        const given = [3]usize{ mask.batch, mask.heads, mask.tokens };
        for (given, [3]usize{ q.batch, q.heads, q.tokens }) |is, wanted| if (is != 1 and is != wanted) return error.Shape;
        if (mask.dim != keys) return error.Shape;
        // An axis of one element has a stride of 0, which repeats it.
        a.mask = try mask.toC();
    }
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
            weights.dim != keys) return error.Shape;
        a.weights = try weights.toC();
    }

    var bytes: usize = 0;
    try check(c.fa_attention_workspace(&a, 1, &bytes));
    const ws = allocator.alloc(u8, bytes) catch return error.Memory;
    defer allocator.free(ws);
    try check(c.fa_attention_run(&a, ws.ptr, ws.len, null));
}

/// Writes new keys and values [batch][heads_kv][new][dim], of f32, into the cache k and v
/// [batch][heads_kv][len_kv][dim], in the types that it has, where the queries of the run() that
/// follows stand: by default they are the last of kv_lens, which count them. Of options it looks at
/// kv_lens, kv_starts, q_positions and block_table; a page that is written must be in one row,
/// once. On errors the cache is as it was. Several threads may write different sequences or heads
/// of one cache.
pub fn append(k: Out, v: Out, new_k: In, new_v: In, options: Options) Error!void {
    if (new_v.batch != new_k.batch or new_v.heads != new_k.heads or new_v.tokens != new_k.tokens or k.heads != new_k.heads or
        k.dim != new_k.dim or v.dim != new_v.dim) return error.Shape;
    var a: c.fa_attention = undefined;
    _ = try describe(&a, new_k, k, v, options);
    const of_k, const of_v = .{ try new_k.toC(), try new_v.toC() };
    try check(c.fa_cache_append(&a, &of_k, &of_v, null, 0));
}

/// Writes src, of f32, in the type of dst, whose sizes are the same. All machines write the same
/// bytes, those of ggml's reference functions. On errors dst is as it was.
pub fn quantize(src: In, dst: Out) Error!void {
    if (src.batch != dst.batch or src.heads != dst.heads or src.tokens != dst.tokens or src.dim != dst.dim) return error.Shape;
    const from, const to = .{ try src.toC(), try dst.toC() };
    const batch, const heads, const tokens = .{ try size(src.batch), try size(src.heads), try size(src.tokens) };
    try check(c.fa_quantize(&from, batch, heads, tokens, try size(src.dim), &to));
}

/// Sizes, keys and values, and their lists, for rows that are queries or new tokens; how many keys
/// a sequence has.
fn describe(a: *c.fa_attention, rows: In, k: anytype, v: anytype, options: Options) Error!usize {
    try check(c.fa_attention_init(a, @sizeOf(c.fa_attention)));
    if (v.batch != k.batch or v.heads != k.heads or v.tokens != k.tokens) return error.Shape;
    var keys = k.tokens;
    if (options.block_table) |table| {
        if (if (rows.batch == 0) table.len != 0 else table.len % rows.batch != 0) return error.Shape;
        const columns = if (rows.batch == 0) 0 else table.len / rows.batch;
        keys *|= columns;
        a.block_table, a.table_stride = .{ table.ptr, try size(columns) };
        a.num_pages, a.page_size = .{ try size(k.batch), try size(k.tokens) };
    } else if (k.batch != rows.batch) return error.Shape;
    a.batch, a.heads_kv, a.len_q, a.len_kv = .{ try size(rows.batch), try size(k.heads), try size(rows.tokens), try size(keys) };
    a.dim_qk, a.dim_v = .{ try size(k.dim), try size(v.dim) };
    a.k, a.v = .{ try k.toC(), try v.toC() };
    inline for (.{ "kv_lens", "kv_starts", "q_positions" }) |name| if (@field(options, name)) |list| {
        if (list.len != rows.batch) return error.Shape;
        @field(a, name) = list.ptr;
    };
    return keys;
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
