package attention

// #include "calls.h"
import "C"

import (
	"fmt"
	"math"
	"unsafe"
)

// Tensor is [batch][head][token][dim] in a slice. Strides count ELEMENTS, from one batch entry,
// head, token to the next; StrideDim those from one element of a row to the next: 0 = 1 =
// neighbours, and more in K and V only. Calls refuse a tensor that is larger than its slice.
type Tensor struct {
	Data                      []float32
	Batch, Heads, Tokens, Dim int
	Stride                    [3]int
	StrideDim                 int
	// In place of Data, if Type is not F32: the memory of the elements. Of types in blocks Dim and
	// all strides are multiples of 32.
	Bytes []byte
	Type  Type
	// What elements of 8 bits stand for; nil = they are the numbers.
	Quant *Quant
}

// Type is how elements are stored: a value of fa_dtype, whose comments define the formats.
type Type int32

const (
	F32     Type = C.FA_DTYPE_F32
	F16     Type = C.FA_DTYPE_F16
	BF16    Type = C.FA_DTYPE_BF16
	I8      Type = C.FA_DTYPE_I8
	Q8_0    Type = C.FA_DTYPE_Q8_0
	Bool8   Type = C.FA_DTYPE_BOOL8 // masks only
	Q4_0    Type = C.FA_DTYPE_Q4_0
	Q4_1    Type = C.FA_DTYPE_Q4_1
	Q5_0    Type = C.FA_DTYPE_Q5_0
	Q5_1    Type = C.FA_DTYPE_Q5_1
	IQ4_NL  Type = C.FA_DTYPE_IQ4_NL
	F8_E4M3 Type = C.FA_DTYPE_F8_E4M3
	F8_E5M2 Type = C.FA_DTYPE_F8_E5M2
	U8      Type = C.FA_DTYPE_U8
	Q15     Type = C.FA_DTYPE_Q15 // signed 16-bit integers divided by 32768
)

// Block is how many elements and bytes a block has: 1 and 1 to 4, or 32 and 18 to 34. No type has 0
// bytes.
func (t Type) Block() (elements, bytes int) {
	switch t {
	case F32:
		return 1, 4
	case F16, BF16, Q15:
		return 1, 2
	case I8, U8, F8_E4M3, F8_E5M2, Bool8:
		return 1, 1
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

// Quant says how stored elements of 8 bits, and of Q15, become numbers: x = (stored - Zero) *
// Scale. Scales of an output are what its numbers are divided by. The scale of element d of token t
// of head h of batch entry (or page) b is Scale[b*Stride[0] + h*Stride[1] +
// t/GroupTokens*Stride[2] + d/GroupDims*Stride[3]]. Quantize and Append write scales that they
// find.
type Quant struct {
	// Nil = 1 and 0. Only 8-bit integers have zeros.
	Scale, Zero []float32
	// VALUES from one batch entry, head, group of tokens, group of channels to the next; 0 = the same
	// for all.
	Stride [4]int
	// Tokens, and channels, that share a value; 0 = 1.
	GroupTokens, GroupDims int
}

// PerToken has a scale for each token of each head, in a dense slice: [batch][heads][tokens] for
// HeadFirst, [batch][tokens][heads] for TokenFirst.
func PerToken(scale []float32, t Tensor) *Quant {
	q := &Quant{Scale: scale}
	for i, stride := range t.Stride {
		if t.Dim > 0 {
			q.Stride[i] = stride / t.Dim
		}
	}
	return q
}

// HeadFirst is dense [batch][head][token][dim]. Pages [page][head][token][dim] are, too.
func HeadFirst(data []float32, batch, heads, tokens, dim int) Tensor {
	return Tensor{Data: data, Batch: batch, Heads: heads, Tokens: tokens, Dim: dim,
		Stride: [3]int{heads * tokens * dim, tokens * dim, dim}, StrideDim: 1}
}

// TokenFirst is dense [batch][token][head][dim], as the projections of a model make it. Pages
// [page][token][head][dim] are, too.
func TokenFirst(data []float32, batch, tokens, heads, dim int) Tensor {
	return Tensor{Data: data, Batch: batch, Heads: heads, Tokens: tokens, Dim: dim,
		Stride: [3]int{tokens * heads * dim, dim, heads * dim}, StrideDim: 1}
}

// Transposed is dense [batch][head][dim][token]: K or V of a transposed cache.
func Transposed(data []float32, batch, heads, dim, tokens int) Tensor {
	return Tensor{Data: data, Batch: batch, Heads: heads, Tokens: tokens, Dim: dim,
		Stride: [3]int{heads * dim * tokens, dim * tokens, 1}, StrideDim: tokens}
}

// Stored is the tensor, but of another type, in bytes: Stored(HeadFirst(nil, 1, 2, 100, 64), Q8_0,
// bytes).
func Stored(t Tensor, of Type, bytes []byte) Tensor {
	t.Data, t.Bytes, t.Type = nil, bytes, of
	return t
}

// Quantised is the tensor with scales: Quantised(t, I8, bytes, &Quant{Scale: scales}).
func Quantised(t Tensor, of Type, bytes []byte, quant *Quant) Tensor {
	t = Stored(t, of, bytes)
	t.Quant = quant
	return t
}

// BytesOf is the memory of a slice, for Stored: of []uint16 that are binary16 or bfloat16, of
// []int16, []int8, []bool.
func BytesOf[T uint16 | int16 | int8 | uint8 | bool](x []T) []byte {
	if len(x) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&x[0])), len(x)*int(unsafe.Sizeof(x[0])))
}

func (t *Tensor) isEmpty() bool { return t.Batch == 0 || t.Heads == 0 || t.Tokens == 0 || t.Dim == 0 }

// What was never filled, and stands for no tensor.
func (t *Tensor) isNone() bool {
	return t.Data == nil && t.Bytes == nil && t.Batch == 0 && t.Heads == 0 && t.Tokens == 0 && t.Dim == 0
}

// Elements from one of a row to the next.
func (t *Tensor) apart() int {
	if t.StrideDim == 0 || t.Dim <= 1 {
		return 1
	}
	return t.StrideDim
}

// Whether the element that is furthest from the first one lies among n; no sum overflows.
func fits(n int, extents, strides []int) bool {
	room := n - 1
	for i, extent := range extents {
		if extent <= 1 {
			continue
		}
		if strides[i] < 0 || (strides[i] > 0 && extent-1 > room/strides[i]) {
			return false
		}
		room -= (extent - 1) * strides[i]
	}
	return room >= 0
}

func badTensor(name, why string) error { return fmt.Errorf("flash_attention: %s %s", name, why) }

// The tensor for C, and the bytes of its memory, if all of its elements lie within the slice.
func (t *Tensor) c(name string) (c C.fa_tensor, memory C.int64_t, err error) {
	if t.Batch < 0 || t.Heads < 0 || t.Tokens < 0 || t.Dim < 0 {
		return c, 0, badTensor(name, "has a negative size")
	}
	block, bytes := t.Type.Block()
	if bytes == 0 {
		return c, 0, badTensor(name, "is of an unknown type")
	}
	c.dtype = C.int32_t(t.Type)
	if t.isEmpty() {
		return c, 0, nil
	}
	elements := len(t.Data)
	if t.Type == F32 {
		c.data, memory = unsafe.Pointer(pointer[C.float](t.Data)), C.int64_t(elements)*4
	} else {
		elements = len(t.Bytes) / bytes * block
		c.data, memory = unsafe.Pointer(pointer[C.char](t.Bytes)), C.int64_t(len(t.Bytes))
	}
	apart := t.apart()
	if t.Dim%block != 0 || (block > 1 && apart != 1) {
		return c, 0, badTensor(name, "has rows that are no whole blocks")
	}
	if apart < 0 || apart > math.MaxInt32/bytes {
		return c, 0, badTensor(name, "has a stride of elements that is negative or too large")
	}
	if block == 1 {
		c.stride_dim = C.int32_t(apart * bytes)
	}
	extents := [4]int{t.Batch, t.Heads, t.Tokens, t.Dim}
	if !fits(elements, extents[:], []int{t.Stride[0], t.Stride[1], t.Stride[2], apart}) {
		return c, 0, badTensor(name, "has more elements than its slice, or a negative stride")
	}
	for axis, stride := range t.Stride {
		if extents[axis] <= 1 {
			continue
		}
		if stride%block != 0 {
			return c, 0, badTensor(name, "has a stride that is not of whole blocks")
		}
		c.stride[axis] = C.int64_t(stride / block * bytes)
	}
	return c, memory, nil
}

// The scales for C, if those of all elements lie within their slices.
func (t *Tensor) quant(name string) (c C.fa_quant, err error) {
	q := t.Quant
	if q == nil {
		return c, nil
	}
	groups := func(n, of int) int {
		if of <= 1 || n <= 0 {
			return n
		}
		return (n-1)/of + 1
	}
	extents := [4]int{t.Batch, t.Heads, groups(t.Tokens, q.GroupTokens), groups(t.Dim, q.GroupDims)}
	for _, values := range [2][]float32{q.Scale, q.Zero} {
		if values != nil && !t.isEmpty() && !fits(len(values), extents[:], q.Stride[:]) {
			return c, badTensor(name, "has more scales than their slice, or a negative stride of them")
		}
	}
	if q.GroupTokens < 0 || q.GroupTokens > math.MaxInt32 || q.GroupDims < 0 || q.GroupDims > math.MaxInt32 {
		return c, badTensor(name, "has scales of groups of an impossible size")
	}
	c.scale, c.zero = pointer[C.float](q.Scale), pointer[C.float](q.Zero)
	c.group_tokens, c.group_dims = 1, 1
	if q.GroupTokens > 0 {
		c.group_tokens = C.int32_t(q.GroupTokens)
	}
	if q.GroupDims > 0 {
		c.group_dims = C.int32_t(q.GroupDims)
	}
	for i, stride := range q.Stride {
		c.stride[i] = C.int64_t(stride)
	}
	return c, nil
}

func pointer[To, From any](x []From) *To {
	if len(x) == 0 {
		return nil
	}
	return (*To)(unsafe.Pointer(&x[0]))
}
