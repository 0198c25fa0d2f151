// Package attention calls flash_attention on slices. CGO_CFLAGS says where the header is, CGO_LDFLAGS where the
// library is; -tags static links the static one.
package attention

/*
#cgo !static LDFLAGS: -lflash_attention
#cgo static LDFLAGS: -l:libflash_attention.a -lgcc_s -lutil -lrt -lpthread -lm -ldl -lc
#include <flash_attention.h>
#include <stdlib.h>

typedef struct sizes {
	int64_t batch, heads_q, heads_kv, len_q, len_kv, dim_qk, dim_v, window_left, window_right, prefix_keys, stride[6][3],
		num_weight_heads, num_weight_rows;
	int32_t stride_dim[6];
	float scale;
} sizes;

// Go memory that is passed to C must not hold pointers to other Go memory, so the description is made here, of
// pointers that are arguments of their own.
static fa_status run(const sizes *s, const float *q, const float *k, const float *v, float *out, const float *mask,
                     const int32_t *kv_lens, const int32_t *kv_starts, const int32_t *q_positions,
                     const int32_t *spans, const int32_t *span_starts, float *lse, float *weights,
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
	a.q.data = (void *)q, a.k.data = (void *)k, a.v.data = (void *)v, a.o.data = out, a.mask.data = (void *)mask;
	a.kv_lens = kv_lens, a.kv_starts = kv_starts, a.q_positions = q_positions, a.prefix_keys = s->prefix_keys;
	a.spans = spans, a.span_starts = span_starts;
	a.lse = lse, a.lse_stride[0] = s->heads_q * s->len_q, a.lse_stride[1] = s->len_q, a.lse_stride[2] = 1;
	a.weights.data = weights, a.weight_heads = weight_heads, a.weight_rows = weight_rows;
	a.num_weight_heads = s->num_weight_heads, a.num_weight_rows = s->num_weight_rows;
	fa_tensor *tensors[6] = {&a.q, &a.k, &a.v, &a.o, &a.mask, &a.weights};
	for (int t = 0; t < 6; t++) {
		for (int axis = 0; axis < 3; axis++)
			tensors[t]->stride[axis] = s->stride[t][axis];
		tensors[t]->stride_dim = s->stride_dim[t];
	}
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
*/
import "C"

import (
	"fmt"
	"math"
	"unsafe"
)

// Tensor is [batch][head][token][dim] in a slice. Strides count ELEMENTS, from one batch entry, head, token to the
// next; StrideDim those from one element of a row to the next: 0 = 1 = neighbours, and more in K and V only.
type Tensor struct {
	Data                      []float32
	Batch, Heads, Tokens, Dim int
	Stride                    [3]int
	StrideDim                 int
}

// HeadFirst is dense [batch][head][token][dim].
func HeadFirst(data []float32, batch, heads, tokens, dim int) Tensor {
	return Tensor{data, batch, heads, tokens, dim, [3]int{heads * tokens * dim, tokens * dim, dim}, 1}
}

// TokenFirst is dense [batch][token][head][dim], as the projections of a model make it.
func TokenFirst(data []float32, batch, tokens, heads, dim int) Tensor {
	return Tensor{data, batch, heads, tokens, dim, [3]int{tokens * heads * dim, dim, heads * dim}, 1}
}

// Transposed is dense [batch][head][dim][token]: K or V of a transposed cache.
func Transposed(data []float32, batch, heads, dim, tokens int) Tensor {
	return Tensor{data, batch, heads, tokens, dim, [3]int{heads * dim * tokens, dim * tokens, 1}, tokens}
}

// ScaleZero is a scale as good as 0.
const ScaleZero = C.FA_SCALE_ZERO

// Options: the zero value is attention of every query to every key, with a scale of 1/sqrt(dim).
type Options struct {
	// Multiplied to every dot product; 0 = 1/sqrt(dim), ScaleZero weighs all keys that a row sees alike.
	Scale float32
	// The last query is on the last key, and none sees a later one.
	Causal bool
	// How many keys up to its own position a query sees; 0 = all.
	Window int
	// Added to the scores, -Inf hides a key: [batch or 1][heads_q or 1][len_q or 1][len_kv]. Without data: none.
	Mask Tensor
	// How many keys of each sequence are in use, the first ones; nil = all.
	KVLens []int32
	// The first key of each sequence that any row sees (left padding, dropped keys); nil = 0.
	KVStarts []int32
	// The key position of query 0 of each sequence; nil = the last query is on the last key.
	QPositions []int32
	// How many first keys are seen beside the window.
	PrefixKeys int
	// Of each sequence, keys that see each other both ways, whatever the window: the first, and the one behind the
	// last, ascending and disjoint; nil = none.
	Spans [][][2]int32
	// Where to put the logarithm of each row's sum of exponentials: [batch][heads_q][len_q]; nil = nowhere.
	LSE []float32
	// Where to put the probabilities of all keys: [batch][heads_q][len_q][len_kv], or of the heads and rows of lists.
	// Without data: nowhere.
	Weights Tensor
	// The query heads and rows whose probabilities are wanted, ascending; rows that are negative count from the end;
	// nil = all.
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
	if t.isEmpty() {
		return nil
	}
	apart := t.apart()
	if apart < 0 || apart > math.MaxInt32/4 {
		return fmt.Errorf("flash_attention: the stride of elements of %s is negative or too large", name)
	}
	if t.Dim-1 > len(t.Data)/apart {
		return fmt.Errorf("flash_attention: %s has more elements than its slice", name)
	}
	room := len(t.Data) - 1 - (t.Dim-1)*apart
	for i, n := range extents {
		if n == 1 {
			continue
		}
		if t.Stride[i] < 0 || t.Stride[i] > most {
			return fmt.Errorf("flash_attention: a stride of %s is negative or too large", name)
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

// Run writes attention of q [batch][heads_q][len_q][dim], k [batch][heads_kv][len_kv][dim] and
// v [batch][heads_kv][len_kv][dim_v] to out [batch][heads_q][len_q][dim_v], on the calling thread. On errors out is as
// it was. Any number of goroutines may call it at once, with outputs of their own.
func Run(q, k, v, out Tensor, options Options) error {
	names := [6]string{"q", "k", "v", "out", "the mask", "the weights"}
	mask, weights := options.Mask, options.Weights
	s := C.sizes{scale: C.float(options.Scale), window_left: C.FA_NO_LIMIT, window_right: C.FA_NO_LIMIT}
	for i, t := range [6]*Tensor{&q, &k, &v, &out, &mask, &weights} {
		if err := t.check(names[i]); err != nil {
			return err
		}
		if !t.isEmpty() {
			s.stride_dim[i] = C.int32_t(4 * t.apart())
		}
		extents := [3]int{t.Batch, t.Heads, t.Tokens}
		for axis, stride := range t.Stride {
			if extents[axis] > 1 {
				s.stride[i][axis] = C.int64_t(4 * stride)
			}
		}
	}
	if k.Batch != q.Batch || v.Batch != q.Batch || out.Batch != q.Batch || v.Heads != k.Heads || out.Heads != q.Heads ||
		v.Tokens != k.Tokens || out.Tokens != q.Tokens || k.Dim != q.Dim || out.Dim != v.Dim {
		return shape("the tensors disagree about a size")
	}
	if mask.Data != nil {
		is, wanted := [3]int{mask.Batch, mask.Heads, mask.Tokens}, [3]int{q.Batch, q.Heads, q.Tokens}
		for i := range is {
			if is[i] != 1 && is[i] != wanted[i] {
				return shape("the mask is neither of the size of q nor of size 1")
			}
		}
		if mask.Dim != k.Tokens {
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
		if is != [4]int{q.Batch, weightHeads, weightRows, k.Tokens} {
			return shape("the weights are not one number for each sequence, head, row and key")
		}
	}
	if len(options.WeightHeads) > 0 || len(options.WeightRows) > 0 || weights.Data != nil {
		s.num_weight_heads, s.num_weight_rows = C.int64_t(weightHeads), C.int64_t(weightRows)
	}
	lists := map[string][]int32{"KVLens": options.KVLens, "KVStarts": options.KVStarts, "QPositions": options.QPositions}
	for name, list := range lists {
		if list != nil && len(list) != q.Batch {
			return shape(name + " is not one number for each sequence")
		}
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
	s.len_q, s.len_kv = C.int64_t(q.Tokens), C.int64_t(k.Tokens)
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
	status := C.run(&s, pointer[C.float](q.Data), pointer[C.float](k.Data), pointer[C.float](v.Data),
		pointer[C.float](out.Data), pointer[C.float](mask.Data), pointer[C.int32_t](options.KVLens),
		pointer[C.int32_t](options.KVStarts), pointer[C.int32_t](options.QPositions), pointer[C.int32_t](spans),
		pointer[C.int32_t](spanStarts), pointer[C.float](options.LSE), pointer[C.float](weights.Data),
		pointer[C.int32_t](options.WeightHeads), pointer[C.int32_t](options.WeightRows), &why[0], C.size_t(len(why)))
	if status == C.FA_OK {
		return nil
	}
	text := C.GoString(&why[0])
	if text == "" {
		text = C.GoString(C.fa_status_string(C.int32_t(status)))
	}
	return &Error{int(status), text}
}
