/* What every file of the engine does when it cannot go on: says why, and ends the program with exit
 * code 2. */
#ifndef MINILM_FAIL_H
#define MINILM_FAIL_H

#include <flash_attention.h>
#include <stddef.h>

_Noreturn void fail(const char *what, const char *detail);
void must(fa_status status);
/* Zeros; never NULL. */
void *allocate(size_t count, size_t bytes_each);

#endif
