#include "fail.h"

#include <stdio.h>
#include <stdlib.h>

void fail(const char *what, const char *detail)
{
    fprintf(stderr, "minilm: %s: %s\n", what, detail);
    exit(2);
}

void must(fa_status status)
{
    if (status != FA_OK)
        fail("flash_attention", fa_status_string(status));
}

void *allocate(size_t count, size_t bytes_each)
{
    void *memory = calloc(count > 0 ? count : 1, bytes_each);
    if (memory == NULL)
        fail("out of memory", "");
    return memory;
}
