package attention

// #include "calls.h"
import "C"

import "fmt"

// Quantize writes src, of F32, F16 or BF16, in the type of dst, whose sizes are the same. All
// machines write the same bytes; those of blocks are those of ggml's reference functions. Of I8 and
// U8, and of Q15 and 8-bit floating-point numbers that have a Quant, the scales of dst are found
// and written. On errors dst is as it was.
func Quantize(src, dst Tensor) error { return quantize(&src, &dst, nil) }

// QuantizeI8 is Quantize to I8, with a vector subtracted from each token of a head first: smooth,
// dense [heads][dim]. Attention to keys is the same with the mean of all keys subtracted, and 8
// bits lose less.
func QuantizeI8(src, dst Tensor, smooth []float32) error {
	if len(smooth) == 0 || len(smooth) != src.Heads*src.Dim || dst.Type != I8 {
		return shape("smooth is not one number for each head and element, or dst not of I8")
	}
	return quantize(&src, &dst, smooth)
}

func quantize(src, dst *Tensor, smooth []float32) error {
	if [4]int{src.Batch, src.Heads, src.Tokens, src.Dim} != [4]int{dst.Batch, dst.Heads, dst.Tokens, dst.Dim} {
		return shape("src and dst disagree about a size")
	}
	from, _, err := src.c("src")
	if err != nil {
		return err
	}
	to, _, err := dst.c("dst")
	if err != nil {
		return err
	}
	quant, err := dst.quant("dst")
	if err != nil {
		return err
	}
	return failed(C.fa_go_quantize(from, C.int64_t(src.Batch), C.int64_t(src.Heads), C.int64_t(src.Tokens), C.int64_t(src.Dim),
		pointer[C.float](smooth), to, quant), "")
}

// Append writes new keys and values [batch][heads_kv][new][dim], of F32, F16 or BF16, into the
// cache k and v [batch][heads_kv][len_kv][dim], in the types that it has, where the queries of the
// Run that follows stand: by default they are the last of KVLens, which count them. Of options it
// looks at lists of sequences, positions, spans and pages; a page that is written must be in one
// list, once. A new tensor that is the zero value is not written (v may be a view of k). Scales
// that each token has of its own are found and written; those that tokens share are given. On
// errors the cache is as it was. Goroutines may call it at once for different sequences or heads of
// one cache.
func Append(k, v, newK, newV Tensor, options Options) error {
	rows := &newK
	if newK.isNone() {
		rows = &newV
	}
	var a Attention
	if err := describe(&a, rows, &k, &v, &options); err != nil {
		return err
	}
	var tensors [2]C.fa_tensor
	for i, one := range []struct {
		name       string
		new, cache *Tensor
	}{{"newK", &newK, &k}, {"newV", &newV, &v}} {
		if one.new.isNone() {
			continue
		}
		if one.new.Batch != rows.Batch || one.new.Heads != one.cache.Heads || one.new.Tokens != rows.Tokens ||
			one.new.Dim != one.cache.Dim || one.new.Quant != nil {
			return shape("the tensors disagree about a size, or new ones have scales")
		}
		var err error
		if tensors[i], _, err = one.new.c(one.name); err != nil {
			return err
		}
	}
	var why words
	status := C.fa_go_append(a.a, a.quants, C.bool(!newK.isNone()), tensors[0], C.bool(!newV.isNone()), tensors[1], &why[0],
		C.size_t(len(why)))
	return why.failed(status)
}

// Merge joins results of the same queries over different keys: afterwards o [rows][dim] and lse
// [rows] are those of all keys. o2 and lse2 are the others.
func Merge(o, lse, o2, lse2 []float32, dim int) error {
	rows := len(lse)
	if dim < 1 || len(lse2) != rows || len(o) != len(o2) || len(o)/dim != rows || len(o)%dim != 0 {
		return shape("o and lse are not of as many rows as o2 and lse2")
	}
	return failed(C.fa_merge(pointer[C.float](o), pointer[C.float](lse), pointer[C.float](o2), pointer[C.float](lse2),
		C.int64_t(rows), C.int64_t(dim)), "")
}

// Fixed says how RunQ15 computes.
type Fixed struct {
	Heads, HeadsKV, LenQ, LenKV, Dim int
	// The scale is ScaleMantissa / 2^ScaleShift; 0 = 1/sqrt(Dim).
	ScaleMantissa, ScaleShift int32
	Causal                    bool
	// 1 = the calling thread alone, 0 = one per core.
	Threads int
}

// RunQ15 is attention of 16-bit fixed-point numbers in integers alone, with the same bits on every
// machine: q and out are dense [heads][len_q][dim], k and v [heads_kv][len_kv][dim].
func RunQ15(q, k, v, out []int16, f Fixed) error {
	for _, n := range []int{f.Heads, f.HeadsKV, f.LenQ, f.LenKV, f.Dim} {
		if n < 0 {
			return shape("a size is negative")
		}
	}
	for name, list := range map[string]struct {
		is   []int16
		size [3]int
	}{"q": {q, [3]int{f.Heads, f.LenQ, f.Dim}}, "out": {out, [3]int{f.Heads, f.LenQ, f.Dim}},
		"k": {k, [3]int{f.HeadsKV, f.LenKV, f.Dim}}, "v": {v, [3]int{f.HeadsKV, f.LenKV, f.Dim}}} {
		if n := list.size; n[0] > 0 && n[1] > 0 && n[2] > 0 && !(len(list.is)/n[0]/n[1]/n[2] > 0) {
			return fmt.Errorf("flash_attention: %s has more elements than its slice", name)
		}
	}
	threads := number(f.Threads)
	if threads < 0 {
		return shape("a number of threads is negative or too large")
	}
	cfg := C.fa_q15_config{struct_size: C.sizeof_fa_q15_config, head_dim: C.size_t(f.Dim),
		scale_mantissa: C.int32_t(f.ScaleMantissa), scale_shift: C.int32_t(f.ScaleShift), num_threads: C.uint32_t(threads)}
	if f.Causal {
		cfg.causal = 1
	}
	return failed(C.fa_mha_q15(&cfg, pointer[C.int16_t](q), pointer[C.int16_t](k), pointer[C.int16_t](v), C.size_t(f.Heads),
		C.size_t(f.HeadsKV), C.size_t(f.LenQ), C.size_t(f.LenKV), pointer[C.int16_t](out)), "")
}
