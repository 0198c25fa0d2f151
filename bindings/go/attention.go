// Package attention calls flash_attention on slices. CGO_CFLAGS says where the header is,
// CGO_LDFLAGS where the library is; -tags static links the static one.
//
// Run computes one problem. New describes one that is run many times: lists and tensors are read
// anew by each Attention.Run, so a decode loop changes what is in its slices. Quantize and Append
// write caches, Merge joins results over different keys, Partitions make lists of blocks from
// partitions of a text.
//
//	pages := attention.TokenFirst(nil, numPages, pageSize, headsKV, dim)
//	out := make([]float32, heads*dim)
//	err := attention.Run(attention.HeadFirst(q, 1, heads, 1, dim),
//		attention.Quantised(pages, attention.I8, kBytes, attention.PerToken(kScales, pages)),
//		attention.Quantised(pages, attention.I8, vBytes, attention.PerToken(vScales, pages)),
//		attention.HeadFirst(out, 1, heads, 1, dim),
//		attention.Options{Causal: true, BlockTable: table, KVLens: lens})
//
// The header flash_attention.h is the manual: docs/bindings.md says which of its fields and
// functions is which name here. Slices must not be parts of Go values that hold pointers, such as
// an array in a struct with a string: cgo panics.
package attention

// #cgo !static LDFLAGS: -lflash_attention
// #cgo static LDFLAGS: -l:libflash_attention.a -lgcc_s -lutil -lrt -lpthread -lm -ldl -lc
// #include "calls.h"
import "C"

import (
	"math"
	"runtime"
	"unsafe"
)

// ScaleZero is a scale as good as 0.
const ScaleZero = C.FA_SCALE_ZERO

// Options: the zero value is attention of every query to every key, with a scale of 1/sqrt(dim), on
// the calling thread.
type Options struct {
	// Multiplied to every dot product; 0 = 1/sqrt(dim), ScaleZero weighs all keys that a row sees
	// alike.
	Scale float32
	// 0 = off; else scores become Softcap * tanh(score / Softcap).
	Softcap float32
	// No query sees a key behind its own position (but LookAhead ones). The last query is on the last
	// key, unless a position says otherwise.
	Causal bool
	// With Causal: how many keys behind its own position a query sees.
	LookAhead int
	// How many keys up to its own position a query sees; 0 = all.
	Window int
	// How many first keys are seen beside the window.
	PrefixKeys int
	// The key position of query 0, for all sequences: At(0) if there is no past. Nil: the last query
	// is on the last key.
	QPos *int
	// The key position of query 0 of each sequence, in place of QPos.
	QPositions []int32
	// Of F32, F16, BF16: added to the scores, -Inf hides a key. Of Bool8: nonzero = visible. [batch or
	// 1][heads_q or 1][len_q or 1][len_kv]. The zero value: none.
	Mask Tensor
	// Biases that are linear in the distance (ALiBi): [heads_q] or [batch][heads_q]; nil = none.
	ALiBiSlopes []float32
	// Slopes are multiplied to Mask, which holds distances, instead of to distances of positions.
	MaskTimesSlope bool
	// A logit of each query head that takes part in the softmax without a value; nil = none.
	Sinks []float32
	// Which blocks of keys blocks of query rows see; nil = all.
	BlockMask *BlockMask
	// The same by lists, which take no time for what is not in them; nil = all.
	Kept *Kept
	// Single keys that all rows see, besides windows and blocks; nil = none.
	Columns *Columns
	// Of each sequence, keys that see each other both ways, whatever the window: the first, and the
	// one behind the last, ascending and disjoint; nil = none.
	Spans [][][2]int32

	// How many keys of each sequence are in use, the first ones; nil = all.
	KVLens []int32
	// The first key of each sequence that any row sees (left padding, dropped keys); nil = 0.
	KVStarts []int32
	// Ragged queries: q, out and LSE have the rows of all sequences behind one another, in one batch
	// entry. Those of sequence b are rows CuLenQ[b] to CuLenQ[b+1]-1; nil = not ragged.
	CuLenQ []int32
	// Ragged keys: the same of k and v.
	CuLenKV []int32
	// K and V are pages, [page][heads_kv][tokens of a page][dim]: the pages of each sequence, in the
	// order of its keys, as many for each, behind one another. Of pages without keys in use anything
	// may stand there. Nil = no pages.
	BlockTable []int32
	// The pages of sequence b are BlockTable[BlockTableStart[b]] to BlockTable[BlockTableStart[b+1]-1]
	// then; nil = as many for each.
	BlockTableStart []int32
	// Entries from the list of one kv head to that of the next, which then has pages of its own; 0 =
	// all have the same.
	TableHeadStride int
	// Keys of a sequence, the length of a row of Mask and Weights; 0 = as many as there is room for.
	LenKV int

	// Where to put the logarithm of each row's sum of exponentials; nil = nowhere.
	LSE []float32
	// From one batch entry, head, row of LSE to the next; zero value = dense [batch][heads_q][row].
	LSEStride [3]int
	// Where to put the probabilities of all keys: [batch][heads_q][len_q][len_kv], or of the heads
	// and rows of lists. The zero value: nowhere.
	Weights Tensor
	// The query heads and rows whose probabilities are wanted, ascending; rows that are negative
	// count from the end; nil = all.
	WeightHeads, WeightRows []int32

	// More accurate, or faster, than the default with K and V of fewer bits; not both. FA_PRECISE and
	// FA_FAST say what is rounded.
	Precise, Fast bool
	// Rows and keys of a tile; 0 = chosen from the machine's caches.
	BlockQ, BlockKV int

	// The threads; nil = the calling one alone.
	Pool *Pool
	// Scratch memory that is kept, for one call at a time; nil = allocated for each call.
	Workspace *Workspace
}

// At is a position for Options.QPos.
func At(position int) *int { return &position }

// BlockMask: blocks of Q query rows see blocks of KV keys where Visible[b*Stride[0] + h*Stride[1] +
// block of rows*Stride[2] + block of keys] is not 0.
type BlockMask struct {
	Visible []byte
	// From one batch entry, query head, block of rows to the next; 0 = the same for all.
	Stride [3]int
	Q, KV  int
}

// Kept: rows i of query head h of sequence b see the blocks of KV keys Blocks[Start[r]] to
// Blocks[Start[r+1]-1], ascending, where r = b*Stride[0] + h/(heads_q/Heads)*Stride[1] + i/Q.
type Kept struct {
	Start, Blocks []int32
	// ENTRIES of Start from one sequence, and from one head with lists, to the next; 0 = the same.
	Stride [2]int
	// Heads with lists of their own; 0 = all query heads.
	Heads int
	Q, KV int
}

// Columns: head h of sequence b sees the keys Keys[Start[r]] to Keys[Start[r+1]-1], ascending,
// where r = b*Stride[0] + h/(heads_q/Heads)*Stride[1].
type Columns struct {
	Start, Keys []int32
	// ENTRIES of Start from one sequence, and from one head with a list, to the next; 0 = the same.
	Stride [2]int
	// Heads with lists of their own; 0 = all query heads.
	Heads int
}

// Error is what the library refuses; Status is a value of fa_status.
type Error struct {
	Status int
	Why    string
}

func (e *Error) Error() string { return "flash_attention: " + e.Why }

func shape(why string) error { return &Error{int(C.FA_ERR_SHAPE), why} }

func failed(status uint32, why string) error {
	if status == C.FA_OK {
		return nil
	}
	if why == "" {
		why = C.GoString(C.fa_status_string(C.int32_t(status)))
	}
	return &Error{int(status), why}
}

// Room for a sentence of the library.
type words [512]C.char

func (w *words) failed(status uint32) error { return failed(status, C.GoString(&w[0])) }

// Workspace is scratch memory that grows as calls need it; the zero value has none.
type Workspace struct{ memory []byte }

// Reserve makes it at least so large; what was in it is gone if it grows.
func (w *Workspace) Reserve(bytes int) {
	if bytes > len(w.memory) {
		w.memory = make([]byte, bytes)
	}
}

// Bytes is how large it is.
func (w *Workspace) Bytes() int { return len(w.memory) }

// Attention is a problem that is described: tensors and lists must keep their memory, and may have
// other contents in each call. Lists of spans are copied.
type Attention struct {
	a         C.fa_attention
	quants    C.fa_go_quants
	pool      *Pool
	workspace *Workspace
	bounds    []bound
}

// Numbers of entries of another list, which has so many.
type bound struct {
	name string
	list []int32
	most int
}

// Whether these numbers lead out of the lists, which the library cannot know: before each call, as
// they may have changed.
func (a *Attention) inBounds() error {
	for _, b := range a.bounds {
		for _, end := range b.list {
			if int(end) > b.most {
				return &Error{int(C.FA_ERR_LENGTHS), b.name + " has a list that ends behind its slice"}
			}
		}
	}
	return nil
}

// Sequences, rows, keys and values, and their lists: what Append looks at, too.
func describe(a *Attention, rows, k, v *Tensor, o *Options) error {
	if status := C.fa_attention_init(&a.a, C.sizeof_fa_attention); status != C.FA_OK {
		return failed(status, "")
	}
	d := &a.a
	batch, lenQ, err := ragged(o.CuLenQ, rows, "CuLenQ")
	if err != nil {
		return err
	}
	keys := k.Tokens
	switch {
	case o.BlockTable != nil:
		if keys, err = a.setPages(batch, k, o); err != nil {
			return err
		}
	case o.CuLenKV != nil:
		var sequences int
		if sequences, keys, err = ragged(o.CuLenKV, k, "CuLenKV"); err != nil {
			return err
		}
		if sequences != batch {
			return shape("CuLenKV is not of as many sequences as q")
		}
	case k.Batch != batch:
		return shape("the tensors disagree about the number of sequences")
	}
	if o.LenKV < 0 || o.LenKV > keys {
		return shape("LenKV is negative, or more keys than there are")
	}
	if o.LenKV > 0 {
		keys = o.LenKV
	}
	if !v.isNone() && (v.Batch != k.Batch || v.Heads != k.Heads || v.Tokens != k.Tokens) {
		return shape("k and v disagree about a size")
	}
	d.batch, d.heads_kv, d.len_q, d.len_kv = C.int64_t(batch), C.int64_t(k.Heads), C.int64_t(lenQ), C.int64_t(keys)
	d.dim_qk, d.dim_v = C.int64_t(k.Dim), C.int64_t(v.Dim)
	if d.k, d.k_bytes, err = k.c("k"); err != nil {
		return err
	}
	if d.v, d.v_bytes, err = v.c("v"); err != nil {
		return err
	}
	if a.quants.k, err = k.quant("k"); err != nil {
		return err
	}
	if a.quants.v, err = v.quant("v"); err != nil {
		return err
	}
	for _, list := range []struct {
		name string
		is   []int32
		to   **C.int32_t
		more int
	}{
		{"KVLens", o.KVLens, &d.kv_lens, 0}, {"KVStarts", o.KVStarts, &d.kv_starts, 0},
		{"QPositions", o.QPositions, &d.q_positions, 0}, {"CuLenQ", o.CuLenQ, &d.cu_len_q, 1},
		{"CuLenKV", o.CuLenKV, &d.cu_len_kv, 1}, {"BlockTableStart", o.BlockTableStart, &d.block_table_start, 1},
	} {
		if list.is != nil && len(list.is) != batch+list.more {
			return shape(list.name + " is not one number for each sequence, or one more")
		}
		*list.to = pointer[C.int32_t](list.is)
	}
	if o.QPos != nil {
		d.q_pos = C.int64_t(*o.QPos)
	}
	if err := setSpans(d, batch, o.Spans); err != nil {
		return err
	}
	return a.inBounds()
}

// Sequences, and the rows of the longest, of a tensor whose rows may be ragged.
func ragged(starts []int32, t *Tensor, name string) (batch, longest int, err error) {
	if starts == nil {
		return t.Batch, t.Tokens, nil
	}
	if len(starts) == 0 || t.Batch != 1 {
		return 0, 0, shape(name + " is empty, or its tensor has not one batch entry")
	}
	for i, end := range starts {
		if end < 0 || int(end) > t.Tokens || (i > 0 && end < starts[i-1]) {
			return 0, 0, &Error{int(C.FA_ERR_LENGTHS), name + " decreases, is negative, or has more rows than there are"}
		}
		if i > 0 && int(end-starts[i-1]) > longest {
			longest = int(end - starts[i-1])
		}
	}
	return len(starts) - 1, longest, nil
}

// The table of pages; returns for how many keys of a sequence there is room.
func (a *Attention) setPages(batch int, k *Tensor, o *Options) (keys int, err error) {
	d, columns := &a.a, 0
	if start := o.BlockTableStart; start != nil {
		a.bounds = append(a.bounds, bound{"BlockTableStart", start, len(o.BlockTable)})
		for i := 1; i < len(start); i++ {
			if n := int(start[i]) - int(start[i-1]); n > columns {
				columns = n
			}
		}
	} else if batch > 0 {
		if columns = len(o.BlockTable) / batch; columns*batch != len(o.BlockTable) {
			return 0, shape("BlockTable is not one row for each sequence")
		}
	} else if len(o.BlockTable) > 0 {
		return 0, shape("BlockTable is not one row for each sequence")
	}
	d.table_stride, d.page_size, d.num_pages = C.int64_t(columns), C.int64_t(k.Tokens), C.int64_t(k.Batch)
	d.table_head_stride = C.int64_t(o.TableHeadStride)
	if o.TableHeadStride < 0 || (k.Heads > 1 && o.TableHeadStride > columns/(k.Heads-1)) {
		return 0, shape("TableHeadStride is negative, or leads out of BlockTable")
	}
	if k.Heads > 1 {
		columns -= (k.Heads - 1) * o.TableHeadStride
	}
	if k.Tokens > 0 && columns > math.MaxInt/k.Tokens {
		return 0, shape("BlockTable has too many keys")
	}
	// What is NULL would be no table.
	if d.block_table = pointer[C.int32_t](o.BlockTable); d.block_table == nil {
		d.block_table = new(C.int32_t)
	}
	return columns * k.Tokens, nil
}

func setSpans(d *C.fa_attention, batch int, of [][][2]int32) error {
	if of == nil {
		return nil
	}
	if len(of) != batch {
		return shape("Spans is not one list for each sequence")
	}
	var spans []int32
	starts := []int32{0}
	for _, list := range of {
		for _, span := range list {
			spans = append(spans, span[0], span[1])
		}
		if len(spans)/2 > math.MaxInt32 {
			return shape("Spans has too many")
		}
		starts = append(starts, int32(len(spans)/2))
	}
	if len(spans) > 0 {
		d.spans, d.span_starts = pointer[C.int32_t](spans), pointer[C.int32_t](starts)
	}
	return nil
}

// New describes attention of q [batch][heads_q][len_q][dim], k [batch][heads_kv][len_kv][dim] and v
// [batch][heads_kv][len_kv][dim_v] to out [batch][heads_q][len_q][dim_v].
func New(q, k, v, out Tensor, options Options) (*Attention, error) {
	a := &Attention{pool: options.Pool, workspace: options.Workspace}
	if err := a.set(&q, &k, &v, &out, &options); err != nil {
		return nil, err
	}
	return a, nil
}

func (a *Attention) set(q, k, v, out *Tensor, o *Options) (err error) {
	if out.Batch != q.Batch || out.Heads != q.Heads || out.Tokens != q.Tokens || k.Dim != q.Dim || out.Dim != v.Dim ||
		v.Heads != k.Heads {
		return shape("the tensors disagree about a size")
	}
	if err := describe(a, q, k, v, o); err != nil {
		return err
	}
	d := &a.a
	d.heads_q = C.int64_t(q.Heads)
	if d.q, d.q_bytes, err = q.c("q"); err != nil {
		return err
	}
	if a.quants.q, err = q.quant("q"); err != nil {
		return err
	}
	if d.o, d.o_bytes, err = out.c("out"); err != nil {
		return err
	}
	if a.quants.o, err = out.quant("out"); err != nil {
		return err
	}
	d.scale, d.softcap, d.prefix_keys = C.float(o.Scale), C.float(o.Softcap), C.int64_t(o.PrefixKeys)
	d.block_q, d.block_kv = C.int64_t(o.BlockQ), C.int64_t(o.BlockKV)
	for _, flag := range []struct {
		on   bool
		flag C.uint32_t
	}{{o.MaskTimesSlope, C.FA_MASK_TIMES_SLOPE}, {o.Precise, C.FA_PRECISE}, {o.Fast, C.FA_FAST}} {
		if flag.on {
			d.flags |= flag.flag
		}
	}
	if o.Window < 0 || o.LookAhead < 0 || (o.LookAhead > 0 && !o.Causal) {
		return &Error{int(C.FA_ERR_WINDOW), "Window or LookAhead is negative, or LookAhead is without Causal"}
	}
	if o.Causal {
		d.window_right = C.int64_t(o.LookAhead)
	}
	if o.Window > 0 {
		d.window_left = C.int64_t(o.Window) - 1
	}
	if err := a.setMasks(o); err != nil {
		return err
	}
	if err := a.setOutputs(o); err != nil {
		return err
	}
	return a.inBounds()
}

func (a *Attention) setMasks(o *Options) (err error) {
	d := &a.a
	batch, heads, lenQ := int(d.batch), int(d.heads_q), int(d.len_q)
	if mask := &o.Mask; !mask.isNone() {
		is, wanted := [3]int{mask.Batch, mask.Heads, mask.Tokens}, [3]int{batch, heads, lenQ}
		for i := range is {
			if is[i] != 1 && is[i] != wanted[i] {
				return shape("the mask is neither of the size of q nor of size 1")
			}
		}
		if mask.Dim != int(d.len_kv) || mask.Quant != nil {
			return shape("a row of the mask is not one element for each key, or has scales")
		}
		if d.mask, d.mask_bytes, err = mask.c("the mask"); err != nil {
			return err
		}
	}
	switch n := len(o.ALiBiSlopes); {
	case o.ALiBiSlopes == nil || n == heads:
	case n == batch*heads:
		d.alibi_batch_stride = d.heads_q
	default:
		return shape("ALiBiSlopes is not one number for each head, or sequence and head")
	}
	if o.Sinks != nil && len(o.Sinks) != heads {
		return shape("Sinks is not one number for each head")
	}
	d.alibi_slopes, d.sinks = pointer[C.float](o.ALiBiSlopes), pointer[C.float](o.Sinks)
	blocks := func(n C.int64_t, of int) int { return (int(n) + of - 1) / of }
	if m := o.BlockMask; m != nil {
		if m.Q < 1 || m.KV < 1 || m.Q > math.MaxInt32 || m.KV > math.MaxInt32 {
			return shape("blocks of BlockMask have an impossible size")
		}
		extents := []int{batch, heads, blocks(d.len_q, m.Q), blocks(d.len_kv, m.KV)}
		if !fits(len(m.Visible), extents, []int{m.Stride[0], m.Stride[1], m.Stride[2], 1}) {
			return shape("BlockMask has more blocks than its slice, or a negative stride")
		}
		d.block_mask = pointer[C.uint8_t](m.Visible)
		d.block_mask_q, d.block_mask_kv = C.int64_t(m.Q), C.int64_t(m.KV)
		for i, stride := range m.Stride {
			d.block_mask_stride[i] = C.int64_t(stride)
		}
	}
	if kept := o.Kept; kept != nil {
		if kept.Q < 1 || kept.KV < 1 || kept.Q > math.MaxInt32 || kept.KV > math.MaxInt32 {
			return shape("blocks of Kept have an impossible size")
		}
		if err := a.checkEntries("Kept", kept.Start, kept.Blocks, kept.Heads, kept.Stride, blocks(d.len_q, kept.Q)); err != nil {
			return err
		}
		d.kept_start, d.kept_blocks = pointer[C.int32_t](kept.Start), pointer[C.int32_t](kept.Blocks)
		d.kept_stride = [2]C.int64_t{C.int64_t(kept.Stride[0]), C.int64_t(kept.Stride[1])}
		d.kept_heads, d.kept_q, d.kept_kv = C.int64_t(kept.Heads), C.int64_t(kept.Q), C.int64_t(kept.KV)
	}
	if columns := o.Columns; columns != nil {
		if err := a.checkEntries("Columns", columns.Start, columns.Keys, columns.Heads, columns.Stride, 1); err != nil {
			return err
		}
		d.column_start, d.columns = pointer[C.int32_t](columns.Start), pointer[C.int32_t](columns.Keys)
		d.column_stride = [2]C.int64_t{C.int64_t(columns.Stride[0]), C.int64_t(columns.Stride[1])}
		d.column_heads = C.int64_t(columns.Heads)
	}
	return nil
}

// Whether all lists lie within their slices: each head has numbers of them, and one more start.
func (a *Attention) checkEntries(name string, start, entries []int32, heads int, stride [2]int, lists int) error {
	if heads == 0 {
		heads = int(a.a.heads_q)
	}
	if !fits(len(start), []int{int(a.a.batch), heads, lists + 1}, []int{stride[0], stride[1], 1}) {
		return shape(name + " has more lists than its slice, or a negative stride")
	}
	a.bounds = append(a.bounds, bound{name, start, len(entries)})
	return nil
}

func (a *Attention) setOutputs(o *Options) (err error) {
	d := &a.a
	rows := int(d.len_q)
	if o.CuLenQ != nil {
		rows = int(o.CuLenQ[len(o.CuLenQ)-1])
	}
	if o.LSE != nil {
		entries := int(d.batch)
		if o.CuLenQ != nil {
			entries = 1
		}
		extents, stride := []int{entries, int(d.heads_q), rows}, o.LSEStride
		if stride == ([3]int{}) {
			stride = [3]int{int(d.heads_q) * rows, rows, 1}
		}
		if rows > 0 && entries > 0 && d.heads_q > 0 && !fits(len(o.LSE), extents, stride[:]) {
			return shape("LSE has less than one number for each row of q, or a negative stride")
		}
		d.lse, d.lse_bytes = pointer[C.float](o.LSE), C.int64_t(len(o.LSE))*4
		for i := range stride {
			d.lse_stride[i] = C.int64_t(stride[i])
		}
	}
	heads, lenQ := int(d.heads_q), int(d.len_q)
	if o.WeightHeads != nil {
		heads = len(o.WeightHeads)
	}
	if o.WeightRows != nil {
		lenQ = len(o.WeightRows)
	}
	if w := &o.Weights; !w.isNone() {
		if [4]int{w.Batch, w.Heads, w.Tokens, w.Dim} != [4]int{int(d.batch), heads, lenQ, int(d.len_kv)} || w.Type != F32 {
			return shape("the weights are not one float32 for each sequence, head, row and key")
		}
		if d.weights, d.weights_bytes, err = w.c("the weights"); err != nil {
			return err
		}
	}
	if len(o.WeightHeads) > 0 || len(o.WeightRows) > 0 || !o.Weights.isNone() {
		d.num_weight_heads, d.num_weight_rows = C.int64_t(heads), C.int64_t(lenQ)
	}
	d.weight_heads, d.weight_rows = pointer[C.int32_t](o.WeightHeads), pointer[C.int32_t](o.WeightRows)
	return nil
}

// Run writes attention of q [batch][heads_q][len_q][dim], k [batch][heads_kv][len_kv][dim] and v
// [batch][heads_kv][len_kv][dim_v] to out [batch][heads_q][len_q][dim_v]. On errors out is as it
// was. Any number of goroutines may call it at once, with outputs and workspaces of their own.
func Run(q, k, v, out Tensor, options Options) error {
	a, err := New(q, k, v, out, options)
	if err != nil {
		return err
	}
	return a.Run()
}

// Run computes it. A workspace grows where it is too small.
func (a *Attention) Run() error {
	if err := a.inBounds(); err != nil {
		return err
	}
	pool, done := a.pool.enter()
	defer done()
	status := a.call(pool)
	if status == C.FA_ERR_WORKSPACE && a.grow(pool) {
		status = a.call(pool)
	}
	if status == C.FA_OK {
		return nil
	}
	why, said := a.explain(pool)
	if said != status {
		why = "" // of an error that no check foresees
	}
	return failed(status, why)
}

// CheckRun says whether Run would be refused and why, or how it computes, with its pool and
// workspace, and warnings. Its words may change in any version.
func (a *Attention) CheckRun() (string, error) {
	if err := a.inBounds(); err != nil {
		return "", err
	}
	pool, done := a.pool.enter()
	defer done()
	a.grow(pool)
	why, status := a.explain(pool)
	if status != C.FA_OK {
		return "", failed(status, why)
	}
	return why, nil
}

func (a *Attention) call(pool *C.fa_pool) uint32 {
	if a.workspace == nil {
		return C.fa_go_run(a.a, a.quants, true, nil, 0, pool)
	}
	memory := a.workspace.memory
	return C.fa_go_run(a.a, a.quants, false, unsafe.Pointer(pointer[C.char](memory)), C.size_t(len(memory)), pool)
}

func (a *Attention) explain(pool *C.fa_pool) (string, uint32) {
	var why words
	var memory []byte
	if a.workspace != nil {
		memory = a.workspace.memory
	}
	status := C.fa_go_check_run(a.a, a.quants, C.bool(a.workspace == nil), unsafe.Pointer(pointer[C.char](memory)),
		C.size_t(len(memory)), pool, &why[0], C.size_t(len(why)))
	return C.GoString(&why[0]), status
}

// Makes the workspace large enough; false if there is none.
func (a *Attention) grow(pool *C.fa_pool) bool {
	if a.workspace == nil {
		return false
	}
	n, err := a.WorkspaceBytes(int(C.fa_go_width(pool)))
	if err == nil {
		a.workspace.Reserve(n)
	}
	return err == nil
}

// Check says whether it can be computed and why not, or how, on the calling thread, and warnings.
func (a *Attention) Check() (string, error) {
	if err := a.inBounds(); err != nil {
		return "", err
	}
	var why words
	status := C.fa_go_check(a.a, a.quants, &why[0], C.size_t(len(why)))
	if err := why.failed(status); err != nil {
		return "", err
	}
	return C.GoString(&why[0]), nil
}

// Plan is how a problem is computed: the fields of fa_plan.
type Plan struct {
	ISA, Compute                                                     string
	Decode                                                           bool // path: for few query rows
	Threads, ThreadsAwake                                            int
	KStaged, VStaged                                                 bool
	TileHeads, TileKVHeads, TileRows, TileKeys, WorkItems, KeyRanges int
	ThreadBytes, WorkspaceBytes                                      int
}

// Plan says how Run computes it with so many threads; 0 = those of its pool.
func (a *Attention) Plan(parts int) (Plan, error) {
	if err := a.inBounds(); err != nil {
		return Plan{}, err
	}
	if parts == 0 {
		pool, done := a.pool.enter()
		parts = int(C.fa_go_width(pool))
		done()
	}
	var p C.fa_plan
	if status := C.fa_go_plan(a.a, a.quants, number(parts), &p); status != C.FA_OK {
		return Plan{}, failed(status, "")
	}
	return Plan{
		ISA: C.GoString(p.isa), Compute: C.GoString(p.compute), Decode: p.path == C.FA_PATH_DECODE,
		Threads: int(p.threads), ThreadsAwake: int(p.threads_awake), KStaged: p.k_staged != 0, VStaged: p.v_staged != 0,
		TileHeads: int(p.tile_heads), TileKVHeads: int(p.tile_kv_heads), TileRows: int(p.tile_rows),
		TileKeys: int(p.tile_keys), WorkItems: int(p.work_items), KeyRanges: int(p.key_ranges),
		ThreadBytes: int(p.thread_bytes), WorkspaceBytes: int(p.workspace_bytes),
	}, nil
}

// WorkspaceBytes is how large a workspace must be for so many parts, 1 to 256.
func (a *Attention) WorkspaceBytes(parts int) (int, error) {
	if err := a.inBounds(); err != nil {
		return 0, err
	}
	var bytes C.size_t
	status := C.fa_go_workspace(a.a, a.quants, number(parts), &bytes)
	return int(bytes), failed(status, "")
}

// WorkspaceBytesMax is what is enough for every number of parts up to maxParts.
func (a *Attention) WorkspaceBytesMax(maxParts int) (int, error) {
	if err := a.inBounds(); err != nil {
		return 0, err
	}
	var bytes C.size_t
	status := C.fa_go_workspace_max(a.a, a.quants, number(maxParts), &bytes)
	return int(bytes), failed(status, "")
}

// Part computes one of so many parts, 1 to 256, on the calling thread, for goroutines of your own:
// one call for each part, in any order or at once, then one of Finish for each, after all have
// returned. They share a workspace, of WorkspaceBytes(parts), which is for them alone meanwhile.
func (a *Attention) Part(workspace *Workspace, part, parts int) error {
	return a.part(workspace, part, parts, false)
}

// Finish completes what Part has begun.
func (a *Attention) Finish(workspace *Workspace, part, parts int) error {
	return a.part(workspace, part, parts, true)
}

func (a *Attention) part(workspace *Workspace, part, parts int, finish bool) error {
	if err := a.inBounds(); err != nil {
		return err
	}
	memory := unsafe.Pointer(pointer[C.char](workspace.memory))
	status := C.fa_go_part(a.a, a.quants, memory, C.size_t(len(workspace.memory)), number(part), number(parts), C.bool(finish))
	runtime.KeepAlive(workspace)
	return failed(status, "")
}

// A number that C's would cut off becomes one that is refused.
func number(n int) C.int32_t {
	if n < math.MinInt32 || n > math.MaxInt32 {
		return -1
	}
	return C.int32_t(n)
}
