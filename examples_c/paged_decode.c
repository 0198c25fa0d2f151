/*
 * Generation with the keys and values in pages: sequences of different lengths grow by a token a
 * step, pages come from a free list and go back to it, and one call a step computes the whole
 * batch.
 *
 * The same keys and values are kept a second time without pages, one array a sequence, and every
 * step is computed from those, too. Exit code 1 if the results differ by more than rounding.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <flash_attention.h>

enum { SLOTS = 4, HEADS_Q = 8, HEADS_KV = 2, DIM = 64, Q_SIZE = SLOTS * HEADS_Q * DIM, STEPS = 60 };
/* Far fewer pages than SLOTS * MAX_PAGES: memory for what sequences are, not for what they may
 * become. */
enum { PAGE = 16, MAX_PAGES = 8, NUM_PAGES = 20, MAX_LEN = PAGE * MAX_PAGES };

static float k_pages[NUM_PAGES][HEADS_KV][PAGE][DIM], v_pages[NUM_PAGES][HEADS_KV][PAGE][DIM];
static float k_plain[SLOTS][HEADS_KV][MAX_LEN][DIM], v_plain[SLOTS][HEADS_KV][MAX_LEN][DIM];
static float q[Q_SIZE], o[Q_SIZE], expected[Q_SIZE]; /* [slot][head][dim] */

/* Where each sequence's pages are, and how many keys it has. Both are the engine's and the
 * library's. */
static int32_t table[SLOTS][MAX_PAGES], kv_lens[SLOTS];
static int32_t free_pages[NUM_PAGES], num_free;

static void must(fa_status status)
{
    if (status != FA_OK) {
        fprintf(stderr, "paged_decode: %s\n", fa_status_string(status));
        exit(2);
    }
}

static float number(void)
{
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) * 0x1p-22f - 2;
}

/* Gives a sequence one more key and value for each head, as the model's projections would. */
static void append(int s)
{
    int at = kv_lens[s]++, token = at % PAGE;
    if (token == 0) {
        if (num_free == 0) /* an engine would let a sequence wait */
            exit(2);
        table[s][at / PAGE] = free_pages[--num_free];
    }
    int32_t page = table[s][at / PAGE];
    for (int h = 0; h < HEADS_KV; h++)
        for (int d = 0; d < DIM; d++) {
            k_plain[s][h][at][d] = k_pages[page][h][token][d] = number();
            v_plain[s][h][at][d] = v_pages[page][h][token][d] = number();
        }
}

/* What was in the slot is finished; the next sequence gets other pages, wherever some are free. */
static void start(int s, int prompt)
{
    for (int i = 0; i * PAGE < kv_lens[s]; i++)
        free_pages[num_free++] = table[s][i];
    kv_lens[s] = 0;
    while (kv_lens[s] < prompt)
        append(s);
}

/* Asking costs no more than a check does. What there is is kept from step to step, and grows if it
 * must. */
static void run(const fa_attention *a)
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
    must(fa_attention_run(a, workspace, size, NULL));
}

int main(void)
{
    static const int prompts[SLOTS] = {3, 16, 61, 30}, limits[SLOTS] = {30, 48, 128, 64};
    for (int32_t page = 0; page < NUM_PAGES; page++)
        free_pages[num_free++] = page;
    for (int s = 0; s < SLOTS; s++)
        start(s, prompts[s]);

    /* Described once: from step to step only what the pointers lead to changes. */
    fa_attention paged;
    must(fa_attention_init(&paged, sizeof paged));
    paged.batch = SLOTS, paged.heads_q = HEADS_Q, paged.heads_kv = HEADS_KV, paged.dim_qk = paged.dim_v = DIM;
    paged.len_q = 1, paged.len_kv = MAX_LEN; /* of keys only a bound: kv_lens has the lengths */
    paged.kv_lens = kv_lens;
    /* Each sequence's query is on its own last key, a different one for each. It would see no more
     * without a window as long as there is one row; with several (a piece of a prompt, drafts) this
     * makes them causal. */
    paged.q_pos = FA_POS_END, paged.window_right = 0;
    paged.q = (fa_tensor){.data = q, .stride = {HEADS_Q * DIM * sizeof *q, DIM * sizeof *q}};
    paged.o = paged.q, paged.o.data = o;

    fa_attention plain = paged;
    plain.o.data = expected;
    plain.k = (fa_tensor){.data = k_plain, .stride = {sizeof *k_plain, sizeof **k_plain, sizeof ***k_plain}};
    plain.v = plain.k, plain.v.data = v_plain;

    paged.block_table = table[0], paged.table_stride = MAX_PAGES;
    paged.page_size = PAGE, paged.num_pages = NUM_PAGES;
    /* The first stride is now that from page to page, the last that from token to token in a
     * page. */
    paged.k = (fa_tensor){.data = k_pages, .stride = {sizeof *k_pages, sizeof **k_pages, sizeof ***k_pages}};
    paged.v = paged.k, paged.v.data = v_pages;

    double worst = 0;
    int finished = 0, most_pages = 0;
    for (int step = 0; step < STEPS; step++) {
        for (int s = 0; s < SLOTS; s++) {
            if (kv_lens[s] == limits[s])
                start(s, prompts[s]), finished++;
            append(s);
        }
        if (NUM_PAGES - num_free > most_pages)
            most_pages = NUM_PAGES - num_free;
        for (int i = 0; i < Q_SIZE; i++)
            q[i] = number();

        memset(o, 0xff, sizeof o); /* NaN, so that nothing is right by chance */
        run(&paged);
        run(&plain);
        for (int i = 0; i < Q_SIZE; i++) {
            double difference = fabs((double)o[i] - (double)expected[i]);
            if (!(difference <= worst)) /* not fmax, which would lose a NaN */
                worst = difference;
        }
    }
    printf("%d steps of %d sequences, %d finished and replaced by others\n", STEPS, SLOTS, finished);
    printf("at most %d pages in use instead of %d; largest difference %.1e\n", most_pages, SLOTS * MAX_PAGES, worst);
    return finished > 0 && worst <= 2e-5 ? 0 : 1;
}
