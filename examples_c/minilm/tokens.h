/* Text to numbers of tokens, as uncased BERT models have it: words, cut into the longest pieces
 * that are known. */
#ifndef MINILM_TOKENS_H
#define MINILM_TOKENS_H

#include "weights.h"

/*
 * Writes [CLS], the text's tokens and [SEP], and gives their number, at least 2 and at most `room`:
 * tokens that do not fit are left out. The text is UTF-8; bytes that are not are ignored.
 */
size_t tokenise(const vocabulary *v, const char *text, size_t bytes, int32_t *tokens, size_t room);

#endif
