package attention

// #include "calls.h"
import "C"

import "math"

// Schedule is what the density is made from.
type Schedule int32

const (
	ScheduleNone      Schedule = C.FA_SCHEDULE_NONE
	ScheduleLinear    Schedule = C.FA_SCHEDULE_LINEAR
	ScheduleThreshold Schedule = C.FA_SCHEDULE_THRESHOLD
	ScheduleAdaptive  Schedule = C.FA_SCHEDULE_ADAPTIVE
)

// Partitions is a text in partitions, and how much of the attention is kept: the fields of
// fa_sparse_config. NewPartitions has the defaults.
type Partitions struct {
	// Query rows, the last tokens of the text, and all tokens of it.
	LenQ, LenKV int
	// Query rows and keys of a block.
	KeptQ, KeptKV int
	// The token at which each partition begins: 0, then ascending; nil = one partition.
	Starts []int32
	// Tokens that see each other, and that are seen across partitions: ascending.
	BoundaryTokens []int32
	// How many boundary tokens are kept at most; -1 = all.
	MaxEdges int
	// Tokens before each row that it sees, whatever the partitions are.
	Window int
	Causal bool

	Schedule                                              Schedule
	Coherence, CoherenceLow, CoherenceHigh, Concentration uint32
	// 0 to 32768, which is 1.
	MinDensity, MaxDensity uint32
}

// NewPartitions is a text of so many tokens, all of them query rows, causal, with the defaults.
func NewPartitions(starts []int32, length int) Partitions {
	var c C.fa_sparse_config
	C.fa_sparse_config_init(&c, C.sizeof_fa_sparse_config)
	return Partitions{
		LenQ: length, LenKV: length, KeptQ: int(c.kept_q), KeptKV: int(c.kept_kv), Starts: starts, MaxEdges: int(c.max_edges),
		Window: int(c.window), Causal: c.causal != 0, Schedule: Schedule(c.schedule), Coherence: uint32(c.coherence),
		CoherenceLow: uint32(c.coherence_low), CoherenceHigh: uint32(c.coherence_high),
		Concentration: uint32(c.concentration), MinDensity: uint32(c.min_density), MaxDensity: uint32(c.max_density),
	}
}

// SparseLists is what partitions make, the same for all heads and sequences, for Options.Kept and
// Options.Columns (nil if there are none), and how much they keep.
type SparseLists struct {
	Kept    *Kept
	Columns *Columns
	// Listed blocks, and columns.
	NumBlocks, NumColumns int
	// Pairs of a row and a key that it sees; of these, those in no listed block; those of dense
	// attention.
	Pairs, ColumnPairs, AllPairs int
	// The window that was chosen, and how many tokens of its partition a row sees to each side; -1 =
	// all.
	Window, Reach int
	// Pairs / AllPairs, and an estimate of the share of the time that is saved.
	Density, TimeSaved float64
	// The density that was aimed at: 32768 is 1.
	TargetDensity uint32
	// Everything is listed: attention without lists is as good.
	Dense bool
}

// Lists makes them.
func (p Partitions) Lists() (*SparseLists, error) { return p.make(true) }

// Measure is Lists, but only numbers are found.
func (p Partitions) Measure() (*SparseLists, error) { return p.make(false) }

func (p *Partitions) make(lists bool) (*SparseLists, error) {
	var c C.fa_sparse_config
	if status := C.fa_sparse_config_init(&c, C.sizeof_fa_sparse_config); status != C.FA_OK {
		return nil, failed(status, "")
	}
	c.len_q, c.len_kv, c.kept_q, c.kept_kv = C.int64_t(p.LenQ), C.int64_t(p.LenKV), C.int64_t(p.KeptQ), C.int64_t(p.KeptKV)
	c.partitions, c.num_partitions = pointer[C.int32_t](p.Starts), C.int64_t(len(p.Starts))
	c.boundary_tokens, c.num_boundary_tokens = pointer[C.int32_t](p.BoundaryTokens), C.int64_t(len(p.BoundaryTokens))
	c.max_edges, c.window, c.schedule = C.int64_t(p.MaxEdges), C.int64_t(p.Window), C.int32_t(p.Schedule)
	c.coherence, c.coherence_low, c.coherence_high = C.uint32_t(p.Coherence), C.uint32_t(p.CoherenceLow), C.uint32_t(p.CoherenceHigh)
	c.concentration, c.min_density, c.max_density = C.uint32_t(p.Concentration), C.uint32_t(p.MinDensity), C.uint32_t(p.MaxDensity)
	c.causal = 0
	if p.Causal {
		c.causal = 1
	}
	var found C.fa_sparse_lists
	var at C.fa_go_places
	var why words
	if status := C.fa_go_sparse(c, nil, 0, &found, &at, &why[0], C.size_t(len(why))); status != C.FA_OK {
		return nil, why.failed(status)
	}
	out := &SparseLists{
		NumBlocks: int(found.num_blocks), NumColumns: int(found.num_columns), Pairs: int(found.pairs),
		ColumnPairs: int(found.column_pairs), AllPairs: int(found.all_pairs), Window: int(found.window),
		Reach: int(found.reach), Density: float64(found.density), TimeSaved: float64(found.time_saved),
		TargetDensity: uint32(found.target_density), Dense: found.dense != 0,
	}
	if !lists {
		return out, nil
	}
	if found.room > math.MaxInt/4 {
		return nil, failed(C.FA_ERR_MEMORY, "")
	}
	memory := make([]int32, int(found.room))
	if len(memory) == 0 {
		return out, nil
	}
	status := C.fa_go_sparse(c, pointer[C.int32_t](memory), found.room, &found, &at, &why[0], C.size_t(len(why)))
	if status != C.FA_OK {
		return nil, why.failed(status)
	}
	part := func(at, n C.int64_t) []int32 { return memory[at : at+n : at+n] }
	out.Kept = &Kept{Start: part(at.kept_start, found.num_starts), Blocks: part(at.kept_blocks, found.num_blocks),
		Q: p.KeptQ, KV: p.KeptKV}
	if found.num_columns > 0 {
		out.Columns = &Columns{Start: part(at.column_start, 2), Keys: part(at.columns, found.num_columns)}
	}
	return out, nil
}
