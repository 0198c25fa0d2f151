// Package attention calls flash_attention on slices. CGO_CFLAGS says where the header is,
// CGO_LDFLAGS where the library is; -tags static links the static one.
package attention

/*
#cgo !static LDFLAGS: -lflash_attention
#cgo static LDFLAGS: -l:libflash_attention.a -lgcc_s -lutil -lrt -lpthread -lm -ldl -lc
#include <flash_attention.h>
#include <stdlib.h>

// Strides of up to six tensors, of what has several, and what else is a number.
typedef struct sizes {
	int64_t batch, heads_q, heads_kv, len_q, len_kv, dim_qk, dim_v, window_left, window_right, prefix_keys, stride[6][3],
		num_weight_heads, num_weight_rows, table_stride, page_size, num_pages;
	int32_t stride_dim[6], dtype[6];
	float scale;
} sizes;

static fa_tensor tensor(const sizes *s, int i, const void *data)
{
	fa_tensor t = {.data = (void *)data, .stride_dim = s->stride_dim[i], .dtype = s->dtype[i]};
	for (int axis = 0; axis < 3; axis++)
		t.stride[axis] = s->stride[i][axis];
	return t;
}

static void set_pages(fa_attention *a, const sizes *s, const int32_t *block_table)
{
	if (block_table == NULL)
		return;
	a->block_table = block_table, a->table_stride = s->table_stride;
	a->page_size = s->page_size, a->num_pages = s->num_pages;
}

// Go memory that is passed to C must not hold pointers to other Go memory, so the description is
// made here, of pointers that are arguments of their own.
static fa_status run(const sizes *s, const void *q, const void *k, const void *v, void *out, const void *mask,
                     const int32_t *kv_lens, const int32_t *kv_starts, const int32_t *q_positions,
                     const int32_t *block_table, const int32_t *spans, const int32_t *span_starts, float *lse, void *weights,
                     const int32_t *weight_heads, const int32_t *weight_rows, char *why, size_t why_size)
{
	fa_attention a;
	size_t bytes = 0;
	void *ws = NULL;
	fa_status status = fa_attention_init(&a, sizeof a);
	if (status != FA_OK)
		return status;
	a.batch = s->batch, a.heads_q = s->heads_q, a.heads_kv = s->heads_kv, a.len_q = s->len_q, a.len_kv = s->len_kv;
	a.dim_qk = s->dim_qk, a.dim_v = s->dim_v, a.scale = s->scale;
	a.window_left = s->window_left, a.window_right = s->window_right;
	a.q = tensor(s, 0, q), a.k = tensor(s, 1, k), a.v = tensor(s, 2, v), a.o = tensor(s, 3, out), a.mask = tensor(s, 4, mask);
	a.kv_lens = kv_lens, a.kv_starts = kv_starts, a.q_positions = q_positions, a.prefix_keys = s->prefix_keys;
	a.spans = spans, a.span_starts = span_starts;
	a.lse = lse, a.lse_stride[0] = s->heads_q * s->len_q, a.lse_stride[1] = s->len_q, a.lse_stride[2] = 1;
	a.weights = tensor(s, 5, weights), a.weight_heads = weight_heads, a.weight_rows = weight_rows;
	a.num_weight_heads = s->num_weight_heads, a.num_weight_rows = s->num_weight_rows;
	set_pages(&a, s, block_table);
	status = fa_attention_workspace(&a, 1, &bytes);
	if (status == FA_OK && bytes > 0 && (ws = malloc(bytes)) == NULL)
		status = FA_ERR_MEMORY;
	if (status == FA_OK)
		status = fa_attention_run(&a, ws, bytes, NULL);
	if (status != FA_OK)
		fa_attention_check(&a, why, why_size);
	free(ws);
	return status;
}

// Tensors are those of new keys and values, and then of the cache.
static fa_status append(const sizes *s, const void *new_k, const void *new_v, void *k, void *v, const int32_t *kv_lens,
                        const int32_t *kv_starts, const int32_t *q_positions, const int32_t *block_table, char *why,
                        size_t why_size)
{
	fa_attention a;
	fa_tensor rows[2] = {tensor(s, 0, new_k), tensor(s, 1, new_v)};
	fa_status status = fa_attention_init(&a, sizeof a);
	if (status != FA_OK)
		return status;
	a.batch = s->batch, a.heads_kv = s->heads_kv, a.len_q = s->len_q, a.len_kv = s->len_kv;
	a.dim_qk = s->dim_qk, a.dim_v = s->dim_v;
	a.k = tensor(s, 2, k), a.v = tensor(s, 3, v);
	a.kv_lens = kv_lens, a.kv_starts = kv_starts, a.q_positions = q_positions;
	set_pages(&a, s, block_table);
	return fa_cache_append(&a, &rows[0], &rows[1], why, why_size);
}

static fa_status quantize(const sizes *s, const void *src, void *dst)
{
	fa_tensor from = tensor(s, 0, src), to = tensor(s, 1, dst);
	return fa_quantize(&from, s->batch, s->heads_kv, s->len_kv, s->dim_qk, &to);
}
*/
import "C"

import (
	"fmt"
	"math"
	"unsafe"
)

// Tensor is [batch][head][token][dim] in a slice. Strides count ELEMENTS, from one batch entry,
// head, token to the next; StrideDim those from one element of a row to the next: 0 = 1 =
// neighbours, and more in K and V only.
type Tensor struct {
	Data                      []float32
	Batch, Heads, Tokens, Dim int
	Stride                    [3]int
	StrideDim                 int
	// In place of Data, if Type is not F32: its blocks. Dim and all strides are multiples of 32
	// then.
	Blocks []byte
	Type   Type
}

// Type is how numbers are stored: as float32, or in blocks of 32 as ggml has them.
type Type int32

const (
	F32    Type = C.FA_DTYPE_F32
	Q8_0   Type = C.FA_DTYPE_Q8_0
	Q4_0   Type = C.FA_DTYPE_Q4_0
	Q4_1   Type = C.FA_DTYPE_Q4_1
	Q5_0   Type = C.FA_DTYPE_Q5_0
	Q5_1   Type = C.FA_DTYPE_Q5_1
	IQ4_NL Type = C.FA_DTYPE_IQ4_NL
)

// Block is how many elements and bytes a block has: 1 and 4 of F32, else 32 and 18 to 34. No type
// has 0 bytes.
func (t Type) Block() (elements, bytes int) {
	switch t {
	case F32:
		return 1, 4
	case Q8_0:
		return 32, 34
	case Q4_0, IQ4_NL:
		return 32, 18
	case Q4_1:
		return 32, 20
	case Q5_0:
		return 32, 22
	case Q5_1:
		return 32, 24
	}
	return 32, 0
}

// InBlocks is the tensor, but of another type, in blocks: InBlocks(HeadFirst(nil, 1, 2, 100, 64),
// Q8_0, bytes).
func InBlocks(t Tensor, of Type, blocks []byte) Tensor {
	t.Data, t.Blocks, t.Type = nil, blocks, of
	return t
}

// HeadFirst is dense [batch][head][token][dim].
func HeadFirst(data []float32, batch, heads, tokens, dim int) Tensor {
	return Tensor{Data: data, Batch: batch, Heads: heads, Tokens: tokens, Dim: dim,
		Stride: [3]int{heads * tokens * dim, tokens * dim, dim}, StrideDim: 1}
}

// TokenFirst is dense [batch][token][head][dim], as the projections of a model make it.
func TokenFirst(data []float32, batch, tokens, heads, dim int) Tensor {
	return Tensor{Data: data, Batch: batch, Heads: heads, Tokens: tokens, Dim: dim,
		Stride: [3]int{tokens * heads * dim, dim, heads * dim}, StrideDim: 1}
}

// Transposed is dense [batch][head][dim][token]: K or V of a transposed cache.
func Transposed(data []float32, batch, heads, dim, tokens int) Tensor {
	return Tensor{Data: data, Batch: batch, Heads: heads, Tokens: tokens, Dim: dim,
		Stride: [3]int{heads * dim * tokens, dim * tokens, 1}, StrideDim: tokens}
}

// ScaleZero is a scale as good as 0.
const ScaleZero = C.FA_SCALE_ZERO

// Options: the zero value is attention of every query to every key, with a scale of 1/sqrt(dim).
type Options struct {
	// Multiplied to every dot product; 0 = 1/sqrt(dim), ScaleZero weighs all keys that a row sees
	// alike.
	Scale float32
	// The last query is on the last key, and none sees a later one.
	Causal bool
	// How many keys up to its own position a query sees; 0 = all.
	Window int
	// Added to the scores, -Inf hides a key: [batch or 1][heads_q or 1][len_q or 1][len_kv].
	// Without data: none.
	Mask Tensor
	// How many keys of each sequence are in use, the first ones; nil = all.
	KVLens []int32
	// The first key of each sequence that any row sees (left padding, dropped keys); nil = 0.
	KVStarts []int32
	// The key position of query 0 of each sequence; nil = the last query is on the last key.
	QPositions []int32
	// K and V are pages, [page][heads_kv][tokens of a page][dim]: those of each sequence, in the
	// order of its keys, in rows of the same length. Of pages without keys in use anything may
	// stand there. nil = no pages.
	BlockTable [][]int32
	// How many first keys are seen beside the window.
	PrefixKeys int
	// Of each sequence, keys that see each other both ways, whatever the window: the first, and the
	// one behind the last, ascending and disjoint; nil = none.
	Spans [][][2]int32
	// Where to put the logarithm of each row's sum of exponentials: [batch][heads_q][len_q]; nil =
	// nowhere.
	LSE []float32
	// Where to put the probabilities of all keys: [batch][heads_q][len_q][len_kv], or of the heads
	// and rows of lists. Without data: nowhere.
	Weights Tensor
	// The query heads and rows whose probabilities are wanted, ascending; rows that are negative
	// count from the end; nil = all.
	WeightHeads, WeightRows []int32
}

// Error is what the library refuses; Status is a value of fa_status.
type Error struct {
	Status int
	Why    string
}

func (e *Error) Error() string { return "flash_attention: " + e.Why }

// Whether all elements lie within the slice, without computing what may overflow.
func (t *Tensor) check(name string) error {
	const most = math.MaxInt / 8
	extents := [3]int{t.Batch, t.Heads, t.Tokens}
	if t.Batch < 0 || t.Heads < 0 || t.Tokens < 0 || t.Dim < 0 {
		return fmt.Errorf("flash_attention: a size of %s is negative", name)
	}
	block, bytes := t.Type.Block()
	if bytes == 0 {
		return fmt.Errorf("flash_attention: the type of %s is unknown", name)
	}
	if t.isEmpty() {
		return nil
	}
	elements := len(t.Data)
	if t.Type != F32 {
		elements = len(t.Blocks) / bytes * block
		if t.Dim%block != 0 || t.apart() != 1 {
			return fmt.Errorf("flash_attention: rows of %s are no whole blocks", name)
		}
	}
	apart := t.apart()
	if apart < 0 || apart > math.MaxInt32/4 {
		return fmt.Errorf("flash_attention: the stride of elements of %s is negative or too large", name)
	}
	if t.Dim-1 > elements/apart {
		return fmt.Errorf("flash_attention: %s has more elements than its slice", name)
	}
	room := elements - 1 - (t.Dim-1)*apart
	for i, n := range extents {
		if n == 1 {
			continue
		}
		if t.Stride[i] < 0 || t.Stride[i] > most || t.Stride[i]%block != 0 {
			return fmt.Errorf("flash_attention: a stride of %s is negative, too large or not of whole blocks", name)
		}
		if t.Stride[i] > 0 && n-1 > room/t.Stride[i] {
			room = -1
			break
		}
		room -= (n - 1) * t.Stride[i]
	}
	if room < 0 {
		return fmt.Errorf("flash_attention: %s has more elements than its slice", name)
	}
	return nil
}

// What the library is to read or write.
func (t *Tensor) data() unsafe.Pointer {
	if t.Type == F32 {
		return unsafe.Pointer(pointer[C.float](t.Data))
	}
	return unsafe.Pointer(pointer[C.char](t.Blocks))
}

func pointer[To, From any](x []From) *To {
	if len(x) == 0 {
		return nil
	}
	return (*To)(unsafe.Pointer(&x[0]))
}

// Elements from one of a row to the next.
func (t *Tensor) apart() int {
	if t.StrideDim == 0 || t.Dim <= 1 {
		return 1
	}
	return t.StrideDim
}

func (t *Tensor) isEmpty() bool { return t.Batch == 0 || t.Heads == 0 || t.Tokens == 0 || t.Dim == 0 }

func shape(why string) error { return &Error{int(C.FA_ERR_SHAPE), why} }

// Checks tensors and gives their strides and types to C.
func set(s *C.sizes, tensors []*Tensor, names []string) error {
	for i, t := range tensors {
		if err := t.check(names[i]); err != nil {
			return err
		}
		block, bytes := t.Type.Block()
		s.dtype[i] = C.int32_t(t.Type)
		if t.Type == F32 && !t.isEmpty() {
			s.stride_dim[i] = C.int32_t(4 * t.apart())
		}
		extents := [3]int{t.Batch, t.Heads, t.Tokens}
		for axis, stride := range t.Stride {
			if extents[axis] > 1 {
				s.stride[i][axis] = C.int64_t(stride / block * bytes)
			}
		}
	}
	return nil
}

// Checks the table of pages k, and gives it to C: its numbers in one list, and how many keys a
// sequence has.
func setPages(s *C.sizes, table [][]int32, k *Tensor, sequences int) (list []int32, keys int, err error) {
	if table == nil {
		return nil, k.Tokens, nil
	}
	if len(table) != sequences {
		return nil, 0, shape("BlockTable is not one row for each sequence")
	}
	columns := 0
	for b, row := range table {
		if b > 0 && len(row) != columns {
			return nil, 0, shape("rows of BlockTable are not of the same length")
		}
		columns = len(row)
		list = append(list, row...)
	}
	if k.Tokens > 0 && columns > math.MaxInt/k.Tokens {
		return nil, 0, shape("BlockTable has too many keys")
	}
	s.table_stride, s.page_size, s.num_pages = C.int64_t(columns), C.int64_t(k.Tokens), C.int64_t(k.Batch)
	// What is NULL would be no table.
	return append(list, 0), columns * k.Tokens, nil
}

func failed(status C.fa_status, why string) error {
	if status == C.FA_OK {
		return nil
	}
	if why == "" {
		why = C.GoString(C.fa_status_string(C.int32_t(status)))
	}
	return &Error{int(status), why}
}

// Quantize writes src, of float32, in the type of dst, whose sizes are the same. All machines write
// the same bytes, those of ggml's reference functions. On errors dst is as it was.
func Quantize(src, dst Tensor) error {
	var s C.sizes
	if err := set(&s, []*Tensor{&src, &dst}, []string{"src", "dst"}); err != nil {
		return err
	}
	if [4]int{src.Batch, src.Heads, src.Tokens, src.Dim} != [4]int{dst.Batch, dst.Heads, dst.Tokens, dst.Dim} {
		return shape("src and dst disagree about a size")
	}
	s.batch, s.heads_kv, s.len_kv = C.int64_t(src.Batch), C.int64_t(src.Heads), C.int64_t(src.Tokens)
	s.dim_qk = C.int64_t(src.Dim)
	return failed(C.quantize(&s, src.data(), dst.data()), "")
}

// Append writes new keys and values [batch][heads_kv][new][dim], of float32, into the cache k and v
// [batch][heads_kv][len_kv][dim], in the types that it has, where the queries of the Run that
// follows stand: by default they are the last of KVLens, which count them. Of options it looks at
// KVLens, KVStarts, QPositions and BlockTable; a page that is written must be in one row, once. On
// errors the cache is as it was. Goroutines may call it at once for different sequences or heads of
// one cache.
func Append(k, v, newK, newV Tensor, options Options) error {
	var s C.sizes
	tensors := []*Tensor{&newK, &newV, &k, &v}
	if err := set(&s, tensors, []string{"newK", "newV", "k", "v"}); err != nil {
		return err
	}
	table, keys, err := setPages(&s, options.BlockTable, &k, newK.Batch)
	if err != nil {
		return err
	}
	if newV.Batch != newK.Batch || newV.Heads != newK.Heads || newV.Tokens != newK.Tokens || k.Heads != newK.Heads ||
		k.Dim != newK.Dim || v.Dim != newV.Dim || v.Batch != k.Batch || v.Heads != k.Heads || v.Tokens != k.Tokens ||
		(options.BlockTable == nil && k.Batch != newK.Batch) {
		return shape("the tensors disagree about a size")
	}
	if err := options.checkLists(newK.Batch); err != nil {
		return err
	}
	s.batch, s.heads_kv, s.len_q, s.len_kv = C.int64_t(newK.Batch), C.int64_t(k.Heads), C.int64_t(newK.Tokens), C.int64_t(keys)
	s.dim_qk, s.dim_v = C.int64_t(k.Dim), C.int64_t(v.Dim)
	var why [256]C.char
	status := C.append(&s, newK.data(), newV.data(), k.data(), v.data(), pointer[C.int32_t](options.KVLens),
		pointer[C.int32_t](options.KVStarts), pointer[C.int32_t](options.QPositions), pointer[C.int32_t](table), &why[0],
		C.size_t(len(why)))
	return failed(status, C.GoString(&why[0]))
}

// Lists have a number for each sequence.
func (options *Options) checkLists(sequences int) error {
	lists := map[string][]int32{"KVLens": options.KVLens, "KVStarts": options.KVStarts, "QPositions": options.QPositions}
	for name, list := range lists {
		if list != nil && len(list) != sequences {
			return shape(name + " is not one number for each sequence")
		}
	}
	return nil
}

// Run writes attention of q [batch][heads_q][len_q][dim], k [batch][heads_kv][len_kv][dim] and v
// [batch][heads_kv][len_kv][dim_v] to out [batch][heads_q][len_q][dim_v], on the calling thread. On
// errors out is as it was. Any number of goroutines may call it at once, with outputs of their own.
func Run(q, k, v, out Tensor, options Options) error {
	mask, weights := options.Mask, options.Weights
	s := C.sizes{scale: C.float(options.Scale), window_left: C.FA_NO_LIMIT, window_right: C.FA_NO_LIMIT}
	tensors, names := []*Tensor{&q, &k, &v, &out, &mask, &weights}, []string{"q", "k", "v", "out", "the mask", "the weights"}
	if err := set(&s, tensors, names); err != nil {
		return err
	}
	table, keys, err := setPages(&s, options.BlockTable, &k, q.Batch)
	if err != nil {
		return err
	}
	if (table == nil && k.Batch != q.Batch) || v.Batch != k.Batch || out.Batch != q.Batch || v.Heads != k.Heads || out.Heads != q.Heads ||
		v.Tokens != k.Tokens || out.Tokens != q.Tokens || k.Dim != q.Dim || out.Dim != v.Dim {
		return shape("the tensors disagree about a size")
	}
	if mask.Type != F32 || weights.Type != F32 {
		return shape("masks and weights are of float32")
	}
	if mask.Data != nil {
		is, wanted := [3]int{mask.Batch, mask.Heads, mask.Tokens}, [3]int{q.Batch, q.Heads, q.Tokens}
		for i := range is {
			if is[i] != 1 && is[i] != wanted[i] {
				return shape("the mask is neither of the size of q nor of size 1")
			}
		}
		if mask.Dim != keys {
			return shape("a row of the mask is not one element for each key")
		}
	}
	weightHeads, weightRows := q.Heads, q.Tokens
	if options.WeightHeads != nil {
		weightHeads = len(options.WeightHeads)
	}
	if options.WeightRows != nil {
		weightRows = len(options.WeightRows)
	}
	if weights.Data != nil {
		is := [4]int{weights.Batch, weights.Heads, weights.Tokens, weights.Dim}
		if is != [4]int{q.Batch, weightHeads, weightRows, keys} {
			return shape("the weights are not one number for each sequence, head, row and key")
		}
	}
	if len(options.WeightHeads) > 0 || len(options.WeightRows) > 0 || weights.Data != nil {
		s.num_weight_heads, s.num_weight_rows = C.int64_t(weightHeads), C.int64_t(weightRows)
	}
	if err := options.checkLists(q.Batch); err != nil {
		return err
	}
	var spans, spanStarts []int32
	if options.Spans != nil {
		if len(options.Spans) != q.Batch {
			return shape("Spans is not one list for each sequence")
		}
		spanStarts = append(spanStarts, 0)
		for _, list := range options.Spans {
			for _, span := range list {
				spans = append(spans, span[0], span[1])
			}
			if len(spans)/2 > math.MaxInt32 {
				return shape("Spans has too many")
			}
			spanStarts = append(spanStarts, int32(len(spans)/2))
		}
		if len(spans) == 0 {
			spanStarts = nil
		}
	}
	if rows := q.Batch * q.Heads * q.Tokens; options.LSE != nil && !q.isEmpty() && len(options.LSE) != rows {
		return shape("LSE is not one number for each row of q")
	}
	s.batch, s.heads_q, s.heads_kv = C.int64_t(q.Batch), C.int64_t(q.Heads), C.int64_t(k.Heads)
	s.len_q, s.len_kv = C.int64_t(q.Tokens), C.int64_t(keys)
	s.dim_qk, s.dim_v = C.int64_t(q.Dim), C.int64_t(v.Dim)
	s.prefix_keys = C.int64_t(options.PrefixKeys)
	if options.Causal {
		s.window_right = 0
	}
	if options.Window != 0 {
		s.window_left = C.int64_t(options.Window) - 1
		if options.Window < 0 {
			return &Error{int(C.FA_ERR_WINDOW), "the window is negative"}
		}
	}
	var why [256]C.char
	status := C.run(&s, q.data(), k.data(), v.data(), out.data(), mask.data(), pointer[C.int32_t](options.KVLens),
		pointer[C.int32_t](options.KVStarts), pointer[C.int32_t](options.QPositions), pointer[C.int32_t](table),
		pointer[C.int32_t](spans), pointer[C.int32_t](spanStarts), pointer[C.float](options.LSE), weights.data(),
		pointer[C.int32_t](options.WeightHeads), pointer[C.int32_t](options.WeightRows), &why[0], C.size_t(len(why)))
	return failed(status, C.GoString(&why[0]))
}
