// Package example computes the attention of a real model on real text, and compares it with the
// exact outputs that come with the data.
package example

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"strings"
	"sync"
	"testing"

	attention "flash_attention/bindings/go"
)

const data = "../../../examples_c/data/"

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
