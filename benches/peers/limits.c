/* What the machine can do at most, for peer_limits.py: multiplications and additions in f32,
 * reading of memory. */

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef __AVX512F__
#define BYTES 64
#else
#define BYTES 32
#endif
typedef float vector __attribute__((vector_size(BYTES)));
typedef int64_t words __attribute__((vector_size(BYTES)));
enum { LANES = BYTES / 4, CHAINS = 12, MOST_THREADS = 64 };

typedef struct {
    const char *data; /* NULL: arithmetic */
    size_t bytes;
    double seconds;
    double rate;
} job;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* As many chains as hide the latency of two units; the compiler must neither merge nor drop
 * them. */
static void multiply_add(int n)
{
    vector sum[CHAINS] = {{0}}, a, b;
    for (int i = 0; i < LANES; i++) {
        a[i] = 0.999f;
        b[i] = 0.001f;
    }
    for (int i = 0; i < n; i++) {
        for (int c = 0; c < CHAINS; c++)
            sum[c] = sum[c] * a + b;
        for (int c = 0; c < CHAINS; c++)
            __asm__ volatile("" : "+v"(sum[c]));
    }
}

static void read_all(const char *data, size_t bytes)
{
    words sum[8] = {{0}};
    /* Lines come in the order that prefetchers know. */
    for (size_t at = 0; at + 8 * BYTES <= bytes; at += 8 * BYTES) {
        for (int c = 0; c < 8; c++)
            sum[c] |= *(const words *)(data + at + (size_t)c * BYTES);
    }
    for (int c = 0; c < 8; c++)
        __asm__ volatile("" : : "v"(sum[c]));
}

static void *work(void *argument)
{
    job *j = argument;
    double begin = now(), took, done = 0;
    do {
        if (j->data) {
            read_all(j->data, j->bytes);
            done += (double)j->bytes;
        } else {
            multiply_add(100000);
            done += 2.0 * LANES * CHAINS * 100000;
        }
        took = now() - begin;
    } while (took < j->seconds);
    j->rate = done / took;
    return NULL;
}

/* Operations or bytes a second by all threads together; 0: no threads. */
double limit(int threads, double seconds, const char *data, size_t bytes)
{
    pthread_t id[MOST_THREADS];
    job jobs[MOST_THREADS];
    double sum = 0;
    if (threads < 1 || threads > MOST_THREADS)
        return 0;
    size_t share = bytes / (size_t)threads / BYTES * BYTES;
    for (int t = 0; t < threads; t++) {
        jobs[t] = (job){data ? data + (size_t)t * share : NULL, share, seconds, 0};
        if (t > 0 && pthread_create(&id[t], NULL, work, &jobs[t]) != 0)
            return 0;
    }
    work(&jobs[0]);
    sum = jobs[0].rate;
    for (int t = 1; t < threads; t++) {
        pthread_join(id[t], NULL);
        sum += jobs[t].rate;
    }
    return sum;
}
