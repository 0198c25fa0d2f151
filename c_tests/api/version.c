/* Versions and status texts: what a program can ask without computing anything. */

#include "check.h"

static void versions(void) {
    unsigned v = fa_version();
    char text[48];
    snprintf(text, sizeof text, "%u.%u.%u", v >> 16, v >> 8 & 0xff, v & 0xff);
    CHECK(strcmp(text, FA_PACKAGE_VERSION) == 0, "%s, but the package is %s", text, FA_PACKAGE_VERSION);
    CHECK(fa_abi_version() == FA_ABI_VERSION, "%u, but the header is %u", (unsigned)fa_abi_version(),
          (unsigned)FA_ABI_VERSION);
}

static void status_texts(void) {
    static const int32_t codes[] = {
        FA_OK,          FA_ERR_NULL,     FA_ERR_ZERO_EXTENT, FA_ERR_OVERFLOW, FA_ERR_SOFTMAX_SCALE,
        FA_ERR_QUANT_SCALE, FA_ERR_RESERVED, FA_ERR_OVERLAP, FA_ERR_DTYPE,    FA_ERR_ISA,
        FA_ERR_MEMORY,  FA_ERR_INTERNAL, FA_ERR_SHAPE,       FA_ERR_STRIDE,
        FA_ERR_LENGTHS, FA_ERR_STRUCT_SIZE, FA_ERR_UNSUPPORTED, FA_ERR_WORKSPACE, FA_ERR_PART,
        FA_ERR_WINDOW,  FA_ERR_SOFTCAP, FA_ERR_PAGE,
    };
    static const int32_t unknown[] = {-1, 1000, INT32_MAX, INT32_MIN};

    const char *fallback = fa_status_string(INT32_MAX);
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        const char *text = fa_status_string(unknown[i]);
        CHECK(text != NULL && text[0] != '\0', "%d has no text", (int)unknown[i]);
        CHECK(strcmp(text, fallback) == 0, "%d has a text of its own: %s", (int)unknown[i], text);
    }
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        const char *text = fa_status_string(codes[i]);
        CHECK(text != NULL && text[0] != '\0', "%d has no text", (int)codes[i]);
        CHECK(strcmp(text, fallback) != 0, "%d is unknown to the library", (int)codes[i]);
        for (size_t j = 0; j < i; j++)
            CHECK(strcmp(text, fa_status_string(codes[j])) != 0, "%d and %d: %s", (int)codes[i],
                  (int)codes[j], text);
    }
}

int main(void) {
    versions();
    status_texts();
    return check_result();
}
