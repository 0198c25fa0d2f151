/* Preloaded, it shows libraries that cpuid.py has rewritten a processor without AVX-512 and AMX:
 * where they had the instruction cpuid they raise SIGILL, and are told here what cpuid says,
 * without those bits (Intel, Software Developer's Manual, volume 2A, CPUID). */
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stddef.h>
#include <ucontext.h>

/* Leaf 7: F, DQ, IFMA, PF, ER, CD, BW, VL; VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ; 4VNNIW, 4FMAPS,
 * VP2INTERSECT, AMX-BF16, FP16, AMX-TILE, AMX-INT8. Subleaf 1: BF16, AMX-FP16; AVX10. */
static const unsigned f7_ebx = 0xdc230000u;
static const unsigned f7_ecx = 1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14;
static const unsigned f7_edx = 1u << 2 | 1u << 3 | 1u << 8 | 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25;
static const unsigned f7_1_eax = 1u << 5 | 1u << 21;
static const unsigned f7_1_edx = 1u << 19;

static void answer(int number, siginfo_t *info, void *context)
{
    greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *at = (const unsigned char *)r[REG_RIP];
    const unsigned leaf = (unsigned)r[REG_RAX], subleaf = (unsigned)r[REG_RCX];
    unsigned a, b, c, d;
    (void)number;
    (void)info;
    if (at[0] != 0x0f || at[1] != 0x0b) {
        signal(SIGILL, SIG_DFL);
        return;
    }
    __cpuid_count(leaf, subleaf, a, b, c, d);
    if (leaf == 7 && subleaf == 0) {
        b &= ~f7_ebx;
        c &= ~f7_ecx;
        d &= ~f7_edx;
    } else if (leaf == 7 && subleaf == 1) {
        a &= ~f7_1_eax;
        d &= ~f7_1_edx;
    }
    r[REG_RAX] = a;
    r[REG_RBX] = b;
    r[REG_RCX] = c;
    r[REG_RDX] = d;
    r[REG_RIP] += 2;
}

__attribute__((constructor)) static void begin(void)
{
    struct sigaction action = {0};
    action.sa_sigaction = answer;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGILL, &action, NULL);
}
