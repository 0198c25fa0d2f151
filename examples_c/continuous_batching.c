/*
 * Continuous batching: requests join the batch as soon as there is room, with all rows of their
 * prompt, and leave it after their last token, while others go on with a row a step. One call a
 * step computes them all: a ragged batch on a paged cache.
 *
 * Every row of every step is computed once more in double, from a copy of the keys and values
 * without pages. Exit code 1 if any differs by more than rounding. At the end: how fast attention
 * was, in steps without a prompt.
 */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <flash_attention.h>

enum { REQUESTS = 40, RUNNING = 8, HEADS_Q = 8, HEADS_KV = 2, GROUP = HEADS_Q / HEADS_KV, DIM = 64 };
enum { MOST_PROMPT = 96, MOST_OUTPUT = 64, MAX_LEN = MOST_PROMPT + MOST_OUTPUT, PAGE = 16 };
/* Not enough for RUNNING of the longest. */
enum { MAX_PAGES = MAX_LEN / PAGE, NUM_PAGES = 50, MOST_ROWS = RUNNING * MOST_PROMPT };

typedef float rows[MAX_LEN][HEADS_KV][DIM];

/* One that is being served: which of the copies is its own, and how much it will still say. */
struct request {
    int copy, len, todo;
};

static float k_pages[NUM_PAGES][PAGE][HEADS_KV][DIM], v_pages[NUM_PAGES][PAGE][HEADS_KV][DIM];
static rows k_copy[RUNNING], v_copy[RUNNING];
static float q[MOST_ROWS][HEADS_Q][DIM], o[MOST_ROWS][HEADS_Q][DIM];

/* The batch: what a request has in these is at its place in `running`. */
static struct request running[RUNNING];
static int32_t table[RUNNING][MAX_PAGES], kv_lens[RUNNING], cu_len_q[RUNNING + 1];
static int32_t free_pages[NUM_PAGES], num_free, free_copies[RUNNING], batch;

static void must(fa_status status)
{
    if (status != FA_OK) {
        fprintf(stderr, "continuous_batching: %s\n", fa_status_string(status));
        exit(2);
    }
}

static uint32_t random_bits(void)
{
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

static float number(void)
{
    return (float)random_bits() * 0x1p-22f - 2;
}

static int pages_of(int len)
{
    return (len + PAGE - 1) / PAGE;
}

/* What the model's projections would write: one more key and value for each head. */
static void append(int b)
{
    struct request *r = &running[b];
    int at = r->len++, token = at % PAGE;
    int32_t page = table[b][at / PAGE];
    for (int h = 0; h < HEADS_KV; h++)
        for (int d = 0; d < DIM; d++) {
            k_copy[r->copy][at][h][d] = k_pages[page][token][h][d] = number();
            v_copy[r->copy][at][h][d] = v_pages[page][token][h][d] = number();
        }
    kv_lens[b] = r->len;
}

/* Takes a request in, if there are pages for all that it may become; others would have to be put
 * off later. */
static bool join(int prompt, int output)
{
    int pages = pages_of(prompt + output);
    if (batch == RUNNING || num_free < pages)
        return false;
    int b = batch++;
    running[b] = (struct request){.copy = free_copies[RUNNING - batch], .todo = output};
    for (int i = 0; i < pages; i++)
        table[b][i] = free_pages[--num_free];
    for (int i = 0; i < prompt; i++)
        append(b);
    return true;
}

/* Its pages are free again, and the last of the batch takes its place. */
static void leave(int b, int pages)
{
    for (int i = 0; i < pages; i++)
        free_pages[num_free++] = table[b][i];
    free_copies[RUNNING - batch] = running[b].copy;
    int last = --batch;
    running[b] = running[last], kv_lens[b] = kv_lens[last];
    memcpy(table[b], table[last], sizeof table[b]);
}

/* The difference between a row of the output and its definition; NaN if there is one. */
static double difference(const struct request *r, int row, int position)
{
    double worst = 0;
    for (int h = 0; h < HEADS_Q; h++) {
        double p[MAX_LEN], max = -INFINITY, sum = 0;
        for (int j = 0; j <= position; j++) {
            p[j] = 0;
            for (int d = 0; d < DIM; d++)
                p[j] += (double)q[row][h][d] * (double)k_copy[r->copy][j][h / GROUP][d] / sqrt(DIM);
            max = fmax(max, p[j]);
        }
        for (int j = 0; j <= position; j++)
            sum += p[j] = exp(p[j] - max);
        for (int d = 0; d < DIM; d++) {
            double exact = 0;
            for (int j = 0; j <= position; j++)
                exact += p[j] / sum * (double)v_copy[r->copy][j][h / GROUP][d];
            double by = fabs((double)o[row][h][d] - exact);
            if (!(by <= worst)) /* not fmax, which would lose a NaN */
                worst = by;
        }
    }
    return worst;
}

/* Scratch memory is kept from step to step. Returns the seconds that the attention took. */
static double run(const fa_attention *a)
{
    static void *workspace;
    static size_t size;
    size_t bytes;
    must(fa_attention_workspace(a, 1, &bytes));
    if (bytes > size) {
        free(workspace);
        if ((workspace = malloc(size = bytes)) == NULL)
            exit(2);
    }
    struct timespec before, after;
    timespec_get(&before, TIME_UTC);
    must(fa_attention_run(a, workspace, size, NULL));
    timespec_get(&after, TIME_UTC);
    return (double)(after.tv_sec - before.tv_sec) + 1e-9 * (double)(after.tv_nsec - before.tv_nsec);
}

int main(void)
{
    for (int32_t page = 0; page < NUM_PAGES; page++)
        free_pages[num_free++] = page;
    for (int i = 0; i < RUNNING; i++)
        free_copies[i] = i;

    /* Described once: from step to step only the number of sequences changes, and what the pointers
     * lead to. */
    fa_attention a;
    must(fa_attention_init(&a, sizeof a));
    a.heads_q = HEADS_Q, a.heads_kv = HEADS_KV, a.dim_qk = a.dim_v = DIM;
    a.len_q = MOST_PROMPT, a.len_kv = MAX_LEN; /* bounds: cu_len_q and kv_lens have the lengths */
    a.cu_len_q = cu_len_q, a.kv_lens = kv_lens;
    /* The last row of each sequence is on its last key, and no row sees what comes after it. */
    a.q_pos = FA_POS_END, a.window_right = 0;
    a.q = (fa_tensor){.data = q, .stride = {0, sizeof **q, sizeof *q}};
    a.o = a.q, a.o.data = o;
    a.block_table = table[0], a.table_stride = MAX_PAGES, a.page_size = PAGE, a.num_pages = NUM_PAGES;
    a.k = (fa_tensor){.data = k_pages, .stride = {sizeof *k_pages, sizeof ***k_pages, sizeof **k_pages}};
    a.v = a.k, a.v.data = v_pages;

    int waiting = REQUESTS, served = 0, steps = 0, most = 0;
    int pages[RUNNING] = {0};
    int prompt = 1 + (int)(random_bits() % MOST_PROMPT), output = 1 + (int)(random_bits() % MOST_OUTPUT);
    double worst = 0, tokens = 0, bytes = 0, seconds = 0;
    while (waiting > 0 || batch > 0) {
        /* Who has been there goes on with one row, who joins begins with as many as its prompt
         * has. */
        int before = batch;
        for (int b = 0; b < batch; b++)
            append(b);
        while (waiting > 0 && join(prompt, output)) {
            pages[batch - 1] = pages_of(prompt + output);
            prompt = 1 + (int)(random_bits() % MOST_PROMPT), output = 1 + (int)(random_bits() % MOST_OUTPUT);
            waiting--;
        }
        for (int b = 0; b < batch; b++)
            cu_len_q[b + 1] = cu_len_q[b] + (b < before ? 1 : running[b].len);
        for (int row = 0; row < cu_len_q[batch]; row++)
            for (int h = 0; h < HEADS_Q; h++)
                for (int d = 0; d < DIM; d++)
                    q[row][h][d] = number();

        memset(o, 0xff, sizeof o); /* NaN, so that nothing is right by chance */
        a.batch = batch;
        double took = run(&a);
        if (batch == before) {
            tokens += batch, seconds += took;
            for (int b = 0; b < batch; b++)
                bytes += 2.0 * running[b].len * (double)sizeof **k_copy;
        }
        for (int b = 0; b < batch; b++)
            for (int row = cu_len_q[b]; row < cu_len_q[b + 1]; row++) {
                double by = difference(&running[b], row, running[b].len - (cu_len_q[b + 1] - row));
                if (!(by <= worst))
                    worst = by;
            }

        most = batch > most ? batch : most;
        for (int b = batch - 1; b >= 0; b--)
            if (--running[b].todo == 0) {
                int last = batch - 1;
                leave(b, pages[b]);
                pages[b] = pages[last];
                served++;
            }
        steps++;
    }
    printf("%d requests served in %d steps, at most %d at a time; largest difference %.1e\n", served, steps, most, worst);
    printf("steps of single tokens: %.0f tokens a second, %.1f GB/s of keys and values\n", tokens / seconds,
           bytes / seconds * 1e-9);
    return served == REQUESTS && most > 2 && num_free == NUM_PAGES && worst <= 1e-5 ? 0 : 1;
}
