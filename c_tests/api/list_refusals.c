/* Lists of lengths (cu_len_q, cu_len_kv, kv_lens) and tables of pages. */

#include "described.h"

/* Lists that an output can be moved onto: right as they are, and with room for it behind them. */
static int32_t zeros[GAP], starts[GAP] = {0, 5, 10}, page_starts[GAP] = {0, 1, 2};

/* The keys of both sequences as two pages. */
#define PAGES(table) P(block_table, table), N(table_stride, 1), N(page_size, LKV), N(num_pages, 2)

/* A page of three tokens is a third of that. */
#define SMALL_PAGES(table) P(block_table, table), N(table_stride, 3), N(page_size, 3), N(num_pages, 2)

#define LISTS(table, starts) P(block_table, table), P(block_table_start, starts), N(page_size, LKV), N(num_pages, 2)

/* An output in the memory of something else. */
#define ALONE(what, list, ...)                                                                  \
    {"o is " what, FA_ERR_OVERLAP, "o: shares memory with " what, {P(o.data, list), __VA_ARGS__}},                       \
    {"lse is " what, FA_ERR_OVERLAP, "lse: shares memory with " what, {P(lse, list), __VA_ARGS__}}

static const struct row rows[] = {
    {"nothing wrong", FA_OK, NULL, {{0}}},

    {"cu_len_q NULL", FA_OK, NULL, {P(cu_len_q, NULL)}},
    {"cu_len_kv NULL", FA_OK, NULL, {P(cu_len_kv, NULL)}},
    {"kv_lens NULL", FA_OK, NULL, {P(kv_lens, NULL)}},
    {"block_table_start NULL", FA_OK, NULL, {PAGES(INTS(1, 0)), P(block_table_start, NULL)}},
    {"block_table NULL", FA_OK, NULL,
     {P(block_table, NULL), N(table_stride, -1), N(page_size, -1), N(num_pages, INT64_MIN)}},
    {"cu_len_q, batch INT64_MAX", FA_ERR_OVERFLOW, "cu_len_q", {P(cu_len_q, INTS(0, 5)), N(batch, INT64_MAX)}},
    {"cu_len_kv, batch 2^61", FA_ERR_OVERFLOW, "cu_len_kv", {P(cu_len_kv, INTS(0, 5)), N(batch, BIT(61))}},
    {"kv_lens, batch INT64_MAX", FA_ERR_OVERFLOW, "kv_lens", {P(kv_lens, INTS(0, 5)), N(batch, INT64_MAX)}},
    {"block_table_start, batch INT64_MAX", FA_ERR_OVERFLOW, "block_table_start",
     {LISTS(INTS(0, 1), INTS(0, 1)), N(batch, INT64_MAX)}},
    {"cu_len_q", FA_OK, NULL, {P(cu_len_q, INTS(0, 5, 10)), P(lse, NULL)}},
    {"cu_len_q: heads of lse overlap", FA_ERR_STRIDE, "lse: strides", {P(cu_len_q, INTS(0, 5, 10))}},
    {"cu_len_q: no rows", FA_OK, NULL, {P(cu_len_q, INTS(3, 3, 3))}},
    {"cu_len_q: two entries in the space of one", FA_OK, NULL, {P(cu_len_q, INTS(1, 4, 5)), N(o.stride[0], 0)}},
    {"cu_len_q decreases", FA_ERR_LENGTHS, "cu_len_q", {P(cu_len_q, INTS(0, 4, 3))}},
    {"cu_len_q decreases to 0", FA_ERR_LENGTHS, "cu_len_q", {P(cu_len_q, INTS(5, 5, 0))}},
    {"cu_len_q falls and rises", FA_ERR_LENGTHS, "cu_len_q", {P(cu_len_q, INTS(4, 0, 5))}},
    {"cu_len_q falls between its ends", FA_ERR_LENGTHS, "cu_len_q",
     {P(cu_len_q, INTS(0, 4, 2, 5)), N(batch, 3), N(k.stride[0], 0), N(v.stride[0], 0)}},
    {"cu_len_q from -1", FA_ERR_LENGTHS, "cu_len_q", {P(cu_len_q, INTS(-1, 2, 4))}},
    {"cu_len_q to -1", FA_ERR_LENGTHS, "cu_len_q", {P(cu_len_q, INTS(0, 0, -1))}},
    {"cu_len_q all negative", FA_ERR_LENGTHS, "cu_len_q", {P(cu_len_q, INTS(-3, -2, -1))}},
    {"cu_len_q from INT32_MIN to INT32_MAX", FA_ERR_LENGTHS, "cu_len_q",
     {P(cu_len_q, INTS(INT32_MIN, 0, INT32_MAX))}},
    {"cu_len_q: first of 6", FA_ERR_LENGTHS, "cu_len_q", {P(cu_len_q, INTS(0, 6, 7))}},
    {"cu_len_q: last of 6", FA_ERR_LENGTHS, "cu_len_q", {P(cu_len_q, INTS(0, 1, 7))}},
    {"cu_len_q: of INT32_MAX", FA_ERR_LENGTHS, "cu_len_q", {P(cu_len_q, INTS(0, 0, INT32_MAX))}},
    {"cu_len_q: of 1, but len_q 0", FA_ERR_LENGTHS, "cu_len_q", {P(cu_len_q, INTS(0, 0, 1)), N(len_q, 0)}},
    {"cu_len_kv", FA_OK, NULL, {P(cu_len_kv, INTS(0, 9, 18))}},
    {"cu_len_kv: no keys", FA_OK, NULL, {P(cu_len_kv, INTS(3, 3, 3))}},
    {"cu_len_kv decreases", FA_ERR_LENGTHS, "cu_len_kv", {P(cu_len_kv, INTS(0, 4, 3))}},
    {"cu_len_kv from -1", FA_ERR_LENGTHS, "cu_len_kv", {P(cu_len_kv, INTS(-1, 2, 4))}},
    {"cu_len_kv to INT32_MIN", FA_ERR_LENGTHS, "cu_len_kv", {P(cu_len_kv, INTS(0, 0, INT32_MIN))}},
    {"cu_len_kv: first of 10", FA_ERR_LENGTHS, "cu_len_kv", {P(cu_len_kv, INTS(0, 10, 10))}},
    {"cu_len_kv: last of 10", FA_ERR_LENGTHS, "cu_len_kv", {P(cu_len_kv, INTS(0, 0, 10))}},
    {"kv_lens", FA_OK, NULL, {P(kv_lens, INTS(9, 0))}},
    {"kv_lens -1", FA_ERR_LENGTHS, "kv_lens[0]", {P(kv_lens, INTS(-1, 3))}},
    {"kv_lens INT32_MIN", FA_ERR_LENGTHS, "kv_lens[1]", {P(kv_lens, INTS(3, INT32_MIN))}},
    {"kv_lens 10", FA_ERR_LENGTHS, "kv_lens[1]", {P(kv_lens, INTS(3, 10))}},
    {"kv_lens INT32_MAX", FA_ERR_LENGTHS, "kv_lens[0]", {P(kv_lens, INTS(INT32_MAX, 3))}},
    {"kv_lens 1 of none", FA_ERR_LENGTHS, "kv_lens[0]", {P(kv_lens, INTS(1, 0)), N(len_kv, 0)}},
    {"kv_lens 4 of 3", FA_ERR_LENGTHS, "kv_lens[0]", {P(cu_len_kv, INTS(0, 3, 9)), P(kv_lens, INTS(4, 6))}},

    {"pages", FA_OK, NULL, {PAGES(INTS(1, 0))}},
    {"a page twice", FA_OK, NULL, {PAGES(INTS(1, 1))}},
    {"page num_pages", FA_ERR_PAGE, "block_table[1]", {PAGES(INTS(0, 2))}},
    {"page INT32_MAX", FA_ERR_PAGE, "block_table[0]", {PAGES(INTS(INT32_MAX, 0))}},
    {"page -1", FA_ERR_PAGE, "block_table[0]", {PAGES(INTS(-1, 0))}},
    {"page INT32_MIN", FA_ERR_PAGE, "block_table[1]", {PAGES(INTS(1, INT32_MIN))}},
    {"the last page of the last sequence", FA_ERR_PAGE, "block_table[5]", {SMALL_PAGES(INTS(0, 1, 0, 1, 0, 2))}},
    {"pages that no key needs", FA_OK, NULL,
     {SMALL_PAGES(INTS(0, 1, -1, 1, 2, INT32_MIN)), P(kv_lens, INTS(6, 3))}},
    {"no page at all", FA_OK, NULL, {PAGES(INTS(2, -1)), P(kv_lens, INTS(0, 0)), N(num_pages, 0)}},
    {"a key too many for the pages", FA_ERR_LENGTHS, "pages", {SMALL_PAGES(INTS(0, 0, 0, 0, 0, 0)), N(table_stride, 2)}},
    {"kv_lens 10 in pages", FA_ERR_LENGTHS, "kv_lens[1]", {PAGES(INTS(0, 1)), P(kv_lens, INTS(9, 10))}},
    {"kv_lens -1 in pages", FA_ERR_LENGTHS, "kv_lens[0]", {PAGES(INTS(0, 1)), P(kv_lens, INTS(-1, 9))}},
    {"lists of pages", FA_OK, NULL, {LISTS(INTS(0, 1, 1, 0), INTS(1, 2, 4))}},
    {"a list too short", FA_ERR_LENGTHS, "pages", {LISTS(INTS(0, 1), INTS(0, 0, 1))}},
    {"lists out of order", FA_ERR_LENGTHS, "block_table_start", {LISTS(INTS(0, 1), INTS(1, 0, 2))}},
    {"a list that ends behind the last", FA_ERR_LENGTHS, "block_table_start", {LISTS(INTS(0, 1), INTS(0, 2, 1))}},
    {"a list from -1", FA_ERR_LENGTHS, "block_table_start", {LISTS(INTS(0, 1), INTS(-1, 1, 2))}},
    {"lists to -1", FA_ERR_LENGTHS, "block_table_start", {LISTS(INTS(0, 1), INTS(0, 1, -1))}},
    {"page_size 0", FA_ERR_ZERO_EXTENT, "page_size", {PAGES(INTS(0, 1)), N(page_size, 0)}},
    {"page_size INT64_MAX", FA_ERR_OVERFLOW, "k" TOO_MUCH, {PAGES(INTS(0, 1)), N(page_size, INT64_MAX)}},
    {"page_size INT64_MIN", FA_ERR_SHAPE, "page_size", {PAGES(INTS(0, 1)), N(page_size, INT64_MIN)}},
    {"table_stride 0", FA_ERR_LENGTHS, "pages", {PAGES(INTS(0, 1)), N(table_stride, 0)}},
    {"table_stride 0, no keys", FA_OK, NULL, {PAGES(INTS(0, 1)), P(kv_lens, INTS(0, 0)), N(table_stride, 0)}},
    {"table_stride INT64_MAX", FA_ERR_OVERFLOW, "table_stride", {PAGES(INTS(0, 1)), N(table_stride, INT64_MAX)}},
    {"page_size -1", FA_ERR_SHAPE, "page_size", {PAGES(INTS(0, 1)), N(page_size, -1)}},
    {"num_pages -1", FA_ERR_SHAPE, "num_pages", {PAGES(INTS(0, 1)), N(num_pages, -1)}},
    {"num_pages 2^62", FA_ERR_OVERFLOW, "k" TOO_MUCH, {PAGES(INTS(0, 1)), N(num_pages, BIT(62))}},
    {"table_stride -1", FA_ERR_SHAPE, "table_stride", {PAGES(INTS(0, 1)), N(table_stride, -1)}},
    {"table_stride 2^62", FA_ERR_OVERFLOW, "table_stride", {PAGES(INTS(0, 1)), N(table_stride, BIT(62))}},
    {"block_table_start without a table", FA_ERR_NULL, "block_table_start", {P(block_table_start, INTS(0, 1, 2))}},
    {"cu_len_kv and pages", FA_ERR_SHAPE, "cu_len_kv", {PAGES(INTS(0, 1)), P(cu_len_kv, INTS(0, 9, 18))}},

    ALONE("kv_lens", zeros, P(kv_lens, zeros)),
    ALONE("cu_len_kv", zeros, P(cu_len_kv, zeros)),
    ALONE("cu_len_q", starts, P(cu_len_q, starts), N(lse_stride[1], 2 * LQ)),
    ALONE("block_table", zeros, PAGES(zeros)),
    ALONE("block_table_start", page_starts, LISTS(INTS(0, 1), page_starts)),
};

int main(int argc, char **argv) { return check_rows(argc, argv, rows, COUNT(rows)); }
