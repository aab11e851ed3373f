/* Where the threads of a pass run: each on a core of its own while the pass lasts, where it has as many threads as there
 * are cores.
 *
 * Whenever a neighbour wakes, the scheduler may put him on one thread's core and move that thread to the other's, where
 * two that wait for each other take turns until somebody notices. Kept in their places they lose what the neighbour
 * takes and no more. Before the next pass they are free again: whoever called may have other work, and what he starts
 * inherits where he may run.
 */
#ifndef HEADRACE_PLACING_H
#define HEADRACE_PLACING_H

#ifndef _GNU_SOURCE
#error "placing.h needs _GNU_SOURCE before the first header"
#endif
#include <sched.h>

typedef struct {
    cpu_set_t before;
    int placed;
} hr_place;

/* Have the calling thread, `thread` of `threads`, keep to one core. */
static inline void hr_take_place(hr_place *place, int thread, int threads) {
    cpu_set_t own;
    int cpu = 0;
    place->placed = 0;
    if (sched_getaffinity(0, sizeof place->before, &place->before) || CPU_COUNT(&place->before) != threads) return;
    for (int passed = 0;; cpu++)
        if (CPU_ISSET(cpu, &place->before) && passed++ == thread) break;
    CPU_ZERO(&own);
    CPU_SET(cpu, &own);
    place->placed = !sched_setaffinity(0, sizeof own, &own);
}

/* It may run where it might before. */
static inline void hr_leave_place(const hr_place *place) {
    if (place->placed) (void)sched_setaffinity(0, sizeof place->before, &place->before);
}
#endif
