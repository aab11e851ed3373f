/* Where the threads of a pass wait for each other, some hundred times a pass, for microseconds each.
 *
 * libgomp's barriers either spin, and then whoever is not alone on his cores waits for a thread that a neighbour has
 * displaced, while his own spinning keeps that neighbour from a free core; or sleep, and then a virtual machine takes as
 * long to wake an idle core as a layer takes to compute. Here who waits longer than threads do undisturbed gives his
 * core to anybody who wants it, and comes back as soon as nobody does: the core never falls asleep within a pass.
 */
#ifndef HEADRACE_MEETING_H
#define HEADRACE_MEETING_H

#include <sched.h>
#include <stdatomic.h>

/* About 20 µs. */
enum { HR_SPINS = 400 };

typedef struct {
    atomic_int here, meetings;
} hr_meeting;

/* Return when all `threads` have called this. What they wrote before is there for all of them. */
static inline void hr_meet(hr_meeting *m, int threads) {
    const int before = atomic_load_explicit(&m->meetings, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&m->here, 1, memory_order_acq_rel) == threads - 1) {
        atomic_store_explicit(&m->here, 0, memory_order_relaxed);
        atomic_store_explicit(&m->meetings, before + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&m->meetings, memory_order_acquire) == before; spins++) {
        if (spins < HR_SPINS) __builtin_ia32_pause();
        else sched_yield();
    }
}
#endif
