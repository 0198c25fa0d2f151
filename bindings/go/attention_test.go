package attention_test

import (
	"errors"
	"math"
	"math/rand"
	"sync"
	"testing"

	attention "flash_attention/bindings/go"
)

// Largest error; values are around 1.
const bound = 1e-5

func nans(n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(math.NaN())
	}
	return x
}

func TestRefusals(t *testing.T) {
	q, kv, out := make([]float32, 2*3*4), make([]float32, 2*5*4), make([]float32, 2*3*4)
	for i := range out {
		out[i] = 7
	}
	fine := attention.HeadFirst(q, 1, 2, 3, 4)
	keys := attention.HeadFirst(kv, 1, 2, 5, 4)
	to := attention.HeadFirst(out, 1, 2, 3, 4)
	with := func(t attention.Tensor, change func(*attention.Tensor)) attention.Tensor {
		change(&t)
		return t
	}
	cases := map[string]struct {
		q, k, v, out attention.Tensor
		options      attention.Options
		refused      bool // by the library
	}{
		"short slice": {with(fine, func(t *attention.Tensor) { t.Data = q[:23] }), keys, keys, to,
			attention.Options{}, false},
		"no slice": {with(fine, func(t *attention.Tensor) { t.Data = nil }), keys, keys, to,
			attention.Options{}, false},
		"long stride": {fine, with(keys, func(t *attention.Tensor) { t.Stride[2] = math.MaxInt }), keys, to,
			attention.Options{}, false},
		"far elements": {fine, with(keys, func(t *attention.Tensor) { t.StrideDim = 7 }), keys, to,
			attention.Options{}, false},
		"elements behind": {fine, with(keys, func(t *attention.Tensor) { t.StrideDim = -1 }), keys, to,
			attention.Options{}, false},
		"huge elements": {fine, with(keys, func(t *attention.Tensor) { t.StrideDim = math.MaxInt }), keys, to,
			attention.Options{}, false},
		"q transposed": {attention.Transposed(q, 1, 2, 4, 3), keys, keys, to, attention.Options{}, true},
		"negative stride": {fine, with(keys, func(t *attention.Tensor) { t.Stride[1] = -4 }), keys, to,
			attention.Options{}, false},
		"negative size": {with(fine, func(t *attention.Tensor) { t.Tokens = -3 }), keys, keys,
			with(to, func(t *attention.Tensor) { t.Tokens = -3 }), attention.Options{}, false},
		"huge size": {with(fine, func(t *attention.Tensor) { t.Tokens = math.MaxInt }), keys, keys,
			with(to, func(t *attention.Tensor) { t.Tokens = math.MaxInt }), attention.Options{}, false},
		"other length": {fine, keys, with(keys, func(t *attention.Tensor) { t.Tokens = 4 }), to,
			attention.Options{}, true},
		"output is input": {fine, keys, keys, fine, attention.Options{}, true},
		"rows overlap": {fine, keys, keys, with(to, func(t *attention.Tensor) { t.Stride[2] = 1 }),
			attention.Options{}, true},
		"scale is NaN":  {fine, keys, keys, to, attention.Options{Scale: float32(math.NaN())}, true},
		"short mask":    {fine, keys, keys, to, attention.Options{Mask: attention.HeadFirst(q[:14], 1, 1, 3, 5)}, false},
		"other mask":    {fine, keys, keys, to, attention.Options{Mask: attention.HeadFirst(q, 1, 1, 3, 4)}, true},
		"mask of rows":  {fine, keys, keys, to, attention.Options{Mask: attention.HeadFirst(q, 1, 1, 2, 5)}, true},
		"more lengths":  {fine, keys, keys, to, attention.Options{KVLens: []int32{5, 5}}, true},
		"wild length":   {fine, keys, keys, to, attention.Options{KVLens: []int32{6}}, true},
		"more starts":   {fine, keys, keys, to, attention.Options{KVStarts: []int32{0, 0}}, true},
		"wild start":    {fine, keys, keys, to, attention.Options{KVStarts: []int32{-1}}, true},
		"no position":   {fine, keys, keys, to, attention.Options{QPositions: []int32{}}, true},
		"prefix behind": {fine, keys, keys, to, attention.Options{PrefixKeys: -1}, true},
		"more spans":    {fine, keys, keys, to, attention.Options{Spans: [][][2]int32{{}, {}}}, true},
		"span backward": {fine, keys, keys, to, attention.Options{Spans: [][][2]int32{{{3, 1}}}}, true},
		"short LSE":     {fine, keys, keys, to, attention.Options{LSE: make([]float32, 5)}, true},
		"more weights":  {fine, keys, keys, to, attention.Options{Weights: attention.HeadFirst(make([]float32, 10), 1, 1, 2, 5)}, true},
		"no such head":  {fine, keys, keys, to, attention.Options{Weights: attention.HeadFirst(make([]float32, 100), 1, 1, fine.Tokens, keys.Tokens), WeightHeads: []int32{9}}, true},
		"window behind": {fine, keys, keys, to, attention.Options{Window: -1}, true},
		"odd blocks":    {fine, attention.Stored(keys, attention.Q8_0, make([]byte, 1000)), keys, to, attention.Options{}, false},
		"no such type":  {fine, attention.Stored(keys, 99, make([]byte, 1000)), keys, to, attention.Options{}, false},
		"short table":   {fine, keys, keys, to, attention.Options{BlockTable: []int32{0}, BlockTableStart: []int32{0, 2}}, true},
		"far heads":     {fine, keys, keys, to, attention.Options{BlockTable: []int32{0}, TableHeadStride: 2}, true},
		"more keys":     {fine, keys, keys, to, attention.Options{LenKV: 6}, true},
		"ragged behind": {fine, keys, keys, to, attention.Options{CuLenQ: []int32{2, 1}}, true},
		"more rows":     {fine, keys, keys, to, attention.Options{CuLenQ: []int32{0, 4}}, true},
		"ragged keys":   {fine, keys, keys, to, attention.Options{CuLenKV: []int32{0, 6}}, true},
		"more ragged":   {fine, keys, keys, to, attention.Options{CuLenKV: []int32{0, 2, 4}}, true},
		"slopes":        {fine, keys, keys, to, attention.Options{ALiBiSlopes: make([]float32, 3)}, true},
		"no sinks":      {fine, keys, keys, to, attention.Options{Sinks: []float32{}}, true},
		"softcap":       {fine, keys, keys, to, attention.Options{Softcap: -1}, true},
		"look behind":   {fine, keys, keys, to, attention.Options{Causal: true, LookAhead: -1}, true},
		"look ahead":    {fine, keys, keys, to, attention.Options{LookAhead: 1}, true},
		"both flags":    {fine, keys, keys, to, attention.Options{Precise: true, Fast: true}, true},
		"tiles":         {fine, keys, keys, to, attention.Options{BlockKV: -1}, true},
		"no blocks":     {fine, keys, keys, to, attention.Options{BlockMask: &attention.BlockMask{Visible: []byte{1}}}, true},
		"short blocks": {fine, keys, keys, to, attention.Options{BlockMask: &attention.BlockMask{Visible: []byte{1}, Q: 2, KV: 4}},
			true},
		"short starts": {fine, keys, keys, to, attention.Options{Kept: &attention.Kept{Start: []int32{0, 0}, Q: 2, KV: 5}}, true},
		"short lists": {fine, keys, keys, to,
			attention.Options{Kept: &attention.Kept{Start: []int32{0, 1}, Q: 3, KV: 5}}, true},
		"far lists": {fine, keys, keys, to, attention.Options{Kept: &attention.Kept{Start: []int32{0, 1}, Blocks: []int32{0},
			Stride: [2]int{0, 1}, Q: 3, KV: 5}}, true},
		"block behind": {fine, keys, keys, to, attention.Options{Kept: &attention.Kept{Start: []int32{0, 1}, Blocks: []int32{1},
			Q: 3, KV: 5}}, true},
		"short columns": {fine, keys, keys, to, attention.Options{Columns: &attention.Columns{Start: []int32{0, 1}}}, true},
		"column behind": {fine, keys, keys, to, attention.Options{Columns: &attention.Columns{Start: []int32{0, 1},
			Keys: []int32{5}}}, true},
		"short scales": {fine, keys, attention.Quantised(keys, attention.I8, make([]byte, 40), &attention.Quant{
			Scale: make([]float32, 4), Stride: [4]int{0, 0, 1, 0}}), to, attention.Options{}, false},
		"short bytes":     {fine, keys, attention.Stored(keys, attention.F16, make([]byte, 79)), to, attention.Options{}, false},
		"far rows of LSE": {fine, keys, keys, to, attention.Options{LSE: make([]float32, 6), LSEStride: [3]int{0, 1, 3}}, true},
		"no such page":    {fine, keys, keys, to, attention.Options{BlockTable: []int32{1}}, true},
	}
	for name, c := range cases {
		err := attention.Run(c.q, c.k, c.v, c.out, c.options)
		var refused *attention.Error
		if err == nil || errors.As(err, &refused) != c.refused {
			t.Errorf("%s: %v", name, err)
		} else if refused != nil && (refused.Status == 0 || refused.Why == "") {
			t.Errorf("%s: no reason", name)
		}
	}
	for i := range out {
		if out[i] != 7 {
			t.Fatal("a refusal has written to the output")
		}
	}
	if err := attention.Run(fine, keys, keys, to, attention.Options{}); err != nil {
		t.Error(err)
	}
	none := attention.HeadFirst(nil, 0, 1, 5, 8)
	if err := attention.Run(none, none, none, none, attention.Options{}); err != nil {
		t.Error(err)
	}
	// All keys weigh alike.
	if err := attention.Run(fine, keys, keys, to, attention.Options{Scale: attention.ScaleZero}); err != nil {
		t.Error(err)
	}
}

// Output and log-sum-exp of one head, from the formula. sees tells which keys a row does, add what
// is added.
func formula(q, k, v []float32, dim int, sees func(i, j int) bool, add func(i, j int) float64) (out, lse []float64) {
	for i := 0; i < len(q)/dim; i++ {
		sum, row := 0.0, make([]float64, dim)
		for j := 0; j < len(k)/dim; j++ {
			if !sees(i, j) {
				continue
			}
			dot := 0.0
			for d := 0; d < dim; d++ {
				dot += float64(q[i*dim+d]) * float64(k[j*dim+d])
			}
			weight := math.Exp(dot/math.Sqrt(float64(dim)) + add(i, j))
			sum += weight
			for d := range row {
				row[d] += weight * float64(v[j*dim+d])
			}
		}
		for d := range row {
			if sum > 0 {
				row[d] /= sum
			}
		}
		out, lse = append(out, row...), append(lse, math.Log(sum))
	}
	return out, lse
}

// K and V as [batch][head][dim][token] give the same bits.
func TestTransposed(t *testing.T) {
	const heads, lenQ, lenKV, dim = 2, 3, 7, 5
	q, kv, transposed := make([]float32, heads*lenQ*dim), make([]float32, heads*lenKV*dim), make([]float32, heads*lenKV*dim)
	for i := range q {
		q[i] = float32(i*37%101)/50 - 1
	}
	for i := range kv {
		kv[i] = float32(i*53%97)/50 - 1
		head, token, d := i/dim/lenKV, i/dim%lenKV, i%dim
		transposed[(head*dim+d)*lenKV+token] = kv[i]
	}
	var outs [2][]float32
	for i, keys := range []attention.Tensor{attention.HeadFirst(kv, 1, heads, lenKV, dim),
		attention.Transposed(transposed, 1, heads, dim, lenKV)} {
		outs[i] = nans(len(q))
		to := attention.HeadFirst(outs[i], 1, heads, lenQ, dim)
		if err := attention.Run(attention.HeadFirst(q, 1, heads, lenQ, dim), keys, keys, to, attention.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range q {
		if outs[0][i] != outs[1][i] {
			t.Fatalf("element %d: %v, transposed %v", i, outs[0][i], outs[1][i])
		}
	}
}

// Two query heads on one of the keys; two sequences, of which the second uses fewer keys.
// Goroutines compute different problems at once.
func TestOptions(t *testing.T) {
	const batch, heads, lenQ, lenKV, dim = 2, 2, 3, 7, 8
	random := rand.New(rand.NewSource(1))
	normals := func(n int) []float32 {
		x := make([]float32, n)
		for i := range x {
			x[i] = float32(random.NormFloat64())
		}
		return x
	}
	q, k, v := normals(batch*heads*lenQ*dim), normals(batch*lenKV*dim), normals(batch*lenKV*dim)
	added := normals(heads * lenQ * lenKV)
	added[4] = float32(math.Inf(-1))
	lens, starts, positions := []int32{lenKV, 5}, []int32{2, 0}, []int32{2, 4}
	spans := [][][2]int32{{{0, 3}, {3, 6}}, {{5, 7}}}
	mask := attention.HeadFirst(added, 1, heads, lenQ, lenKV)
	check := func(name string, options attention.Options) {
		out, lse := nans(len(q)), nans(batch*heads*lenQ)
		options.LSE = lse
		if err := attention.Run(attention.HeadFirst(q, batch, heads, lenQ, dim), attention.HeadFirst(k, batch, 1, lenKV, dim),
			attention.HeadFirst(v, batch, 1, lenKV, dim), attention.HeadFirst(out, batch, heads, lenQ, dim), options); err != nil {
			t.Error(name, err)
			return
		}
		for head := 0; head < batch*heads; head++ {
			b, length := head/heads, lenKV
			if options.KVLens != nil {
				length = int(lens[b])
			}
			sees := func(i, j int) bool {
				at, first := i+length-lenQ, 0
				if options.QPositions != nil {
					at = i + int(positions[b])
				}
				if options.KVStarts != nil {
					first = int(starts[b])
				}
				if j < first || j >= length {
					return false
				}
				if options.Spans != nil {
					for _, span := range spans[b] {
						begin, end := int(span[0]), int(span[1])
						if begin <= at && at < end && begin <= j && j < end {
							return true
						}
					}
				}
				isNear := options.Window == 0 || at-j < options.Window || j < first+options.PrefixKeys
				return isNear && !(options.Causal && at < j)
			}
			add := func(i, j int) float64 {
				if options.Mask.Data == nil {
					return 0
				}
				return float64(added[(head%heads*lenQ+i)*lenKV+j])
			}
			rows, keys := head*lenQ*dim, b*lenKV*dim
			want, wantLSE := formula(q[rows:rows+lenQ*dim], k[keys:keys+lenKV*dim], v[keys:keys+lenKV*dim], dim, sees, add)
			for i := range want {
				if !(math.Abs(float64(out[rows+i])-want[i]) <= bound) {
					t.Errorf("%s: element %d is %g instead of %g", name, rows+i, out[rows+i], want[i])
				}
			}
			for i := range wantLSE {
				if !(math.Abs(float64(lse[head*lenQ+i])-wantLSE[i]) <= bound) {
					t.Errorf("%s: LSE %d is %g instead of %g", name, i, lse[head*lenQ+i], wantLSE[i])
				}
			}
		}
	}
	cases := map[string]attention.Options{
		"plain":   {},
		"causal":  {Causal: true},
		"window":  {Window: 3},
		"mask":    {Mask: mask},
		"lengths": {KVLens: lens},
		"all":     {Causal: true, Window: 4, Mask: mask, KVLens: lens},
		"starts":  {KVStarts: starts},
		"at":      {Causal: true, QPositions: positions},
		"prefix":  {Causal: true, Window: 1, KVStarts: starts, PrefixKeys: 2},
		"spans":   {Causal: true, QPositions: positions, Spans: spans},
		"none":    {Spans: [][][2]int32{{}, {}}},
		"new":     {Causal: true, Window: 2, QPositions: positions, KVStarts: starts, PrefixKeys: 1, Spans: spans},
	}
	var group sync.WaitGroup
	for name, options := range cases {
		name, options := name, options
		group.Add(1)
		go func() {
			defer group.Done()
			check(name, options)
		}()
	}
	group.Wait()
}

// Probabilities of the last head and row are those of all, and sum to 1.
func TestWeights(t *testing.T) {
	const batch, heads, lenQ, lenKV, dim = 2, 2, 3, 7, 8
	x, out := make([]float32, batch*heads*lenKV*dim), make([]float32, batch*heads*lenQ*dim)
	for i := range x {
		x[i] = float32(i*7%11) / 5
	}
	all, one := make([]float32, batch*heads*lenQ*lenKV), make([]float32, batch*lenKV)
	q, kv := attention.HeadFirst(x, batch, heads, lenQ, dim), attention.HeadFirst(x, batch, heads, lenKV, dim)
	to := attention.HeadFirst(out, batch, heads, lenQ, dim)
	every := attention.Options{Weights: attention.HeadFirst(all, batch, heads, lenQ, lenKV)}
	last := attention.Options{Weights: attention.HeadFirst(one, batch, 1, 1, lenKV), WeightHeads: []int32{1}, WeightRows: []int32{-1}}
	for _, options := range []attention.Options{every, last} {
		if err := attention.Run(q, kv, kv, to, options); err != nil {
			t.Fatal(err)
		}
	}
	for b := 0; b < batch; b++ {
		sum := 0.0
		for j := 0; j < lenKV; j++ {
			sum += float64(one[b*lenKV+j])
			if one[b*lenKV+j] != all[((b+1)*heads*lenQ-1)*lenKV+j] {
				t.Errorf("sequence %d, key %d: %g", b, j, one[b*lenKV+j])
			}
		}
		if math.Abs(sum-1) > 1e-6 {
			t.Errorf("sequence %d: %g", b, sum)
		}
	}
}

// What blocks stand for, by the formats of ggml; rows are whole blocks.
func decoded(of attention.Type, bytes []byte) []float32 {
	table := [16]float64{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}
	half := func(b []byte) float64 {
		bits := int(b[0]) | int(b[1])<<8
		x := math.Ldexp(float64(bits&0x3ff), -24)
		if exponent := bits >> 10 & 31; exponent > 0 {
			x = math.Ldexp(float64(bits&0x3ff|0x400), exponent-25)
		}
		if bits>>15 != 0 {
			return -x
		}
		return x
	}
	var x []float32
	_, size := of.Block()
	for ; len(bytes) > 0; bytes = bytes[size:] {
		d, b := half(bytes), bytes[:size]
		for i := 0; i < 32; i++ {
			code := int(b[size-16+i%16]) >> (i / 16 * 4) & 15
			if of == attention.Q5_0 || of == attention.Q5_1 {
				code |= int(b[size-20+i/8]) >> (i % 8) & 1 << 4
			}
			var number float64
			switch of {
			case attention.Q8_0:
				number = d * float64(int8(b[2+i]))
			case attention.Q4_0:
				number = d * float64(code-8)
			case attention.Q5_0:
				number = d * float64(code-16)
			case attention.IQ4_NL:
				number = d * table[code]
			default:
				number = d*float64(code) + half(b[2:])
			}
			x = append(x, float32(number))
		}
	}
	return x
}

var inBlocks = []attention.Type{attention.Q8_0, attention.Q4_0, attention.Q4_1, attention.Q5_0, attention.Q5_1, attention.IQ4_NL}

// Blocks are within a step of what was written, and attention is that of what they stand for, also
// in pages, in an order of their own, that tokens are appended to.
func TestBlocks(t *testing.T) {
	const heads, lenQ, lenKV, dim, page = 2, 3, 37, 64, 8
	table := []int32{3, 0, 5, 1, 2}
	steps := map[attention.Type]float64{attention.Q8_0: 0.0045, attention.Q4_0: 0.127, attention.Q4_1: 0.069,
		attention.Q5_0: 0.064, attention.Q5_1: 0.034, attention.IQ4_NL: 0.125}
	random := rand.New(rand.NewSource(1))
	normals := func(n int) []float32 {
		x := make([]float32, n)
		for i := range x {
			x[i] = float32(random.NormFloat64())
		}
		return x
	}
	q, x := normals(heads*lenQ*dim), normals(heads*lenKV*dim)
	dense := attention.HeadFirst(x, 1, heads, lenKV, dim)
	for i, ofK := range inBlocks {
		var caches, pages [2]attention.Tensor
		var stored [2][]float32
		for n, of := range []attention.Type{ofK, inBlocks[(i+1)%len(inBlocks)]} {
			_, size := of.Block()
			caches[n] = attention.Stored(dense, of, make([]byte, len(x)/32*size))
			if err := attention.Quantize(dense, caches[n]); err != nil {
				t.Fatal(of, err)
			}
			stored[n] = decoded(of, caches[n].Bytes)
			for at := 0; at < len(x); at += 32 {
				most := 0.0
				for _, e := range x[at : at+32] {
					most = math.Max(most, math.Abs(float64(e)))
				}
				for d := at; d < at+32; d++ {
					if math.Abs(float64(x[d]-stored[n][d])) > most*steps[of] {
						t.Fatalf("type %d: %g became %g", of, x[d], stored[n][d])
					}
				}
			}
			whole := attention.HeadFirst(nil, 6, heads, page, dim)
			pages[n] = attention.Stored(whole, of, make([]byte, 6*heads*page*dim/32*size))
		}
		options := attention.Options{Causal: true}
		want := make([]float64, 0, len(q))
		for h := 0; h < heads; h++ {
			sees := func(i, j int) bool { return j <= i+lenKV-lenQ }
			add := func(i, j int) float64 { return 0 }
			rows, keys := h*lenQ*dim, h*lenKV*dim
			out, _ := formula(q[rows:rows+lenQ*dim], stored[0][keys:keys+lenKV*dim], stored[1][keys:keys+lenKV*dim], dim, sees, add)
			want = append(want, out...)
		}
		paged := attention.Options{Causal: true, BlockTable: table}
		for first, n := 0, 0; first < lenKV; first += n {
			if n = 1 + first%5; n > lenKV-first {
				n = lenKV - first
			}
			rows := attention.HeadFirst(x[first*dim:], 1, heads, n, dim)
			rows.Stride[1] = lenKV * dim
			paged.KVLens = []int32{int32(first + n)}
			if err := attention.Append(pages[0], pages[1], rows, rows, paged); err != nil {
				t.Fatal(err)
			}
		}
		var outs [2][]float32
		for n, c := range [][2]attention.Tensor{caches, pages} {
			if n == 1 {
				options = paged
			}
			outs[n] = nans(len(q))
			out := attention.HeadFirst(outs[n], 1, heads, lenQ, dim)
			if err := attention.Run(attention.HeadFirst(q, 1, heads, lenQ, dim), c[0], c[1], out, options); err != nil {
				t.Fatal(err)
			}
			for i := range want {
				// Queries become integers of 16 bits, or of 8.
				if !(math.Abs(float64(outs[n][i])-want[i]) <= 2e-2) {
					t.Fatalf("types %d: element %d is %g instead of %g", ofK, i, outs[n][i], want[i])
				}
				if !(math.Abs(float64(outs[n][i]-outs[0][i])) <= bound) {
					t.Fatalf("types %d: element %d is %g, in pages %g", ofK, i, outs[0][i], outs[n][i])
				}
			}
		}
	}
	short := attention.Stored(dense, attention.Q8_0, make([]byte, len(x)/32*34-1))
	if attention.Quantize(dense, short) == nil || attention.Run(dense, short, dense, dense, attention.Options{}) == nil {
		t.Error("a slice that is too short was taken")
	}
	var refused *attention.Error
	if err := attention.Append(dense, dense, dense, dense, attention.Options{}); !errors.As(err, &refused) {
		t.Error("a cache that is its own source was taken:", err)
	}
	few := attention.Stored(attention.HeadFirst(nil, 1, heads, 1, dim), attention.Q8_0, make([]byte, heads*dim/32*34))
	if err := attention.Append(few, few, dense, dense, attention.Options{}); !errors.As(err, &refused) || refused.Why == "" {
		t.Error("more tokens than keys were taken:", err)
	}
}
