package attention_test

import (
	"fmt"

	attention "flash_attention/bindings/go"
)

// A decode loop of one layer and sequence: grouped heads, and a cache of 8-bit integers in pages,
// in which each token of each head has a scale of its own.
func decodePaged(tokens int, project func(token int) (q, k, v []float32), each func(token int, out []float32)) error {
	const heads, headsKV, dim, pages, pageSize = 8, 2, 64, 16, 4
	pool, err := attention.NewPool(0) // one thread per core
	if err != nil {
		return err
	}
	defer pool.Close()

	layout := attention.TokenFirst(nil, pages, pageSize, headsKV, dim) // [page][token][head][dim]
	cache := func() attention.Tensor {
		scales := make([]float32, pages*pageSize*headsKV)
		return attention.Quantised(layout, attention.I8, make([]byte, len(scales)*dim), attention.PerToken(scales, layout))
	}
	k, v := cache(), cache()
	table, length := []int32{7, 2, 9, 4}, []int32{0} // the pages of this sequence, and its keys in use
	options := attention.Options{Causal: true, BlockTable: table, KVLens: length, Pool: pool,
		Workspace: &attention.Workspace{}}
	q, out := make([]float32, heads*dim), make([]float32, heads*dim)
	step, err := attention.New(attention.TokenFirst(q, 1, 1, heads, dim), k, v, attention.TokenFirst(out, 1, 1, heads, dim), options)
	if err != nil {
		return err
	}
	for token := 0; token < tokens; token++ {
		newQ, newK, newV := project(token)
		copy(q, newQ)
		length[0]++ // counts the new token, for Append and for Run
		err := attention.Append(k, v, attention.TokenFirst(newK, 1, 1, headsKV, dim),
			attention.TokenFirst(newV, 1, 1, headsKV, dim), options)
		if err != nil {
			return err
		}
		if err := step.Run(); err != nil {
			return err
		}
		each(token, out)
	}
	return nil
}

// Decode from a paged cache of 8-bit integers: the function above, decodePaged.
func Example_pagedDecode() {
	const heads, headsKV, dim = 8, 2, 64
	project := func(token int) (q, k, v []float32) {
		q, k, v = make([]float32, heads*dim), make([]float32, headsKV*dim), make([]float32, headsKV*dim)
		for h := 0; h < headsKV; h++ {
			k[h*dim+token], v[h*dim] = 30, float32(token) // a key in a direction of its own
		}
		for h := 0; h < heads; h++ {
			q[h*dim+token/2] = 30 // matches the key of half the position
		}
		return q, k, v
	}
	err := decodePaged(13, project, func(token int, out []float32) {
		if token%4 == 0 {
			fmt.Printf("token %d attends to token %.2f\n", token, out[0])
		}
	})
	if err != nil {
		fmt.Println(err)
	}
	// Output:
	// token 0 attends to token 0.00
	// token 4 attends to token 2.00
	// token 8 attends to token 4.00
	// token 12 attends to token 6.00
}
