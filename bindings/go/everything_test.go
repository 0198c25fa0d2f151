package attention_test

import (
	"errors"
	"math"
	"math/rand"
	"sync"
	"sync/atomic"
	"testing"

	attention "flash_attention/bindings/go"
)

const (
	headsQ, headsKV, lenQ, lenKV, dim = 4, 2, 5, 12, 32
)

// A problem of one sequence, [head][token][dim].
type problem struct{ q, k, v []float32 }

func normals(seed int64, n int) []float32 {
	random := rand.New(rand.NewSource(seed))
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(random.NormFloat64())
	}
	return x
}

func newProblem() problem {
	return problem{normals(1, headsQ*lenQ*dim), normals(2, headsKV*lenKV*dim), normals(3, headsKV*lenKV*dim)}
}

// What options do to a score, and whether a row sees a key; nil = nothing, and all.
type rule struct {
	score func(h, i, j int, s float64) float64
	sees  func(h, i, j int) bool
	sink  func(h int) float64
}

func (p problem) formula(r rule) (out, lse []float64) {
	for row := 0; row < headsQ*lenQ; row++ {
		h, i := row/lenQ, row%lenQ
		sum, o := 0.0, make([]float64, dim)
		if r.sink != nil {
			sum = math.Exp(r.sink(h))
		}
		for j := 0; j < lenKV; j++ {
			if r.sees != nil && !r.sees(h, i, j) {
				continue
			}
			at, s := (h*headsKV/headsQ*lenKV+j)*dim, 0.0
			for d := 0; d < dim; d++ {
				s += float64(p.q[row*dim+d]) * float64(p.k[at+d])
			}
			s /= math.Sqrt(dim)
			if r.score != nil {
				s = r.score(h, i, j, s)
			}
			w := math.Exp(s)
			sum += w
			for d := range o {
				o[d] += w * float64(p.v[at+d])
			}
		}
		for d := range o {
			if sum > 0 {
				o[d] /= sum
			}
		}
		out, lse = append(out, o...), append(lse, math.Log(sum))
	}
	return out, lse
}

func (p problem) tensors() (q, k, v attention.Tensor) {
	return attention.HeadFirst(p.q, 1, headsQ, lenQ, dim), attention.HeadFirst(p.k, 1, headsKV, lenKV, dim),
		attention.HeadFirst(p.v, 1, headsKV, lenKV, dim)
}

func near(t *testing.T, name string, got []float32, want []float64, bound float64) {
	t.Helper()
	for i := range want {
		if !(math.Abs(float64(got[i])-want[i]) <= bound) && !(math.IsInf(want[i], -1) && math.IsInf(float64(got[i]), -1)) {
			t.Fatalf("%s: element %d is %g instead of %g", name, i, got[i], want[i])
		}
	}
}

func run(t *testing.T, name string, p problem, o attention.Options) (out, lse []float32) {
	t.Helper()
	q, k, v := p.tensors()
	out, lse = nans(len(p.q)), nans(headsQ*lenQ)
	o.LSE = lse
	if err := attention.Run(q, k, v, attention.HeadFirst(out, 1, headsQ, lenQ, dim), o); err != nil {
		t.Fatal(name, err)
	}
	return out, lse
}

func TestFields(t *testing.T) {
	p := newProblem()
	slopes, sinks := []float32{0.5, 0.25, 0.125, 1}, []float32{0, 1, -1, float32(math.Inf(-1))}
	position := func(i int) int { return i + lenKV - lenQ }
	distance := func(i, j int) float64 { return math.Abs(float64(position(i) - j)) }
	visible := make([]byte, headsQ*3*3)
	for i := range visible {
		visible[i] = byte(i * 7 % 5)
	}
	bools, squares := make([]bool, lenQ*lenKV), make([]float32, lenQ*lenKV)
	for i := range bools {
		bools[i], squares[i] = i*5%7 != 0, -float32(i*3%11)
	}
	// Blocks of 4 keys of each kv head and 2 or 3 rows; the second head's lists begin at entry 3.
	kept := &attention.Kept{Start: []int32{0, 1, 3, 3, 5, 6}, Blocks: []int32{0, 1, 2, 0, 2, 1}, Stride: [2]int{0, 3}, Heads: headsKV,
		Q: 3, KV: 4}
	inKept := func(h, i, j int) bool {
		at := h*headsKV/headsQ*3 + i/3
		for _, block := range kept.Blocks[kept.Start[at]:kept.Start[at+1]] {
			if int(block) == j/4 {
				return true
			}
		}
		return false
	}
	columns := &attention.Columns{Start: []int32{0, 2, 3}, Keys: []int32{1, 9, 6}, Stride: [2]int{0, 1}, Heads: headsKV}
	inColumns := func(h, j int) bool {
		if h < 2 {
			return j == 1 || j == 9
		}
		return j == 6
	}
	cases := map[string]struct {
		o attention.Options
		r rule
	}{
		"plain":   {},
		"softcap": {attention.Options{Softcap: 1.5}, rule{score: func(h, i, j int, s float64) float64 { return 1.5 * math.Tanh(s/1.5) }}},
		"ALiBi": {attention.Options{ALiBiSlopes: slopes}, rule{score: func(h, i, j int, s float64) float64 {
			return s - float64(slopes[h])*distance(i, j)
		}}},
		"times slope": {attention.Options{ALiBiSlopes: slopes, MaskTimesSlope: true, Mask: attention.HeadFirst(squares, 1, 1, lenQ, lenKV)},
			rule{score: func(h, i, j int, s float64) float64 { return s + float64(slopes[h])*float64(squares[i*lenKV+j]) }}},
		"bools": {attention.Options{Mask: attention.Stored(attention.HeadFirst(nil, 1, 1, lenQ, lenKV), attention.Bool8,
			attention.BytesOf(bools))}, rule{sees: func(h, i, j int) bool { return bools[i*lenKV+j] }}},
		"sinks": {attention.Options{Sinks: sinks}, rule{sink: func(h int) float64 { return float64(sinks[h]) }}},
		"blocks": {attention.Options{BlockMask: &attention.BlockMask{Visible: visible, Stride: [3]int{0, 9, 3}, Q: 2, KV: 5}},
			rule{sees: func(h, i, j int) bool { return visible[h*9+i/2*3+j/5] != 0 }}},
		"kept": {attention.Options{Kept: kept}, rule{sees: inKept}},
		"columns": {attention.Options{Kept: kept, Columns: columns, Causal: true}, rule{sees: func(h, i, j int) bool {
			return j <= position(i) && (inKept(h, i, j) || inColumns(h, j))
		}}},
		"ahead": {attention.Options{Causal: true, LookAhead: 2}, rule{sees: func(h, i, j int) bool { return j <= position(i)+2 }}},
		"at":    {attention.Options{Causal: true, QPos: attention.At(3)}, rule{sees: func(h, i, j int) bool { return j <= i+3 }}},
		"none":  {attention.Options{Causal: true, QPos: attention.At(-2)}, rule{sees: func(h, i, j int) bool { return j <= i-2 }}},
		"tiles": {attention.Options{BlockQ: 2, BlockKV: 3, Precise: true, Workspace: &attention.Workspace{}}, rule{}},
		"fast":  {attention.Options{Fast: true, LenKV: 7}, rule{sees: func(h, i, j int) bool { return j < 7 }}},
	}
	for name, c := range cases {
		out, lse := run(t, name, p, c.o)
		wantOut, wantLSE := p.formula(c.r)
		near(t, name, out, wantOut, bound)
		near(t, name+" LSE", lse, wantLSE, bound)
	}
	// Each sequence of a batch has slopes of its own.
	var twice problem
	twice.q, twice.k, twice.v = append(p.q, p.q...), append(p.k, p.k...), append(p.v, p.v...)
	out := nans(len(twice.q))
	err := attention.Run(attention.HeadFirst(twice.q, 2, headsQ, lenQ, dim), attention.HeadFirst(twice.k, 2, headsKV, lenKV, dim),
		attention.HeadFirst(twice.v, 2, headsKV, lenKV, dim), attention.HeadFirst(out, 2, headsQ, lenQ, dim),
		attention.Options{ALiBiSlopes: append(make([]float32, headsQ), slopes...)})
	if err != nil {
		t.Fatal(err)
	}
	plain, _ := p.formula(rule{})
	near(t, "no slopes", out, plain, bound)
	biased, _ := p.formula(cases["ALiBi"].r)
	near(t, "slopes", out[len(p.q):], biased, bound)
}

// Caches of all types of elements, dense and in pages, that are written by Quantize and by Append.
func TestTypes(t *testing.T) {
	p := newProblem()
	want, _ := p.formula(rule{})
	bounds := map[attention.Type]float64{attention.F32: 1e-5, attention.F16: 2e-3, attention.BF16: 2e-2, attention.I8: 2e-2,
		attention.U8: 2e-2, attention.F8_E4M3: 2e-1, attention.F8_E5M2: 4e-1, attention.Q15: 1e-3}
	const pages, page = 5, 4
	table := []int32{3, 0, 4}
	q, k, v := p.tensors()
	for of, most := range bounds {
		_, size := of.Block()
		stored := func(like attention.Tensor) attention.Tensor {
			tokens := like.Batch * like.Heads * like.Tokens
			var quant *attention.Quant
			if size == 1 || of == attention.Q15 {
				quant = attention.PerToken(make([]float32, tokens), like)
			}
			if of == attention.U8 {
				quant.Zero = make([]float32, tokens)
			}
			if of == attention.F32 {
				like.Data = make([]float32, tokens*dim)
				return like
			}
			return attention.Quantised(like, of, make([]byte, tokens*dim*size), quant)
		}
		denseK, denseV := stored(attention.HeadFirst(nil, 1, headsKV, lenKV, dim)), stored(attention.HeadFirst(nil, 1, headsKV, lenKV, dim))
		inPages := attention.TokenFirst(nil, pages, page, headsKV, dim)
		pagedK, pagedV := stored(inPages), stored(inPages)
		paged := attention.Options{BlockTable: table, KVLens: []int32{lenKV}}
		for _, err := range []error{attention.Quantize(k, denseK), attention.Quantize(v, denseV),
			attention.Append(pagedK, pagedV, k, attention.Tensor{}, paged), attention.Append(pagedK, pagedV, attention.Tensor{}, v, paged)} {
			if err != nil {
				t.Fatal(of, err)
			}
		}
		var outs [2][]float32
		for i, c := range []struct {
			k, v attention.Tensor
			o    attention.Options
		}{{denseK, denseV, attention.Options{}}, {pagedK, pagedV, paged}} {
			outs[i] = nans(len(p.q))
			if err := attention.Run(q, c.k, c.v, attention.HeadFirst(outs[i], 1, headsQ, lenQ, dim), c.o); err != nil {
				t.Fatal(of, err)
			}
			near(t, "type", outs[i], want, most)
		}
		for i := range outs[0] {
			if outs[0][i] != outs[1][i] {
				t.Fatalf("type %d: element %d is %g, in pages %g", of, i, outs[0][i], outs[1][i])
			}
		}
	}
	// An output of fractions is divided by its scale.
	fractions, back := make([]int16, len(p.q)), make([]float32, len(p.q))
	scaled := attention.Quantised(attention.HeadFirst(nil, 1, headsQ, lenQ, dim), attention.Q15, attention.BytesOf(fractions),
		&attention.Quant{Scale: []float32{8}})
	if err := attention.Run(q, k, v, scaled, attention.Options{}); err != nil {
		t.Fatal(err)
	}
	for i, x := range fractions {
		back[i] = float32(x) / 32768 * 8
	}
	near(t, "fractions", back, want, 2e-4)
	// Queries and outputs of 16 bits, and a mean subtracted from keys.
	q16, out16 := make([]uint16, len(p.q)), make([]uint16, len(p.q))
	half := attention.Stored(q, attention.BF16, attention.BytesOf(q16))
	k8 := attention.Quantised(k, attention.I8, make([]byte, len(p.k)), &attention.Quant{Scale: make([]float32, headsKV), Stride: [4]int{0, 1}})
	smooth := make([]float32, headsKV*dim)
	for i := range p.k {
		smooth[i/(lenKV*dim)*dim+i%dim] += p.k[i] / lenKV
	}
	if err := attention.QuantizeI8(k, k8, smooth); err != nil {
		t.Fatal(err)
	}
	if err := attention.Quantize(q, half); err != nil {
		t.Fatal(err)
	}
	out := attention.Stored(q, attention.BF16, attention.BytesOf(out16))
	if err := attention.Run(half, k8, v, out, attention.Options{}); err != nil {
		t.Fatal(err)
	}
	got := make([]float32, len(out16))
	for i, bits := range out16 {
		got[i] = math.Float32frombits(uint32(bits) << 16)
	}
	near(t, "16 bits", got, want, 3e-2)
	if attention.QuantizeI8(k, k8, smooth[1:]) == nil {
		t.Error("a vector that is too short was taken")
	}
}

// Two sequences of 2 and 3 rows on 7 and 12 keys: ragged, and in lists of pages of their own.
func TestRagged(t *testing.T) {
	p := newProblem()
	cuQ, lens := []int32{0, 2, 5}, []int{7, 12}
	first, count := []int{0, 2}, []int{2, 3}
	// Keys behind one another, [head][7 + 12][dim]; both sequences have the first keys of the problem.
	ragged := func(x []float32) []float32 {
		var y []float32
		for h := 0; h < headsKV; h++ {
			head := x[h*lenKV*dim : (h+1)*lenKV*dim]
			y = append(append(y, head[:7*dim]...), head...)
		}
		return y
	}
	q, _, _ := p.tensors()
	k, v := attention.HeadFirst(ragged(p.k), 1, headsKV, 19, dim), attention.HeadFirst(ragged(p.v), 1, headsKV, 19, dim)
	const page = 3
	table, start := []int32{1, 0, 6, 2, 3, 5, 4}, []int32{0, 3, 7}
	pagedK, pagedV := attention.HeadFirst(make([]float32, 7*headsKV*page*dim), 7, headsKV, page, dim), attention.Tensor{}
	pagedV = pagedK
	pagedV.Data = make([]float32, len(pagedK.Data))
	paged := attention.Options{CuLenQ: []int32{0, 7, 19}, BlockTable: table, BlockTableStart: start, KVLens: []int32{7, 12}}
	if err := attention.Append(pagedK, pagedV, k, v, paged); err != nil {
		t.Fatal(err)
	}
	paged.CuLenQ, paged.Causal = cuQ, true
	for name, c := range map[string]struct {
		k, v attention.Tensor
		o    attention.Options
	}{"ragged": {k, v, attention.Options{Causal: true, CuLenQ: cuQ, CuLenKV: []int32{0, 7, 19}}}, "pages": {pagedK, pagedV, paged}} {
		out, lse := nans(len(p.q)), nans(headsQ*lenQ)
		c.o.LSE = lse
		if err := attention.Run(q, c.k, c.v, attention.HeadFirst(out, 1, headsQ, lenQ, dim), c.o); err != nil {
			t.Fatal(name, err)
		}
		for b := range lens {
			want, wantLSE := p.formula(rule{sees: func(h, i, j int) bool { return j < lens[b] && j <= i-first[b]+lens[b]-count[b] }})
			for h := 0; h < headsQ; h++ {
				at := h*lenQ + first[b]
				near(t, name, out[at*dim:], want[at*dim:(at+count[b])*dim], bound)
				near(t, name+" LSE", lse[at:at+count[b]], wantLSE[at:at+count[b]], bound)
			}
		}
	}
}

// A list that leads out of its slice after it was described is refused by each call.
func TestListsThatChange(t *testing.T) {
	p := newProblem()
	q, k, v := p.tensors()
	out := nans(len(p.q))
	kept := &attention.Kept{Start: []int32{0, 1, 2}, Blocks: []int32{0, 0}, Q: 3, KV: lenKV}
	cu := []int32{0, lenQ}
	a, err := attention.New(q, k, v, attention.HeadFirst(out, 1, headsQ, lenQ, dim),
		attention.Options{Kept: kept, CuLenQ: cu, CuLenKV: []int32{0, lenKV}})
	if err != nil || a.Run() != nil {
		t.Fatal(err)
	}
	shared := &attention.Workspace{}
	shared.Reserve(1 << 20)
	refused := func(name string) {
		t.Helper()
		_, checked := a.Check()
		_, checkedRun := a.CheckRun()
		_, planned := a.Plan(1)
		for i, err := range []error{checked, checkedRun, planned, a.Run(), a.Part(shared, 0, 1), a.Finish(shared, 0, 1)} {
			var by *attention.Error
			if !errors.As(err, &by) {
				t.Errorf("%s, call %d: %v", name, i, err)
			}
		}
	}
	kept.Start[2] = 3
	refused("blocks")
	kept.Start[2], cu[0], cu[1] = 2, 1, lenQ+1
	refused("rows")
}

// Ragged lists that lead out of one slice after they were described: the library knows how long
// each slice is.
func TestMemoryIsKnown(t *testing.T) {
	p := newProblem()
	for short := 0; short < 6; short++ {
		room := func(which, n int) []float32 {
			if which == short {
				return make([]float32, n)
			}
			return make([]float32, n+headsQ*dim)
		}
		cuQ, cuKV := []int32{0, lenQ}, []int32{0, lenKV}
		a, err := attention.New(attention.TokenFirst(room(0, len(p.q)), 1, lenQ, headsQ, dim),
			attention.HeadFirst(room(1, len(p.k)), 1, headsKV, lenKV, dim), attention.HeadFirst(room(2, len(p.v)), 1, headsKV, lenKV, dim),
			attention.TokenFirst(room(3, len(p.q)), 1, lenQ, headsQ, dim),
			attention.Options{CuLenQ: cuQ, CuLenKV: cuKV, LSE: room(4, headsQ*lenQ), LSEStride: [3]int{0, 1, headsQ}})
		if err != nil || a.Run() != nil {
			t.Fatal(err)
		}
		cuQ[0], cuQ[1], cuKV[0], cuKV[1] = 1, lenQ+1, 1, lenKV+1
		const errShape = 12 // FA_ERR_SHAPE: others would come by chance from what lies behind a slice
		var refused *attention.Error
		if err := a.Run(); (err == nil) != (short == 5) || (errors.As(err, &refused) && refused.Status != errShape) {
			t.Errorf("slice %d: %v", short, err)
		}
	}
}

// Each kv head reads pages of its own.
func TestPagesOfHeads(t *testing.T) {
	p := newProblem()
	q, k, v := p.tensors()
	const page = 4
	inPages := func(t attention.Tensor) attention.Tensor { // 3 pages of 4 keys
		return attention.Tensor{Data: t.Data, Batch: 3, Heads: headsKV, Tokens: page, Dim: dim,
			Stride: [3]int{page * dim, lenKV * dim, dim}}
	}
	table := []int32{2, 0, 0, 1}
	out := nans(len(p.q))
	err := attention.Run(q, inPages(k), inPages(v), attention.HeadFirst(out, 1, headsQ, lenQ, dim),
		attention.Options{BlockTable: table, TableHeadStride: 2})
	if err != nil {
		t.Fatal(err)
	}
	want, _ := p.formula(rule{sees: func(h, i, j int) bool {
		pages := table[h*headsKV/headsQ*2:][:2]
		return int(pages[0]) == j/page || int(pages[1]) == j/page
	}})
	near(t, "pages of heads", out, want, bound)
}

// Pools, own functions, and parts give the same bits; panics in Go come out of Run.
func TestThreads(t *testing.T) {
	const heads, len, dim = 8, 300, 64
	x := normals(4, heads*len*dim)
	tensor := attention.HeadFirst(x, 1, heads, len, dim)
	alone := nans(heads * len * dim)
	describe := func(out []float32, o attention.Options) *attention.Attention {
		o.Causal = true
		a, err := attention.New(tensor, tensor, tensor, attention.HeadFirst(out, 1, heads, len, dim), o)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	if err := describe(alone, attention.Options{}).Run(); err != nil {
		t.Fatal(err)
	}
	same := func(name string, out []float32, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(name, err)
		}
		for i := range out {
			if out[i] != alone[i] {
				t.Fatalf("%s: element %d is %g instead of %g", name, i, out[i], alone[i])
			}
		}
	}
	own, err := attention.NewPool(3)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	var calls int32
	goroutines, err := attention.PoolOf(4, func(n int, task func(i int)) {
		atomic.AddInt32(&calls, 1)
		attention.Goroutines(n, task)
	})
	if err != nil {
		t.Fatal(err)
	}
	workspace := &attention.Workspace{}
	for name, pool := range map[string]*attention.Pool{"own": own, "goroutines": goroutines} {
		out := nans(heads * len * dim)
		a := describe(out, attention.Options{Pool: pool, Workspace: workspace})
		if why, err := a.CheckRun(); err != nil || why == "" {
			t.Fatal(name, why, err)
		}
		same(name, out, a.Run())
		plan, err := a.Plan(0)
		if err != nil || plan.Threads < 2 || plan.Threads > pool.Width() || plan.ISA == "" || plan.Compute != "f32" || plan.Decode ||
			plan.WorkspaceBytes > workspace.Bytes() || plan.TileRows < 1 || plan.WorkItems < 1 {
			t.Fatalf("%s: %+v %v", name, plan, err)
		}
	}
	if calls == 0 {
		t.Error("the function of the pool was not called")
	}
	goroutines.Close()
	goroutines.Close()
	if goroutines.Width() != 1 {
		t.Error("a pool that is closed is still wide")
	}

	out := nans(heads * len * dim)
	a := describe(out, attention.Options{})
	const parts = 4
	bytes, err := a.WorkspaceBytes(parts)
	most, errMost := a.WorkspaceBytesMax(parts)
	if err != nil || errMost != nil || most < bytes {
		t.Fatal(bytes, most, err, errMost)
	}
	shared := &attention.Workspace{}
	shared.Reserve(most)
	for _, step := range []func(*attention.Workspace, int, int) error{a.Part, a.Finish} {
		var group sync.WaitGroup
		for part := 0; part < parts; part++ {
			part := part
			group.Add(1)
			go func() {
				defer group.Done()
				if err := step(shared, part, parts); err != nil {
					t.Error(err)
				}
			}()
		}
		group.Wait()
	}
	same("parts", out, nil)
	if a.Part(shared, parts, parts) == nil || a.Part(shared, 1<<40, parts) == nil {
		t.Error("a part that is none was taken")
	}
	if _, err := a.Plan(-1); err == nil {
		t.Error("a plan of -1 parts")
	}
	if why, err := a.Check(); err != nil || why == "" {
		t.Error(why, err)
	}
	if _, err := attention.NewPool(-1); err == nil {
		t.Error("a pool of -1 threads")
	}

	bad, err := attention.PoolOf(2, func(int, func(int)) { panic("of the pool") })
	if err != nil {
		t.Fatal(err)
	}
	defer bad.Close()
	out = nans(heads * len * dim)
	func() {
		defer func() {
			if recover() != "of the pool" {
				t.Error("the panic did not come out")
			}
		}()
		_ = describe(out, attention.Options{Pool: bad}).Run()
	}()
	same("panic", out, nil)
}

func TestMerge(t *testing.T) {
	p := newProblem()
	want, wantLSE := p.formula(rule{})
	var outs, lses [2][]float32
	q, k, v := p.tensors()
	for i := range outs {
		half := func(t attention.Tensor) attention.Tensor {
			t.Data, t.Tokens = t.Data[i*6*dim:], 6
			return t
		}
		outs[i], lses[i] = nans(len(p.q)), nans(headsQ*lenQ)
		// Rows of LSE in the order of those of the output, which is [token][head][dim].
		o := attention.Options{LSE: lses[i], LSEStride: [3]int{0, 1, headsQ}}
		if err := attention.Run(q, half(k), half(v), attention.TokenFirst(outs[i], 1, lenQ, headsQ, dim), o); err != nil {
			t.Fatal(err)
		}
	}
	if err := attention.Merge(outs[0], lses[0], outs[1], lses[1], dim); err != nil {
		t.Fatal(err)
	}
	for row := 0; row < headsQ*lenQ; row++ {
		other := row%headsQ*lenQ + row/headsQ
		near(t, "merged", outs[0][row*dim:][:dim], want[other*dim:][:dim], bound)
		near(t, "merged LSE", lses[0][row:][:1], wantLSE[other:][:1], bound)
	}
	if attention.Merge(outs[0], lses[0], outs[1], lses[1][1:], dim) == nil {
		t.Error("fewer rows were taken")
	}
}

// Lists of partitions are what the rows of a text see.
func TestPartitions(t *testing.T) {
	const length = 40
	parts := attention.NewPartitions([]int32{0, 16, 24}, length)
	parts.KeptQ, parts.KeptKV, parts.BoundaryTokens, parts.Window = 8, 8, []int32{0, 16, 24}, 2
	lists, err := parts.Lists()
	if err != nil || lists.Kept == nil || lists.Columns == nil || lists.Dense {
		t.Fatalf("%+v %v", lists, err)
	}
	measured, err := parts.Measure()
	if err != nil || measured.Pairs != lists.Pairs || measured.Kept != nil || lists.NumColumns != 3 {
		t.Fatalf("%+v %v", measured, err)
	}
	x, out := normals(5, length*dim), nans(length*dim)
	tensor := attention.HeadFirst(x, 1, 1, length, dim)
	err = attention.Run(tensor, tensor, tensor, attention.HeadFirst(out, 1, 1, length, dim),
		attention.Options{Causal: true, Kept: lists.Kept, Columns: lists.Columns})
	if err != nil {
		t.Fatal(err)
	}
	pairs := 0
	want, _ := formula(x, x, x, dim, func(i, j int) bool {
		inBlock := false
		for _, block := range lists.Kept.Blocks[lists.Kept.Start[i/8]:lists.Kept.Start[i/8+1]] {
			inBlock = inBlock || int(block) == j/8
		}
		sees := j <= i && (inBlock || j == 0 || j == 16 || j == 24)
		if sees {
			pairs++
		}
		return sees
	}, func(i, j int) float64 { return 0 })
	near(t, "partitions", out, want, bound)
	if pairs != lists.Pairs || math.Abs(lists.Density-float64(pairs)/float64(lists.AllPairs)) > 1e-12 {
		t.Errorf("%d pairs are seen, not %+v", pairs, lists)
	}
	parts.Starts = []int32{1}
	var refused *attention.Error
	if _, err := parts.Lists(); !errors.As(err, &refused) || refused.Why == "" {
		t.Error(err)
	}
}

func TestFixedPoint(t *testing.T) {
	const keys, dim = 9, 16
	q, k, v, out := make([]int16, 2*3*dim), make([]int16, keys*dim), make([]int16, keys*dim), make([]int16, 2*3*dim)
	qf, kf, vf := make([]float32, len(q)), make([]float32, len(k)), make([]float32, len(v))
	for x, xf := range map[*[]int16][]float32{&q: qf, &k: kf, &v: vf} {
		for i := range *x {
			(*x)[i] = int16(i * 7919 % 65536)
			xf[i] = float32((*x)[i]) / 32768
		}
	}
	f := attention.Fixed{Heads: 2, HeadsKV: 1, LenQ: 3, LenKV: keys, Dim: dim, Causal: true, Threads: 1}
	if err := attention.RunQ15(q, k, v, out, f); err != nil {
		t.Fatal(err)
	}
	for h := 0; h < 2; h++ {
		want, _ := formula(qf[h*3*dim:][:3*dim], kf, vf, dim, func(i, j int) bool { return j <= i+keys-3 },
			func(i, j int) float64 { return 0 })
		for i, w := range want {
			if math.Abs(float64(out[h*3*dim+i])/32768-w) > 1e-3 {
				t.Fatalf("element %d is %d instead of %g", i, out[h*3*dim+i], w*32768)
			}
		}
	}
	if attention.RunQ15(q, k[1:], v, out, f) == nil {
		t.Error("a slice that is too short was taken")
	}
}

func TestMachine(t *testing.T) {
	if attention.ABIVersion() != attention.HeaderABIVersion || attention.Version() == "" || attention.ISA() == "" {
		t.Error(attention.ABIVersion(), attention.Version(), attention.ISA())
	}
	if attention.LimitISA("no such") == nil {
		t.Error("a name that is none was taken")
	}
	if err := attention.LimitISA("scalar"); err != nil || attention.ISA() != "scalar" {
		t.Error(err, attention.ISA())
	}
	if err := attention.LimitISA(""); err != nil {
		t.Error(err)
	}
	var refused *attention.Error
	if err := attention.EnableAMX(); err != nil && (!errors.As(err, &refused) || refused.Why == "") {
		t.Error(err)
	}
	x := []uint16{1, 2}
	bytes := attention.BytesOf(x)
	if x[1] = 0x707; len(bytes) != 4 || bytes[2] != 7 || bytes[3] != 7 {
		t.Error("bytes of a slice are not its own")
	}
}
