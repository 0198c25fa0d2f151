#include "pool.h"

#include "fail.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

/* A loop's calls are handed out one by one under the lock, so who is late takes fewer. */
typedef struct own {
    fa_pool face; /* first: the library gets its address */
    int32_t threads;
    pthread_t *members;
    pthread_mutex_t lock; /* of all that follows */
    pthread_cond_t work, done;
    fa_task task;
    void *arg;
    size_t next, n, unfinished;
    bool quit;
} own;

/* Makes calls as long as there are some. The lock is held before and after, not during a call. */
static void take_part(own *p)
{
    while (p->next < p->n) {
        size_t i = p->next++;
        pthread_mutex_unlock(&p->lock);
        p->task(p->arg, i);
        pthread_mutex_lock(&p->lock);
        if (--p->unfinished == 0)
            pthread_cond_signal(&p->done);
    }
}

static void *member(void *ctx)
{
    own *p = ctx;
    pthread_mutex_lock(&p->lock);
    while (!p->quit) {
        take_part(p);
        if (!p->quit) /* it may have come during the calls */
            pthread_cond_wait(&p->work, &p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

static int32_t width(void *ctx)
{
    return ((own *)ctx)->threads;
}

static void parallel_for(void *ctx, size_t n, fa_task task, void *arg)
{
    own *p = ctx;
    pthread_mutex_lock(&p->lock);
    p->task = task, p->arg = arg, p->next = 0, p->n = p->unfinished = n;
    pthread_cond_broadcast(&p->work);
    take_part(p);
    while (p->unfinished > 0) /* what arg leads to lives only until we return */
        pthread_cond_wait(&p->done, &p->lock);
    pthread_mutex_unlock(&p->lock);
}

fa_pool *pool_create(int32_t threads)
{
    own *p = allocate(1, sizeof *p);
    p->face = (fa_pool){.struct_size = sizeof p->face, .ctx = p, .width = width, .parallel_for = parallel_for};
    p->threads = threads;
    p->members = allocate((size_t)threads, sizeof *p->members);
    if (pthread_mutex_init(&p->lock, NULL) != 0 || pthread_cond_init(&p->work, NULL) != 0
        || pthread_cond_init(&p->done, NULL) != 0)
        fail("no lock", "");
    for (int32_t i = 1; i < threads; i++)
        if (pthread_create(&p->members[i], NULL, member, p) != 0)
            fail("no threads", "");
    return &p->face;
}

void pool_destroy(fa_pool *pool)
{
    if (pool == NULL)
        return;
    own *p = pool->ctx;
    pthread_mutex_lock(&p->lock);
    p->quit = true;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (int32_t i = 1; i < p->threads; i++)
        pthread_join(p->members[i], NULL);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->work);
    pthread_cond_destroy(&p->done);
    free(p->members);
    free(p);
}
