/* Variables of the environment, which the library reads. On POSIX, `_POSIX_C_SOURCE` comes
 * first. */

#ifndef ENVIRONMENT_H
#define ENVIRONMENT_H

#include <stdlib.h>

#ifdef _WIN32
#include <windows.h>
/* The C library's copy stays as it was. */
static inline int set_variable(const char *name, const char *value) {
    return SetEnvironmentVariableA(name, value) ? 0 : -1;
}
#else
/* NULL takes it away. */
static inline int set_variable(const char *name, const char *value) {
    return value == NULL ? unsetenv(name) : setenv(name, value, 1);
}
#endif

#endif
