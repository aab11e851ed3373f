/* Which of the library's instruction sets this processor and this kernel let a process use. */
#include "headrace.h"

HR_EXPORT int hr_abi(void) { return HR_ABI; }

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_TILE_DATA = 18 };

static int has_vnni(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
}

/* Linux hands out the 8 KiB of tile state only to processes that ask; asking twice is harmless. */
static int has_amx(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    unsigned tile = 1u << 24, int8 = 1u << 25;
    if (!(d & tile) || !(d & int8)) return 0;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_TILE_DATA) == 0;
}

HR_EXPORT int hr_best_isa(void) {
    __builtin_cpu_init();
    if (!has_vnni()) return HR_NONE;
    return has_amx() ? HR_AMX : HR_VNNI;
}
#else
HR_EXPORT int hr_best_isa(void) { return HR_NONE; }
#endif
