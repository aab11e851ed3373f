/* Scratch memory that a thread keeps: page faults on fresh buffers cost more than the kernels themselves. */
#include "headrace.h"

#include <pthread.h>
#include <stdlib.h>

typedef struct {
    void *memory[HR_SLOTS];
    size_t bytes[HR_SLOTS];
} scratch;

static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void release(void *value) {
    scratch *mine = value;
    for (int slot = 0; slot < HR_SLOTS; slot++) free(mine->memory[slot]);
    free(mine);
}

static void create_key(void) { (void)pthread_key_create(&key, release); }

static scratch *of_this_thread(void) {
    static __thread scratch *mine;
    if (mine) return mine;
    pthread_once(&once, create_key);
    mine = calloc(1, sizeof *mine);
    if (mine) pthread_setspecific(key, mine);
    return mine;
}

void *hr_scratch(enum hr_slot slot, size_t bytes) {
    scratch *mine = of_this_thread();
    if (!mine) return NULL;
    if (mine->bytes[slot] >= bytes) return mine->memory[slot];
    size_t rounded = (size_t)hr_round_up((int64_t)bytes, 4096);
    void *fresh = aligned_alloc(4096, rounded);
    if (!fresh) return NULL;
    free(mine->memory[slot]);
    mine->memory[slot] = fresh;
    mine->bytes[slot] = rounded;
    return fresh;
}
