package attention_test

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand"
	"os"
	"strings"
	"sync"
	"testing"

	attention "flash_attention/examples_go"
)

const data = "../examples_c/data/"

// Largest error, as a share of the largest |v|.
const bound = 1e-5

// One set of tensors of a real model, [token][head][dim].
type set struct {
	name                    string
	heads, lenQ, lenKV, dim int
	scale                   float32
	causal                  bool
	q, k, v                 []float32
	exact                   []float64
}

// README begin
func modelAttention(s *set, out []float32) error {
	return attention.Run( // slices of [batch][token][head][dim], as the model computes them
		attention.TokenFirst(s.q, 1, s.lenQ, s.heads, s.dim),
		attention.TokenFirst(s.k, 1, s.lenKV, s.heads, s.dim),
		attention.TokenFirst(s.v, 1, s.lenKV, s.heads, s.dim),
		attention.TokenFirst(out, 1, s.lenQ, s.heads, s.dim),
		attention.Options{Scale: s.scale, Causal: s.causal})
}

// README end

func load(t *testing.T, name string, x any) {
	t.Helper()
	file, err := os.Open(data + name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := binary.Read(bufio.NewReader(file), binary.LittleEndian, x); err != nil {
		t.Fatal(name, err)
	}
}

func sets(t *testing.T) (all []*set) {
	t.Helper()
	index, err := os.ReadFile(data + "index.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(strings.TrimSpace(string(index)), "\n") {
		if strings.HasPrefix(line, "#") {
			continue
		}
		var s set
		var causalToo int
		if _, err := fmt.Sscan(line, &s.name, &s.heads, &s.lenQ, &s.lenKV, &s.dim, &s.scale, &causalToo); err != nil {
			t.Fatal(line, err)
		}
		s.q = make([]float32, s.lenQ*s.heads*s.dim)
		s.k = make([]float32, s.lenKV*s.heads*s.dim)
		s.v = make([]float32, len(s.k))
		load(t, s.name+"_q.f32", s.q)
		load(t, s.name+"_k.f32", s.k)
		load(t, s.name+"_v.f32", s.v)
		for causal, suffix := range []string{"_out.f64", "_out_causal.f64"}[:1+causalToo] {
			one := s
			one.causal = causal == 1
			one.exact = make([]float64, len(s.q))
			load(t, s.name+suffix, one.exact)
			all = append(all, &one)
		}
	}
	return all
}

// Nil if out is right.
func (s *set) check(out []float32) error {
	largest := 0.0
	for _, x := range s.v {
		largest = math.Max(largest, math.Abs(float64(x)))
	}
	for i, want := range s.exact {
		if !(math.Abs(float64(out[i])-want) <= bound*largest) {
			return fmt.Errorf("%s causal=%v: element %d is %g instead of %g", s.name, s.causal, i, out[i], want)
		}
	}
	return nil
}

func nans(n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(math.NaN())
	}
	return x
}

func TestRealModel(t *testing.T) {
	all := sets(t)
	if len(all) < 6 {
		t.Fatal("only", len(all), "sets")
	}
	for _, s := range all {
		out := nans(len(s.q))
		if err := modelAttention(s, out); err != nil {
			t.Error(s.name, err)
		} else if err := s.check(out); err != nil {
			t.Error(err)
		}
	}
}

func TestGoroutinesAtOnce(t *testing.T) {
	var group sync.WaitGroup
	begin := make(chan struct{}) // all at once, or one would be done before the next begins
	all := sets(t)
	for i := 0; i < 4*len(all); i++ {
		s := all[i%len(all)]
		group.Add(1)
		go func() {
			defer group.Done()
			out := nans(len(s.q))
			<-begin
			if err := modelAttention(s, out); err != nil {
				t.Error(err)
			} else if err := s.check(out); err != nil {
				t.Error(err)
			}
		}()
	}
	close(begin)
	group.Wait()
}

// A head of an interleaved array by strides is that head, to the bit.
func TestStrides(t *testing.T) {
	s := sets(t)[0]
	whole, out := nans(len(s.q)), nans(s.lenQ*s.dim)
	if err := modelAttention(s, whole); err != nil {
		t.Fatal(err)
	}
	const head = 5
	row := s.heads * s.dim
	one := func(x []float32, tokens int) attention.Tensor {
		return attention.Tensor{
			Data: x[head*s.dim:], Batch: 1, Heads: 1, Tokens: tokens, Dim: s.dim, Stride: [3]int{0, 0, row},
		}
	}
	err := attention.Run(one(s.q, s.lenQ), one(s.k, s.lenKV), one(s.v, s.lenKV),
		attention.HeadFirst(out, 1, 1, s.lenQ, s.dim), attention.Options{Scale: s.scale, Causal: s.causal})
	if err != nil {
		t.Fatal(err)
	}
	for i := range out {
		if want := whole[i/s.dim*row+head*s.dim+i%s.dim]; out[i] != want {
			t.Fatal("element", i, "is", out[i], "instead of", want)
		}
	}
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
		"negative stride": {fine, with(keys, func(t *attention.Tensor) { t.Stride[1] = -4 }), keys, to,
			attention.Options{}, false},
		"negative size": {with(fine, func(t *attention.Tensor) { t.Tokens = -3 }), keys, keys, to,
			attention.Options{}, false},
		"huge size": {with(fine, func(t *attention.Tensor) { t.Tokens = math.MaxInt }), keys, keys, to,
			attention.Options{}, false},
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
		"short LSE":     {fine, keys, keys, to, attention.Options{LSE: make([]float32, 5)}, true},
		"window behind": {fine, keys, keys, to, attention.Options{Window: -1}, true},
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
}

// Output and log-sum-exp of one head, from the formula. sees tells which keys a row does, add what is added.
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

// Two query heads on one of the keys; two sequences, of which the second uses fewer keys. Goroutines compute
// different problems at once.
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
	lens := []int32{lenKV, 5}
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
				behind := i + length - lenQ - j
				return j < length && !(options.Causal && behind < 0) && !(options.Window > 0 && behind >= options.Window)
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
