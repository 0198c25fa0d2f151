/* Threads of the program's own, in the form in which the library takes them. */
#ifndef MINILM_POOL_H
#define MINILM_POOL_H

#include <flash_attention.h>

/* Makes threads - 1 threads; the one that calls is one of them, too. Used by one thread at a
 * time. */
fa_pool *pool_create(int32_t threads);
/* NULL is fine. */
void pool_destroy(fa_pool *pool);

#endif
