/* How the threads of a pass divide what each product consists of: whoever is free takes some of what is left.
 *
 * A neighbour's process takes a core away for microseconds at a time. Threads with shares that are fixed beforehand all
 * wait then for the one that was displaced, and whatever the neighbour takes is lost as often as there are threads. Here
 * the others do meanwhile what it has not begun. The first portions are large and the last are small (guided
 * self-scheduling: Polychronopoulos and Kuck, IEEE Transactions on Computers, 1987): few meet at the counter, and all
 * are done at nearly the same time.
 */
#ifndef HEADRACE_SHARING_H
#define HEADRACE_SHARING_H

#include <stdatomic.h>
#include <stdint.h>

/* What has been taken of one product, zero at first. Each has a cache line of its own. */
typedef struct {
    _Alignas(64) atomic_llong taken;
} hr_shared;

/* Take pieces [*first, *last) of `all`. Returns whether any were left. */
static inline int hr_take(hr_shared *shared, int64_t all, int64_t threads, int64_t *first, int64_t *last) {
    long long at = atomic_load_explicit(&shared->taken, memory_order_relaxed);
    int64_t some;
    do {
        if (at >= all) return 0;
        some = (all - at) / (2 * threads);
        if (some < 1) some = 1;
    } while (!atomic_compare_exchange_weak_explicit(&shared->taken, &at, at + some, memory_order_relaxed,
                                                    memory_order_relaxed));
    *first = at;
    *last = at + some;
    return 1;
}
#endif
