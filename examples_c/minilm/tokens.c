#include "tokens.h"

#include "fail.h"

#include <stdbool.h>
#include <string.h>

/* Longer words are unknown ones. In characters, of up to 4 bytes. */
enum { MAX_WORD = 100, MAX_BYTES = 4 * MAX_WORD };
static const uint32_t INVALID = 0xfffd; /* the replacement character, which is dropped */

typedef struct tokeniser {
    const vocabulary *v;
    int32_t *tokens;
    size_t count, room; /* room is left for [SEP] */
    char word[MAX_BYTES];
    size_t length, characters; /* of the word so far; characters go on where bytes end */
} tokeniser;

/* ---- The vocabulary. ---- */

/* Compares prefix + piece with word w. */
static int compare(const vocabulary *v, size_t w, const char *prefix, const char *piece, size_t length)
{
    const char *parts[] = {prefix, piece};
    size_t lengths[] = {strlen(prefix), length};
    const char *at = v->bytes + v->start[w], *end = v->bytes + v->start[w + 1];
    for (int i = 0; i < 2; i++) {
        size_t left = (size_t)(end - at), n = lengths[i] < left ? lengths[i] : left;
        int order = memcmp(parts[i], at, n);
        if (order != 0 || n < lengths[i])
            return order != 0 ? order : 1;
        at += n;
    }
    return at == end ? 0 : -1;
}

/* The word's number, or -1. */
static int32_t find(const vocabulary *v, const char *prefix, const char *piece, size_t length)
{
    for (size_t low = 0, high = v->words; low < high;) {
        size_t middle = low + (high - low) / 2;
        int order = compare(v, middle, prefix, piece, length);
        if (order == 0)
            return (int32_t)v->number[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return -1;
}

static int32_t special(const vocabulary *v, const char *name)
{
    int32_t number = find(v, "", name, strlen(name));
    if (number < 0)
        fail("the model's vocabulary lacks", name);
    return number;
}

/* ---- Characters. ---- */

/* The row of an ascending table whose first number is the last one not above the character; NULL:
 * there is none. */
static const uint32_t *row_of(const uint32_t *table, size_t rows, size_t columns, uint32_t c)
{
    size_t low = 0, high = rows;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (table[middle * columns] <= c)
            low = middle + 1;
        else
            high = middle;
    }
    return low > 0 ? table + (low - 1) * columns : NULL;
}

static uint32_t kind(const vocabulary *v, uint32_t c)
{
    const uint32_t *run = row_of(v->run, v->runs, 3, c);
    return run != NULL && c <= run[1] ? run[2] : 0;
}

/* Reads a character and moves on; of what is not UTF-8 a byte at a time. */
static uint32_t decode(const unsigned char **at, const unsigned char *end)
{
    static const uint32_t smallest[] = {0, 0x80, 0x800, 0x10000};
    uint32_t c = *(*at)++;
    if (c < 0x80)
        return c;
    size_t more = c >= 0xf8 ? 0 : c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : c >= 0xc0 ? 1 : 0;
    if (more == 0 || (size_t)(end - *at) < more)
        return INVALID;
    c &= 0x3fu >> more;
    for (size_t i = 0; i < more; i++) {
        if (((*at)[i] & 0xc0) != 0x80)
            return INVALID;
        c = c << 6 | ((*at)[i] & 0x3f);
    }
    if (c < smallest[more] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
        return INVALID;
    *at += more;
    return c;
}

static size_t encode(uint32_t c, char *to)
{
    size_t more = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    static const unsigned char first[] = {0, 0xc0, 0xe0, 0xf0};
    to[0] = (char)(first[more] | (unsigned char)(c >> 6 * more));
    for (size_t i = 1; i <= more; i++)
        to[i] = (char)(0x80 | (c >> 6 * (more - i) & 0x3f));
    return more + 1;
}

/* ---- Words. ---- */

static void put(tokeniser *t, int32_t token)
{
    if (t->count < t->room)
        t->tokens[t->count++] = token;
}

/* The longest piece from `from` on that is known: its end, and its number; 0 = none. */
static size_t longest_piece(const tokeniser *t, size_t from, int32_t *number)
{
    for (size_t to = t->length; to > from; to--) {
        bool inside = to < t->length && (t->word[to] & 0xc0) == 0x80;
        if (!inside && (*number = find(t->v, from > 0 ? "##" : "", t->word + from, to - from)) >= 0)
            return to;
    }
    return 0;
}

/* A word is its pieces, or unknown as a whole. */
static void end_word(tokeniser *t)
{
    int32_t pieces[MAX_BYTES];
    size_t count = 0, from = 0;
    while (t->characters <= MAX_WORD && from < t->length) {
        from = longest_piece(t, from, &pieces[count]);
        if (from == 0)
            break;
        count++;
    }
    if (t->length > 0 && from < t->length)
        put(t, special(t->v, "[UNK]"));
    else
        for (size_t i = 0; i < count; i++)
            put(t, pieces[i]);
    t->length = t->characters = 0;
}

/* One character more, which has been folded. */
static void add(tokeniser *t, uint32_t c)
{
    uint32_t k = kind(t->v, c);
    if (k == DROP)
        return;
    if (k != 0)
        end_word(t);
    if (k == SPACE)
        return;
    if (t->characters++ < MAX_WORD)
        t->length += encode(c, t->word + t->length);
    if (k == ALONE)
        end_word(t);
}

/* What characters become may be of another kind than they are: the Greek question mark is a
 * semicolon. */
static void add_folded(tokeniser *t, uint32_t c)
{
    const uint32_t *fold = row_of(t->v->fold, t->v->folds, 4, c);
    if (fold == NULL || fold[0] != c) {
        add(t, c);
        return;
    }
    for (int i = 1; i < 4 && fold[i] != 0; i++)
        add(t, fold[i] <= 0x10ffff ? fold[i] : INVALID);
}

/* The bytes of a token that stands in the text by its name; 0 = none. */
static size_t named(tokeniser *t, const unsigned char *at, const unsigned char *end)
{
    static const char *const names[] = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        size_t length = strlen(names[i]);
        if ((size_t)(end - at) >= length && memcmp(at, names[i], length) == 0) {
            end_word(t);
            put(t, special(t->v, names[i]));
            return length;
        }
    }
    return 0;
}

size_t tokenise(const vocabulary *v, const char *text, size_t bytes, int32_t *tokens, size_t room)
{
    tokeniser t = {.v = v, .tokens = tokens, .room = room - 1};
    const unsigned char *at = (const unsigned char *)text, *end = at + bytes;
    put(&t, special(v, "[CLS]"));
    while (at < end && t.count < t.room) {
        size_t name = *at == '[' ? named(&t, at, end) : 0;
        if (name > 0)
            at += name;
        else
            add_folded(&t, decode(&at, end));
    }
    end_word(&t);
    t.room = room;
    put(&t, special(v, "[SEP]"));
    return t.count;
}
