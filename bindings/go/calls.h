// What Go calls. Go memory that C is given must not hold pointers to Go memory, but arguments may
// be such pointers: so descriptions and scales come by value, and are joined here.
#ifndef FA_GO_CALLS_H
#define FA_GO_CALLS_H

#define FA_NO_HELPERS
#include <flash_attention.h>
#include <stdlib.h>

typedef struct fa_go_quants {
	fa_quant q, k, v, o;
} fa_go_quants;

static inline const fa_quant *fa_go_some(const fa_quant *q)
{
	return q->scale == NULL && q->zero == NULL ? NULL : q;
}

static inline const fa_attention *fa_go_joined(fa_attention *a, const fa_go_quants *quants)
{
	a->q.quant = fa_go_some(&quants->q), a->k.quant = fa_go_some(&quants->k), a->v.quant = fa_go_some(&quants->v);
	a->o.quant = fa_go_some(&quants->o);
	return a;
}

static inline int32_t fa_go_width(const fa_pool *pool)
{
	int32_t width = pool == NULL || pool->width == NULL ? 1 : pool->width(pool->ctx);
	return width < 1 ? 1 : width > 256 ? 256 : width;
}

static inline enum fa_status fa_go_workspace(fa_attention a, fa_go_quants quants, int32_t parts, size_t *bytes)
{
	return fa_attention_workspace(fa_go_joined(&a, &quants), parts, bytes);
}

static inline enum fa_status fa_go_workspace_max(fa_attention a, fa_go_quants quants, int32_t max_parts, size_t *bytes)
{
	return fa_attention_workspace_max(fa_go_joined(&a, &quants), max_parts, bytes);
}

// own: there is no workspace, and one is allocated for the time of the call.
static inline enum fa_status fa_go_run(fa_attention a, fa_go_quants quants, bool own, void *ws, size_t bytes,
                                       const fa_pool *pool)
{
	fa_status status;
	fa_go_joined(&a, &quants);
	if (!own)
		return fa_attention_run(&a, ws, bytes, pool);
	status = fa_attention_workspace(&a, fa_go_width(pool), &bytes);
	if (status != FA_OK)
		return status;
	ws = bytes > 0 ? malloc(bytes) : NULL;
	if (ws == NULL && bytes > 0)
		return FA_ERR_MEMORY;
	status = fa_attention_run(&a, ws, bytes, pool);
	free(ws);
	return status;
}

// What fa_go_run says, in words. A workspace of its own would be large enough, and is not touched.
static inline enum fa_status fa_go_check_run(fa_attention a, fa_go_quants quants, bool own, const void *ws, size_t bytes,
                                             const fa_pool *pool, char *why, size_t why_size)
{
	void *memory = NULL;
	fa_status status;
	fa_go_joined(&a, &quants);
	if (own && fa_attention_workspace(&a, fa_go_width(pool), &bytes) == FA_OK && bytes > 0)
		ws = memory = malloc(bytes);
	status = fa_attention_check_run(&a, ws, bytes, pool, why, why_size);
	free(memory);
	return status;
}

static inline enum fa_status fa_go_part(fa_attention a, fa_go_quants quants, void *ws, size_t bytes, int32_t part, int32_t parts,
                                   bool finish)
{
	fa_go_joined(&a, &quants);
	return finish ? fa_attention_finish(&a, ws, bytes, part, parts) : fa_attention_part(&a, ws, bytes, part, parts);
}

static inline enum fa_status fa_go_check(fa_attention a, fa_go_quants quants, char *why, size_t why_size)
{
	return fa_attention_check(fa_go_joined(&a, &quants), why, why_size);
}

static inline enum fa_status fa_go_plan(fa_attention a, fa_go_quants quants, int32_t parts, fa_plan *plan)
{
	plan->struct_size = sizeof *plan;
	return fa_attention_plan(fa_go_joined(&a, &quants), parts, plan);
}

static inline enum fa_status fa_go_append(fa_attention a, fa_go_quants quants, bool has_k, fa_tensor new_k, bool has_v,
                                     fa_tensor new_v, char *why, size_t why_size)
{
	return fa_cache_append(fa_go_joined(&a, &quants), has_k ? &new_k : NULL, has_v ? &new_v : NULL, why, why_size);
}

// Without smooth also what is not FA_DTYPE_I8.
static inline enum fa_status fa_go_quantize(fa_tensor src, int64_t batch, int64_t heads, int64_t tokens, int64_t dim,
                                       const float *smooth, fa_tensor dst, fa_quant quant)
{
	dst.quant = fa_go_some(&quant);
	if (smooth != NULL)
		return fa_quantize_i8(&src, batch, heads, tokens, dim, smooth, &dst);
	return fa_quantize(&src, batch, heads, tokens, dim, &dst);
}

// Lists come back as numbers of entries behind memory, as C must not leave pointers in Go memory.
typedef struct fa_go_places {
	int64_t kept_start, kept_blocks, column_start, columns;
} fa_go_places;

static inline enum fa_status fa_go_sparse(fa_sparse_config cfg, int32_t *memory, int64_t room, fa_sparse_lists *out,
                                     fa_go_places *at, char *why, size_t why_size)
{
	fa_sparse_lists lists = {.struct_size = sizeof lists};
	fa_status status = fa_sparse_from_partitions(&cfg, memory, room, &lists, why, why_size);
	if (status != FA_OK)
		return status;
	if (memory != NULL) {
		at->kept_start = lists.kept_start - memory, at->kept_blocks = lists.kept_blocks - memory;
		at->column_start = lists.column_start - memory, at->columns = lists.columns - memory;
	}
	lists.kept_start = lists.kept_blocks = lists.column_start = lists.columns = NULL;
	*out = lists;
	return status;
}

// A pool whose functions are Go's: pool.go has them.
int32_t fa_go_pool_width(uintptr_t handle);
void fa_go_pool_each(uintptr_t handle, size_t n, fa_task task, void *arg);

static inline int32_t fa_go_width_of(void *ctx)
{
	return fa_go_pool_width((uintptr_t)ctx);
}

static inline void fa_go_each_of(void *ctx, size_t n, fa_task task, void *arg)
{
	fa_go_pool_each((uintptr_t)ctx, n, task, arg);
}

static inline fa_pool *fa_go_pool(uintptr_t handle)
{
	fa_pool *pool = malloc(sizeof *pool);
	if (pool != NULL) {
		fa_pool made = {.struct_size = sizeof made, .ctx = (void *)handle, .width = fa_go_width_of,
		                .parallel_for = fa_go_each_of};
		*pool = made;
	}
	return pool;
}

static inline void fa_go_call(fa_task task, void *arg, size_t i)
{
	task(arg, i);
}

#endif
