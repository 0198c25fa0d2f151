//! flash_attention on slices. `run` computes one problem; `Attention` describes one that is run
//! many times: lists and tensors are read anew by each call, so a decode loop changes what is in
//! its slices. `quantize` and `append` write caches, `merge` joins results over different keys,
//! `Partitions` makes lists of blocks.
//!
//! The header flash_attention.h is the manual: docs/bindings.md says which of its fields and
//! functions is which name here. `c` is the whole C interface, as Zig translates the header.
const std = @import("std");
pub const c = @import("flash_attention_h");

pub const Error = error{ Shape, Stride, Overlap, Memory, SliceTooShort, Refused };

/// How elements are stored: a value of fa_dtype, whose comments define the formats.
pub const Type = enum(i32) {
    float32 = c.FA_DTYPE_F32,
    float16 = c.FA_DTYPE_F16,
    bfloat16 = c.FA_DTYPE_BF16,
    int8 = c.FA_DTYPE_I8,
    q8_0 = c.FA_DTYPE_Q8_0,
    /// Masks only: not 0 = visible.
    bool8 = c.FA_DTYPE_BOOL8,
    q4_0 = c.FA_DTYPE_Q4_0,
    q4_1 = c.FA_DTYPE_Q4_1,
    q5_0 = c.FA_DTYPE_Q5_0,
    q5_1 = c.FA_DTYPE_Q5_1,
    iq4_nl = c.FA_DTYPE_IQ4_NL,
    float8_e4m3 = c.FA_DTYPE_F8_E4M3,
    float8_e5m2 = c.FA_DTYPE_F8_E5M2,
    uint8 = c.FA_DTYPE_U8,
    /// Signed 16-bit integers divided by 32768.
    q15 = c.FA_DTYPE_Q15,

    /// Elements of a block.
    pub fn elements(self: Type) usize {
        return switch (self) {
            .q8_0, .q4_0, .q4_1, .q5_0, .q5_1, .iq4_nl => 32,
            else => 1,
        };
    }

    /// Bytes of a block.
    pub fn bytes(self: Type) usize {
        return switch (self) {
            .float32 => 4,
            .float16, .bfloat16, .q15 => 2,
            .int8, .uint8, .bool8, .float8_e4m3, .float8_e5m2 => 1,
            .q8_0 => 34,
            .q4_0, .iq4_nl => 18,
            .q4_1 => 20,
            .q5_0 => 22,
            .q5_1 => 24,
        };
    }
};

/// [batch][head][token][dim] in a slice of f32 (Slice: []f32 for what is written, or []const f32),
/// or in bytes of another type. Strides count ELEMENTS, from one batch entry, head, token to the
/// next, and from one element of a row to the next, which is 1 but for k and v. Calls refuse a
/// tensor that is larger than its slice.
pub fn Tensor(comptime Slice: type) type {
    return struct {
        data: Slice,
        batch: usize,
        heads: usize,
        tokens: usize,
        dim: usize,
        stride: [3]usize,
        stride_dim: usize = 1,
        /// Of types in blocks dim and strides are multiples of 32.
        type: Type = .float32,
        /// In place of data, if the type is not float32.
        bytes: Bytes = &.{},
        /// What elements of 8 bits, and of q15, stand for; null = they are the numbers.
        quant: ?Quant = null,

        const Self = @This();
        const Bytes = if (Slice == []f32) []u8 else []const u8;

        /// x = (stored - zero) * scale. The scale of element d of token t of head h of batch entry
        /// (or page) b is number b * stride[0] + h * stride[1] + t / group_tokens * stride[2] + d /
        /// group_dims * stride[3]. `quantize` and `append` write scales that they find.
        pub const Quant = struct {
            scale: Slice = &.{},
            /// Without numbers: 0. Only 8-bit integers have zeros.
            zero: Slice = &.{},
            stride: [4]usize = .{ 0, 0, 0, 0 },
            group_tokens: u31 = 1,
            group_dims: u31 = 1,
        };

        /// This tensor, but of another type: headFirst(&.{}, 1, 2, 100, 64).stored(.q8_0, bytes).
        pub fn stored(self: Self, of: Type, memory: Bytes) Self {
            var t = self;
            t.type, t.bytes, t.data = .{ of, memory, &.{} };
            return t;
        }

        /// This tensor, but with scales.
        pub fn quantised(self: Self, how: Quant) Self {
            var t = self;
            t.quant = how;
            return t;
        }

        /// This dense tensor, but with a scale for each token of each head, in the same order.
        pub fn scalePerToken(self: Self, scales: Slice) Self {
            const one = @max(self.dim, 1);
            return self.quantised(.{ .scale = scales, .stride = .{ self.stride[0] / one, self.stride[1] / one, self.stride[2] / one, 0 } });
        }

        /// This tensor, to be read.
        pub fn in(self: Self) In {
            const quant: ?In.Quant = if (self.quant) |q| .{ .scale = q.scale, .zero = q.zero, .stride = q.stride, .group_tokens = q.group_tokens, .group_dims = q.group_dims } else null;
            return .{ .data = self.data, .batch = self.batch, .heads = self.heads, .tokens = self.tokens, .dim = self.dim, .stride = self.stride, .stride_dim = self.stride_dim, .type = self.type, .bytes = self.bytes, .quant = quant };
        }

        /// Dense [batch][token][head][dim], as the projections of a model make it. Pages
        /// [page][token][head][dim] are, too.
        pub fn tokenFirst(data: Slice, batch: usize, tokens: usize, heads: usize, dim: usize) Self {
            return .{ .data = data, .batch = batch, .heads = heads, .tokens = tokens, .dim = dim, .stride = .{ tokens *| heads *| dim, dim, heads *| dim } };
        }

        /// Dense [batch][head][token][dim]. Pages [page][head][token][dim] are, too.
        pub fn headFirst(data: Slice, batch: usize, heads: usize, tokens: usize, dim: usize) Self {
            return .{ .data = data, .batch = batch, .heads = heads, .tokens = tokens, .dim = dim, .stride = .{ heads *| tokens *| dim, tokens *| dim, dim } };
        }

        /// Dense [batch][head][dim][token], for k and v: a transposed cache.
        pub fn transposed(data: Slice, batch: usize, heads: usize, dim: usize, tokens: usize) Self {
            return .{ .data = data, .batch = batch, .heads = heads, .tokens = tokens, .dim = dim, .stride = .{ heads *| dim *| tokens, dim *| tokens, 1 }, .stride_dim = tokens };
        }

        /// The same for C, if all elements and scales lie within their slices. The address of the
        /// scales is for the caller to set: they are those of `scalesToC`.
        fn toC(self: Self) Error!c.fa_tensor {
            var t = std.mem.zeroes(c.fa_tensor);
            t.dtype = @backingInt(self.type);
            const block, const bytes_of_block = .{ self.type.elements(), self.type.bytes() };
            if (self.dim % block != 0) return error.Shape;
            var extents = [4]usize{ self.batch, self.heads, self.tokens, self.dim };
            if (self.dim > 1 and self.stride_dim != 1) {
                // 0 would mean neighbours.
                if (self.stride_dim == 0 and self.tokens > 0 or block != 1) return error.Stride;
                t.stride_dim = std.math.cast(i32, self.stride_dim *| bytes_of_block) orelse return error.Stride;
            }
            if (std.mem.findScalar(usize, &extents, 0) != null) return t;
            for (extents[0..3], self.stride, &t.stride) |n, stride, *bytes| {
                if (n <= 1) continue;
                if (stride % block != 0) return error.Stride;
                bytes.* = std.math.cast(i64, stride / block *| bytes_of_block) orelse return error.Stride;
            }
            const strides = [4]usize{ self.stride[0], self.stride[1], self.stride[2], self.stride_dim };
            const room = if (self.type == .float32) self.data.len else self.bytes.len / bytes_of_block * block;
            if (!fits(room, &extents, &strides)) return error.SliceTooShort;
            if (self.quant) |q| {
                extents[2] = (extents[2] - 1) / @max(q.group_tokens, 1) + 1;
                extents[3] = (extents[3] - 1) / @max(q.group_dims, 1) + 1;
                for ([_]Slice{ q.scale, q.zero }) |values| {
                    if (values.len > 0 and !fits(values.len, &extents, &q.stride)) return error.SliceTooShort;
                }
            }
            t.data = if (self.type == .float32) @ptrCast(@constCast(self.data.ptr)) else @ptrCast(@constCast(self.bytes.ptr));
            return t;
        }

        /// The scales for C; without any: null.
        fn scalesToC(self: Self) Error!?c.fa_quant {
            const q = self.quant orelse return null;
            if (q.scale.len == 0 and q.zero.len == 0) return null;
            var to = std.mem.zeroes(c.fa_quant);
            if (q.scale.len > 0) to.scale = q.scale.ptr;
            if (q.zero.len > 0) to.zero = q.zero.ptr;
            for (&to.stride, q.stride) |*stride, n| stride.* = try size(n);
            to.group_tokens, to.group_dims = .{ q.group_tokens, q.group_dims };
            return to;
        }

        /// Bytes of the slice.
        fn memoryBytes(self: Self) Error!i64 {
            return size(if (self.type == .float32) self.data.len *| 4 else self.bytes.len);
        }
    };
}
pub const In = Tensor([]const f32);
pub const Out = Tensor([]f32);

/// Whether the element that is furthest from the first one lies among so many.
fn fits(room: usize, extents: []const usize, strides: []const usize) bool {
    var last: usize = 0;
    for (extents, strides) |n, stride| {
        if (n == 0) return true;
        last +|= (n - 1) *| stride;
    }
    return last < room;
}

pub const Options = struct {
    /// Multiplied to every dot product; 0 = 1/sqrt(dim), c.FA_SCALE_ZERO weighs all keys that a row
    /// sees alike.
    scale: f32 = 0,
    /// 0 = off; else scores become softcap * tanh(score / softcap).
    softcap: f32 = 0,
    /// No query sees a key behind its own position (but look_ahead ones). The last query is on the
    /// last key, unless a position says otherwise.
    causal: bool = false,
    /// With causal: how many keys behind its own position a query sees.
    look_ahead: usize = 0,
    /// How many keys up to its own position a query sees; null = all.
    window: ?usize = null,
    /// How many first keys are seen beside the window.
    prefix_keys: usize = 0,
    /// The key position of query 0, for all sequences: 0 if there is no past; null = the last query
    /// is on the last key.
    q_pos: ?i64 = null,
    /// The key position of query 0 of each sequence, in place of q_pos.
    q_positions: ?[]const i32 = null,
    /// Of float32, float16, bfloat16: added to the scores, -inf hides a key. Of bool8: not 0 =
    /// visible. [batch or 1][heads_q or 1][len_q or 1][len_kv].
    mask: ?In = null,
    /// Biases that are linear in the distance (ALiBi): [heads_q] or [batch][heads_q].
    alibi_slopes: ?[]const f32 = null,
    /// Slopes are multiplied to mask, which holds distances, instead of to distances of positions.
    mask_times_slope: bool = false,
    /// A logit of each query head that takes part in the softmax without a value.
    sinks: ?[]const f32 = null,
    /// Which blocks of keys blocks of query rows see; null = all.
    block_mask: ?BlockMask = null,
    /// The same by lists, which take no time for what is not in them; null = all.
    kept: ?Kept = null,
    /// Single keys that all rows see, besides windows and blocks.
    columns: ?Columns = null,
    spans: ?Spans = null,

    /// How many keys of each sequence are in use, the first ones.
    kv_lens: ?[]const i32 = null,
    /// The first key of each sequence that any row sees (left padding, dropped keys).
    kv_starts: ?[]const i32 = null,
    /// Ragged queries: q, out and lse have the rows of all sequences behind one another, in one
    /// batch entry. Those of sequence b are rows cu_len_q[b] to cu_len_q[b + 1] - 1.
    cu_len_q: ?[]const i32 = null,
    /// Ragged keys: the same of k and v.
    cu_len_kv: ?[]const i32 = null,
    /// K and V are pages, [page][heads_kv][tokens of a page][dim]: the pages of each sequence, in
    /// the order of its keys, as many for each, behind one another. Of pages without keys in use
    /// anything may stand there.
    block_table: ?[]const i32 = null,
    /// The pages of sequence b are block_table[block_table_start[b]] to
    /// block_table[block_table_start[b + 1] - 1] then.
    block_table_start: ?[]const i32 = null,
    /// Entries from the list of one kv head to that of the next, which then has pages of its own; 0
    /// = all have the same.
    table_head_stride: usize = 0,
    /// Keys of a sequence, the length of a row of mask and weights; null = as many as there is room
    /// for.
    len_kv: ?usize = null,

    /// Where to put the logarithm of each row's sum of exponentials.
    lse: ?[]f32 = null,
    /// From one batch entry, head, row of lse to the next; null = dense [batch][heads_q][row].
    lse_stride: ?[3]usize = null,
    /// Where to put the probabilities of all keys: [batch][heads_q][len_q][len_kv], or of the heads
    /// and rows of lists.
    weights: ?Out = null,
    /// The query heads whose probabilities are wanted, ascending.
    weight_heads: ?[]const i32 = null,
    /// The query rows whose probabilities are wanted, ascending; negative ones count from the end.
    weight_rows: ?[]const i32 = null,

    /// More accurate than the default with K and V of fewer bits; FA_PRECISE says what is rounded.
    precise: bool = false,
    /// Faster than the default with K and V of 8 bits; FA_FAST says what is rounded.
    fast: bool = false,
    /// Rows of a tile; 0 = chosen from the machine's caches.
    block_q: usize = 0,
    /// Keys of a tile; 0 = chosen from the machine's caches.
    block_kv: usize = 0,
};

/// Keys that see each other both ways, whatever the window: the first, and the one behind the last,
/// ascending and disjoint in each sequence. Those of sequence b are list[starts[b]] to
/// list[starts[b + 1] - 1].
pub const Spans = struct { list: []const [2]i32, starts: []const i32 };

/// Blocks of q query rows see blocks of kv keys where visible[b * stride[0] + h * stride[1] + block
/// of rows * stride[2] + block of keys] is not 0. A stride of 0: the same for all.
pub const BlockMask = struct { visible: []const u8, stride: [3]usize = .{ 0, 0, 0 }, q: usize, kv: usize };

/// Row i of query head h of sequence b sees the blocks of kv keys blocks[start[r]] to
/// blocks[start[r + 1] - 1], ascending, where r = b * stride[0] + h / (heads_q / heads) * stride[1]
/// + i / q. heads: how many have lists of their own; 0 = all query heads.
pub const Kept = struct { start: []const i32, blocks: []const i32, stride: [2]usize = .{ 0, 0 }, heads: usize = 0, q: usize, kv: usize };

/// Head h of sequence b sees the keys keys[start[r]] to keys[start[r + 1] - 1], ascending, where r
/// = b * stride[0] + h / (heads_q / heads) * stride[1]. heads: how many have lists of their own; 0
/// = all query heads.
pub const Columns = struct { start: []const i32, keys: []const i32, stride: [2]usize = .{ 0, 0 }, heads: usize = 0 };

/// Scratch memory that grows as calls need it, for one call at a time.
pub const Workspace = struct {
    allocator: std.mem.Allocator,
    memory: []u8 = &.{},

    pub fn init(allocator: std.mem.Allocator) Workspace {
        return .{ .allocator = allocator };
    }

    pub fn deinit(self: *Workspace) void {
        self.allocator.free(self.memory);
        self.memory = &.{};
    }

    /// Makes it at least so large; what was in it is gone if it grows.
    pub fn reserve(self: *Workspace, bytes: usize) Error!void {
        if (bytes <= self.memory.len) return;
        const more = self.allocator.alloc(u8, bytes) catch return error.Memory;
        self.allocator.free(self.memory);
        self.memory = more;
    }
};

/// Threads of the library's own, in any number of calls at once.
pub const Pool = struct {
    pool: *c.fa_pool,

    /// So many threads, the calling one included; 0 = one per core.
    pub fn init(threads: i32) Error!Pool {
        var pool: [*c]c.fa_pool = null;
        try check(c.fa_pool_create(threads, &pool));
        return .{ .pool = pool };
    }

    /// No call may be using it.
    pub fn deinit(self: Pool) void {
        c.fa_pool_destroy(self.pool);
    }
};

/// What `parallelFor` of a caller's threads calls, once for each i below n.
pub const Task = struct {
    function: *const fn (?*anyopaque, usize) callconv(.c) void,
    arg: ?*anyopaque,

    pub fn call(self: Task, i: usize) void {
        self.function(self.arg, i);
    }
};

/// A pool of the caller's threads: `threads` points to what has width(self) usize, and
/// parallelFor(self, n: usize, task: Task) void, which returns when all calls of the task have. It
/// must stay where it is until the calls that use the pool have returned.
pub fn poolOf(threads: anytype) c.fa_pool {
    const Threads = @TypeOf(threads);
    const functions = struct {
        fn width(ctx: ?*anyopaque) callconv(.c) i32 {
            const self: Threads = @ptrCast(@alignCast(ctx));
            return std.math.cast(i32, self.width()) orelse std.math.maxInt(i32);
        }
        fn parallelFor(ctx: ?*anyopaque, n: usize, task: c.fa_task, arg: ?*anyopaque) callconv(.c) void {
            const self: Threads = @ptrCast(@alignCast(ctx));
            self.parallelFor(n, Task{ .function = task.?, .arg = arg });
        }
    };
    var pool = std.mem.zeroes(c.fa_pool);
    pool.struct_size = @sizeOf(c.fa_pool);
    pool.ctx = @ptrCast(threads);
    pool.width, pool.parallel_for = .{ functions.width, functions.parallelFor };
    return pool;
}

/// Parts of a pool; of null, which is the calling thread alone, 1.
pub fn widthOf(pool: ?*const c.fa_pool) i32 {
    const function = (pool orelse return 1).width orelse return 1;
    return @min(@max(function(pool.?.ctx), 1), 256);
}

/// A problem that is described: tensors and lists must keep their memory, and may have other
/// contents in each call.
pub const Attention = struct {
    /// The description for C; the addresses of scales are set for each call.
    a: c.fa_attention,
    quants: [4]?c.fa_quant,
    bounds: [4]?Bound,

    /// Numbers of entries of another list, which has so many.
    const Bound = struct { list: []const i32, most: usize };

    /// Attention of q [batch][heads_q][len_q][dim], k [batch][heads_kv][len_kv][dim] and v
    /// [batch][heads_kv][len_kv][dim_v] to out [batch][heads_q][len_q][dim_v].
    pub fn init(q: In, k: In, v: In, out: Out, options: Options) Error!Attention {
        if (out.batch != q.batch or out.heads != q.heads or out.tokens != q.tokens or k.dim != q.dim or out.dim != v.dim) return error.Shape;
        var self = try describe(q, k, v, options);
        const a = &self.a;
        a.heads_q = try size(q.heads);
        a.q, a.o = .{ try q.toC(), try out.toC() };
        self.quants[0], self.quants[3] = .{ try q.scalesToC(), try out.scalesToC() };
        a.q_bytes, a.o_bytes = .{ try q.memoryBytes(), try out.memoryBytes() };
        a.scale, a.softcap = .{ options.scale, options.softcap };
        a.prefix_keys = try size(options.prefix_keys);
        a.block_q, a.block_kv = .{ try size(options.block_q), try size(options.block_kv) };
        if (options.causal) a.window_right = try size(options.look_ahead) else if (options.look_ahead != 0) return error.Shape;
        if (options.window) |n| a.window_left = if (n == 0) return error.Shape else try size(n - 1);
        if (options.mask_times_slope) a.flags |= c.FA_MASK_TIMES_SLOPE;
        if (options.precise) a.flags |= c.FA_PRECISE;
        if (options.fast) a.flags |= c.FA_FAST;
        try self.setMasks(options);
        try self.setOutputs(options);
        try self.inBounds();
        return self;
    }

    /// Computes it. The workspace grows where it is too small. pool: null = the calling thread
    /// alone. On errors the output is as it was. Any number of threads may call it at once, with
    /// outputs and workspaces of their own.
    pub fn run(self: *const Attention, workspace: *Workspace, pool: ?*const c.fa_pool) Error!void {
        try self.inBounds();
        const a = self.joined();
        const status = c.fa_attention_run(&a, workspace.memory.ptr, workspace.memory.len, pool);
        if (status != c.FA_ERR_WORKSPACE) return check(status);
        try workspace.reserve(try self.workspaceBytes(widthOf(pool)));
        try check(c.fa_attention_run(&a, workspace.memory.ptr, workspace.memory.len, pool));
    }

    /// Whether it can be computed and why not, or how, on the calling thread, and warnings: a
    /// sentence in `why`, also on errors, ended by a zero byte. Returns its length.
    pub fn explain(self: *const Attention, why: []u8) Error!usize {
        try self.inBounds();
        const a = self.joined();
        try check(c.fa_attention_check(&a, why.ptr, why.len));
        return std.mem.findScalar(u8, why, 0) orelse why.len;
    }

    /// The same for a whole call of `run`, with its pool, and the workspace as it is.
    pub fn explainRun(self: *const Attention, workspace: *const Workspace, pool: ?*const c.fa_pool, why: []u8) Error!usize {
        try self.inBounds();
        const a = self.joined();
        try check(c.fa_attention_check_run(&a, workspace.memory.ptr, workspace.memory.len, pool, why.ptr, why.len));
        return std.mem.findScalar(u8, why, 0) orelse why.len;
    }

    /// How it is computed with so many threads, 1 to 256.
    pub fn plan(self: *const Attention, parts: i32) Error!c.fa_plan {
        try self.inBounds();
        const a = self.joined();
        var how = std.mem.zeroes(c.fa_plan);
        how.struct_size = @sizeOf(c.fa_plan);
        try check(c.fa_attention_plan(&a, parts, &how));
        return how;
    }

    /// How large a workspace must be for so many parts, 1 to 256.
    pub fn workspaceBytes(self: *const Attention, parts: i32) Error!usize {
        try self.inBounds();
        const a = self.joined();
        var bytes: usize = 0;
        try check(c.fa_attention_workspace(&a, parts, &bytes));
        return bytes;
    }

    /// What is enough for every number of parts up to max_parts.
    pub fn workspaceBytesMax(self: *const Attention, max_parts: i32) Error!usize {
        try self.inBounds();
        const a = self.joined();
        var bytes: usize = 0;
        try check(c.fa_attention_workspace_max(&a, max_parts, &bytes));
        return bytes;
    }

    /// Computes one of so many parts, 1 to 256, on the calling thread, for threads of your own: one
    /// call for each part, in any order or at once, then one of `finish` for each, after all have
    /// returned. They share memory of workspaceBytes(parts), which is for them alone meanwhile.
    pub fn part(self: *const Attention, memory: []u8, number: i32, parts: i32) Error!void {
        try self.inBounds();
        const a = self.joined();
        try check(c.fa_attention_part(&a, memory.ptr, memory.len, number, parts));
    }

    /// Completes what `part` has begun.
    pub fn finish(self: *const Attention, memory: []u8, number: i32, parts: i32) Error!void {
        try self.inBounds();
        const a = self.joined();
        try check(c.fa_attention_finish(&a, memory.ptr, memory.len, number, parts));
    }

    /// With the addresses of scales, which are in self.
    fn joined(self: *const Attention) c.fa_attention {
        var a = self.a;
        for ([_]*c.fa_tensor{ &a.q, &a.k, &a.v, &a.o }, &self.quants) |t, *quant| {
            if (quant.*) |*q| t.quant = q;
        }
        return a;
    }

    /// Whether numbers lead out of their lists, which the library cannot know: before each call, as
    /// they may have changed.
    fn inBounds(self: *const Attention) Error!void {
        for (self.bounds) |bound| if (bound) |b| for (b.list) |end| {
            if (end > 0 and @as(usize, @intCast(end)) > b.most) return error.SliceTooShort;
        };
    }

    /// Sequences, rows, keys and values, and their lists, for rows that are queries or new tokens.
    fn describe(rows: In, k: anytype, v: anytype, options: Options) Error!Attention {
        var self: Attention = .{ .a = undefined, .quants = @splat(null), .bounds = @splat(null) };
        const a = &self.a;
        try check(c.fa_attention_init(a, @sizeOf(c.fa_attention)));
        if (v.batch != k.batch or v.heads != k.heads or v.tokens != k.tokens) return error.Shape;
        const batch, const len_q = try ragged(options.cu_len_q, rows.batch, rows.tokens);
        var keys = k.tokens;
        if (options.block_table) |table| {
            keys = try self.setPages(table, batch, k.batch, k.heads, k.tokens, options);
        } else if (options.cu_len_kv) |starts| {
            const sequences, keys = try ragged(starts, k.batch, k.tokens);
            if (sequences != batch) return error.Shape;
        } else if (k.batch != batch) return error.Shape;
        if (options.len_kv) |n| keys = if (n > keys) return error.Shape else n;
        a.batch, a.heads_kv, a.len_q, a.len_kv = .{ try size(batch), try size(k.heads), try size(len_q), try size(keys) };
        a.dim_qk, a.dim_v = .{ try size(k.dim), try size(v.dim) };
        a.k, a.v = .{ try k.toC(), try v.toC() };
        a.k_bytes, a.v_bytes = .{ try k.memoryBytes(), try v.memoryBytes() };
        self.quants[1], self.quants[2] = .{ try k.scalesToC(), try v.scalesToC() };
        inline for (.{ "kv_lens", "kv_starts", "q_positions" }) |name| if (@field(options, name)) |list| {
            if (list.len != batch) return error.Shape;
            @field(a, name) = list.ptr;
        };
        inline for (.{ "cu_len_q", "cu_len_kv", "block_table_start" }) |name| if (@field(options, name)) |list| {
            if (list.len != batch + 1) return error.Shape;
            @field(a, name) = list.ptr;
        };
        if (options.q_pos) |position| a.q_pos = position;
        if (options.spans) |spans| {
            if (spans.starts.len == 0 or spans.starts.len - 1 != batch) return error.Shape;
            self.bounds[0] = .{ .list = spans.starts, .most = spans.list.len };
            a.spans, a.span_starts = .{ @ptrCast(spans.list.ptr), spans.starts.ptr };
        }
        try self.inBounds();
        return self;
    }

    fn setPages(self: *Attention, table: []const i32, batch: usize, pages: usize, heads: usize, tokens: usize, options: Options) Error!usize {
        const a = &self.a;
        var columns: usize = 0;
        if (options.block_table_start) |starts| {
            if (starts.len != batch + 1) return error.Shape;
            for (starts[1..], starts[0..batch]) |end, begin| {
                if (begin < 0 or end < begin or @as(usize, @intCast(end)) > table.len) return error.SliceTooShort;
                columns = @max(columns, @as(usize, @intCast(end - begin)));
            }
            // Its entries must lie in the table in later calls, too.
            self.bounds[1] = .{ .list = starts, .most = table.len };
        } else {
            if (if (batch == 0) table.len != 0 else table.len % batch != 0) return error.Shape;
            columns = if (batch == 0) 0 else table.len / batch;
        }
        a.block_table, a.table_stride = .{ table.ptr, try size(columns) };
        a.num_pages, a.page_size = .{ try size(pages), try size(tokens) };
        a.table_head_stride = try size(options.table_head_stride);
        const of_other_heads = (@max(heads, 1) - 1) *| options.table_head_stride;
        if (of_other_heads > columns) return error.Shape;
        return (columns - of_other_heads) *| tokens;
    }

    fn setMasks(self: *Attention, options: Options) Error!void {
        const a = &self.a;
        const batch: usize, const heads: usize = .{ @intCast(a.batch), @intCast(a.heads_q) };
        const len_q: usize, const keys: usize = .{ @intCast(a.len_q), @intCast(a.len_kv) };
        if (options.mask) |mask| {
            const given = [3]usize{ mask.batch, mask.heads, mask.tokens };
            for (given, [3]usize{ batch, heads, len_q }) |is, wanted| if (is != 1 and is != wanted) return error.Shape;
            if (mask.dim != keys or mask.quant != null) return error.Shape;
            // An axis of one element has a stride of 0, which repeats it.
            a.mask, a.mask_bytes = .{ try mask.toC(), try mask.memoryBytes() };
        }
        if (options.alibi_slopes) |slopes| {
            if (slopes.len != heads and slopes.len != batch *| heads) return error.Shape;
            a.alibi_slopes = slopes.ptr;
            a.alibi_batch_stride = if (slopes.len == heads) 0 else a.heads_q;
        }
        if (options.sinks) |sinks| {
            if (sinks.len != heads) return error.Shape;
            a.sinks = sinks.ptr;
        }
        if (options.block_mask) |m| {
            if (m.q == 0 or m.kv == 0) return error.Shape;
            const extents = [4]usize{ batch, heads, blocks(len_q, m.q), blocks(keys, m.kv) };
            if (!fits(m.visible.len, &extents, &.{ m.stride[0], m.stride[1], m.stride[2], 1 })) return error.SliceTooShort;
            a.block_mask, a.block_mask_q, a.block_mask_kv = .{ m.visible.ptr, try size(m.q), try size(m.kv) };
            for (&a.block_mask_stride, m.stride) |*to, n| to.* = try size(n);
        }
        if (options.kept) |kept| {
            if (kept.q == 0 or kept.kv == 0) return error.Shape;
            const lists = [3]usize{ batch, if (kept.heads == 0) heads else kept.heads, blocks(len_q, kept.q) + 1 };
            if (!fits(kept.start.len, &lists, &.{ kept.stride[0], kept.stride[1], 1 })) return error.SliceTooShort;
            self.bounds[2] = .{ .list = kept.start, .most = kept.blocks.len };
            try self.inBounds();
            a.kept_start, a.kept_blocks = .{ kept.start.ptr, kept.blocks.ptr };
            a.kept_heads, a.kept_q, a.kept_kv = .{ try size(kept.heads), try size(kept.q), try size(kept.kv) };
            for (&a.kept_stride, kept.stride) |*to, n| to.* = try size(n);
        }
        if (options.columns) |columns| {
            const lists = [3]usize{ batch, if (columns.heads == 0) heads else columns.heads, 2 };
            if (!fits(columns.start.len, &lists, &.{ columns.stride[0], columns.stride[1], 1 })) return error.SliceTooShort;
            self.bounds[3] = .{ .list = columns.start, .most = columns.keys.len };
            a.column_start, a.columns = .{ columns.start.ptr, columns.keys.ptr };
            a.column_heads = try size(columns.heads);
            for (&a.column_stride, columns.stride) |*to, n| to.* = try size(n);
        }
    }

    fn setOutputs(self: *Attention, options: Options) Error!void {
        const a = &self.a;
        const batch: usize, const heads: usize = .{ @intCast(a.batch), @intCast(a.heads_q) };
        const len_q: usize, const keys: usize = .{ @intCast(a.len_q), @intCast(a.len_kv) };
        if (options.lse) |lse| {
            const entries, const rows = if (options.cu_len_q) |starts| .{ 1, @as(usize, @intCast(starts[batch])) } else .{ batch, len_q };
            const stride: [3]usize = options.lse_stride orelse .{ heads *| rows, rows, 1 };
            if (!fits(lse.len, &.{ entries, heads, rows }, &stride)) return error.SliceTooShort;
            a.lse, a.lse_bytes = .{ lse.ptr, try size(lse.len *| 4) };
            for (&a.lse_stride, stride) |*to, n| to.* = try size(n);
        }
        const weight_heads = if (options.weight_heads) |list| list.len else heads;
        const weight_rows = if (options.weight_rows) |list| list.len else len_q;
        a.num_weight_heads, a.num_weight_rows = .{ try size(weight_heads), try size(weight_rows) };
        if (options.weight_heads) |list| a.weight_heads = list.ptr;
        if (options.weight_rows) |list| a.weight_rows = list.ptr;
        if (options.weights) |weights| {
            if (weights.batch != batch or weights.heads != weight_heads or weights.tokens != weight_rows or
                weights.dim != keys or weights.type != .float32) return error.Shape;
            a.weights, a.weights_bytes = .{ try weights.toC(), try weights.memoryBytes() };
        }
    }
};

/// Blocks of so many.
fn blocks(n: usize, of: usize) usize {
    return if (n == 0) 0 else (n - 1) / of + 1;
}

/// Sequences, and the rows of the longest, of a tensor whose rows may be ragged.
fn ragged(list: ?[]const i32, batch: usize, tokens: usize) Error!struct { usize, usize } {
    const starts = list orelse return .{ batch, tokens };
    if (starts.len == 0 or batch != 1) return error.Shape;
    var longest: usize = 0;
    for (starts, 0..) |end, i| {
        if (end < 0 or i > 0 and end < starts[i - 1]) return error.Refused;
        if (@as(usize, @intCast(end)) > tokens) return error.SliceTooShort;
        if (i > 0) longest = @max(longest, @as(usize, @intCast(end - starts[i - 1])));
    }
    return .{ starts.len - 1, longest };
}

/// Writes attention of q [batch][heads_q][len_q][dim], k [batch][heads_kv][len_kv][dim] and v
/// [batch][heads_kv][len_kv][dim_v] to out [batch][heads_q][len_q][dim_v], on the calling thread.
/// Scratch memory is the allocator's for the time of the call. On errors out is as it was.
pub fn run(allocator: std.mem.Allocator, q: In, k: In, v: In, out: Out, options: Options) Error!void {
    const attention = try Attention.init(q, k, v, out, options);
    var workspace = Workspace.init(allocator);
    defer workspace.deinit();
    try attention.run(&workspace, null);
}

/// Writes new keys and values [batch][heads_kv][new][dim], of float32, float16 or bfloat16, into
/// the cache k and v [batch][heads_kv][len_kv][dim], in the types that it has, where the queries of
/// the run() that follows stand: by default they are the last of kv_lens, which count them. Of
/// options it looks at lists of sequences, positions, spans and pages; a page that is written must
/// be in one list, once. null: not written (v may be a view of k). Scales that each token has of
/// its own are found and written; those that tokens share are given. On errors the cache is as it
/// was. Several threads may write different sequences or heads of one cache.
pub fn append(k: Out, v: Out, new_k: ?In, new_v: ?In, options: Options) Error!void {
    const rows = new_k orelse new_v orelse return error.Shape;
    inline for (.{ new_k, new_v }, .{ k, v }) |new, cache| if (new) |t| {
        if (t.batch != rows.batch or t.heads != cache.heads or t.tokens != rows.tokens or t.dim != cache.dim or t.quant != null) return error.Shape;
    };
    const self = try Attention.describe(rows, k, v, options);
    const a = self.joined();
    const of_k: ?c.fa_tensor, const of_v: ?c.fa_tensor = .{ if (new_k) |t| try t.toC() else null, if (new_v) |t| try t.toC() else null };
    try check(c.fa_cache_append(&a, if (of_k) |*t| t else null, if (of_v) |*t| t else null, null, 0));
}

/// Writes src, of float32, float16 or bfloat16, in the type of dst, whose sizes are the same. All
/// machines write the same bytes; those of blocks are those of ggml's reference functions. Of int8
/// and uint8, and of q15 and 8-bit floating-point numbers that have scales, these are found and
/// written. On errors dst is as it was.
pub fn quantize(src: In, dst: Out) Error!void {
    return quantizeSmooth(src, dst, null);
}

/// `quantize` to int8, with a vector subtracted from each token of a head first: dense
/// [heads][dim]. Attention to keys is the same with the mean of all keys subtracted, and 8 bits
/// lose less.
pub fn quantizeI8(src: In, dst: Out, smooth: []const f32) Error!void {
    if (smooth.len != src.heads *| src.dim or dst.type != .int8) return error.Shape;
    return quantizeSmooth(src, dst, smooth);
}

fn quantizeSmooth(src: In, dst: Out, smooth: ?[]const f32) Error!void {
    if (src.batch != dst.batch or src.heads != dst.heads or src.tokens != dst.tokens or src.dim != dst.dim) return error.Shape;
    const from, var to = .{ try src.toC(), try dst.toC() };
    const quant = try dst.scalesToC();
    if (quant) |*q| to.quant = q;
    const batch, const heads, const tokens = .{ try size(src.batch), try size(src.heads), try size(src.tokens) };
    if (smooth) |x| {
        try check(c.fa_quantize_i8(&from, batch, heads, tokens, try size(src.dim), x.ptr, &to));
    } else {
        try check(c.fa_quantize(&from, batch, heads, tokens, try size(src.dim), &to));
    }
}

/// Joins results of the same queries over different keys: afterwards o [rows][dim] and lse [rows]
/// are those of all keys. o2 and lse2 are the others.
pub fn merge(o: []f32, lse: []f32, o2: []const f32, lse2: []const f32, dim: usize) Error!void {
    if (lse2.len != lse.len or o.len != lse.len *| dim or o2.len != o.len) return error.Shape;
    try check(c.fa_merge(o.ptr, lse.ptr, o2.ptr, lse2.ptr, try size(lse.len), try size(dim)));
}

/// A text in partitions, and how much of the attention is kept: fields of `config` are those of
/// fa_sparse_config, with its defaults.
pub const Partitions = struct {
    config: c.fa_sparse_config,

    /// The token at which each partition begins, of a text of so many tokens, all of them query
    /// rows, and tokens that are seen across partitions: both ascending.
    pub fn init(starts: []const i32, boundary_tokens: []const i32, len: usize) Error!Partitions {
        var self: Partitions = .{ .config = undefined };
        try check(c.fa_sparse_config_init(&self.config, @sizeOf(c.fa_sparse_config)));
        self.config.len_q, self.config.len_kv = .{ try size(len), try size(len) };
        self.config.partitions, self.config.num_partitions = .{ starts.ptr, try size(starts.len) };
        self.config.boundary_tokens, self.config.num_boundary_tokens = .{ boundary_tokens.ptr, try size(boundary_tokens.len) };
        return self;
    }

    /// How long the lists are, and how dense: .room is how many numbers they take. why: room for a
    /// sentence that says what was refused; may be empty.
    pub fn measure(self: *const Partitions, why: []u8) Error!c.fa_sparse_lists {
        return self.make(&.{}, why);
    }

    /// Writes the lists to memory, for `kept` and `columns`.
    pub fn lists(self: *const Partitions, memory: []i32, why: []u8) Error!c.fa_sparse_lists {
        return if (memory.len == 0) error.SliceTooShort else self.make(memory, why);
    }

    fn make(self: *const Partitions, memory: []i32, why: []u8) Error!c.fa_sparse_lists {
        var found = std.mem.zeroes(c.fa_sparse_lists);
        found.struct_size = @sizeOf(c.fa_sparse_lists);
        const to: [*c]i32 = if (memory.len == 0) null else memory.ptr;
        try check(c.fa_sparse_from_partitions(&self.config, to, try size(memory.len), &found, why.ptr, why.len));
        return found;
    }

    /// Lists of blocks that were made, for Options.
    pub fn kept(self: *const Partitions, made: c.fa_sparse_lists) Kept {
        return .{ .start = made.kept_start[0..@intCast(made.num_starts)], .blocks = made.kept_blocks[0..@intCast(made.num_blocks)], .q = @intCast(self.config.kept_q), .kv = @intCast(self.config.kept_kv) };
    }

    /// Columns that were made, for Options; null if there are none.
    pub fn columns(made: c.fa_sparse_lists) ?Columns {
        if (made.num_columns == 0) return null;
        return .{ .start = made.column_start[0..2], .keys = made.columns[0..@intCast(made.num_columns)] };
    }
};

/// How `runQ15` computes: q and out are dense [heads][len_q][dim], k and v [heads_kv][len_kv][dim].
pub const Fixed = struct {
    heads: usize,
    heads_kv: usize,
    len_q: usize,
    len_kv: usize,
    dim: usize,
    /// The scale is scale_mantissa / 2^scale_shift; 0 = 1/sqrt(dim).
    scale_mantissa: i32 = 0,
    scale_shift: i32 = 0,
    causal: bool = false,
    /// 1 = the calling thread alone, 0 = one per core.
    threads: u32 = 1,
};

/// Attention of 16-bit fixed-point numbers in integers alone, with the same bits on every machine.
pub fn runQ15(q: []const i16, k: []const i16, v: []const i16, out: []i16, f: Fixed) Error!void {
    const queries, const keys = .{ f.heads *| f.len_q *| f.dim, f.heads_kv *| f.len_kv *| f.dim };
    if (q.len < queries or out.len < queries or k.len < keys or v.len < keys) return error.SliceTooShort;
    var cfg = std.mem.zeroes(c.fa_q15_config);
    cfg.struct_size, cfg.head_dim = .{ @sizeOf(c.fa_q15_config), f.dim };
    cfg.scale_mantissa, cfg.scale_shift = .{ f.scale_mantissa, f.scale_shift };
    cfg.causal, cfg.num_threads = .{ @intFromBool(f.causal), f.threads };
    try check(c.fa_mha_q15(&cfg, q.ptr, k.ptr, v.ptr, f.heads, f.heads_kv, f.len_q, f.len_kv, out.ptr));
}

/// The instruction set that calls use from now on.
pub fn isa() [:0]const u8 {
    return std.mem.span(c.fa_isa());
}

/// Caps the instruction set of all calls that begin later, for tests and comparisons; null = no
/// cap.
pub fn limitIsa(name: ?[:0]const u8) Error!void {
    try check(c.fa_limit_isa(if (name) |n| n.ptr else null));
}

/// Lets all calls in the process that begin later use AMX. It asks the system for it, which makes
/// frames of signals larger. why: room for a sentence that says why this process has none, ended by
/// a zero byte; may be empty.
pub fn enableAmx(why: []u8) Error!void {
    try check(c.fa_enable_amx(why.ptr, why.len));
}

/// The library's version.
pub fn version() std.SemanticVersion {
    const v = c.fa_version();
    return .{ .major = v >> 16, .minor = v >> 8 & 255, .patch = v & 255 };
}

/// That of the binary interface of the library; that of the header is c.FA_ABI_VERSION.
pub fn abiVersion() u32 {
    return c.fa_abi_version();
}

fn size(n: usize) Error!i64 {
    return std.math.cast(i64, n) orelse error.Shape;
}

/// In English what a status of the C interface says.
pub fn words(status: c.fa_status) [:0]const u8 {
    return std.mem.span(c.fa_status_string(@bitCast(status)));
}

/// The error that a status of the C interface is here.
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
