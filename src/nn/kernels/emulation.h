/* A block of threads on one thread of a CPU, for tests.
 *
 * Every thread of a block is a fiber. It runs until it meets the others of its
 * block (BARRIER) or of its warp (of_lane), then the next one runs; a warp runs as
 * far ahead of the others as it can. So whatever is read of another warp before
 * meeting it is not there yet, and what is overwritten too early is lost. Shared
 * memory is filled with NaN before each block. Blocks run one after another. */
#ifndef EMULATION_H
#define EMULATION_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define INSIDE static inline
#define BLOCK emulated_block
#define THREAD emulated_thread
#define THREADS emulated_threads
#define BARRIER() emulated_meet(MEETS_BLOCK)
#define ALIGNED(address) emulated_misaligned |= (uintptr_t)(address) % sizeof(pack) != 0

/* A kernel becomes a function of a pointer to its arguments. */
#define KERNEL(name, arguments)                                                \
    static void name##_body(const arguments call);                             \
    void name(const void *argument) { name##_body(*(const arguments *)argument); } \
    static void name##_body(const arguments call)

#define EMULATED_LANES 32
#define EMULATED_MOST_THREADS 1024
#define EMULATED_STACK (64 * 1024)
#define EMULATED_SHARED (48 * 1024 / sizeof(float))

enum fate { RUNS, MEETS_WARP, MEETS_BLOCK, ENDED };

static long long emulated_block;
static int emulated_thread, emulated_threads, emulated_misaligned;
static float shared[EMULATED_SHARED];
static float emulated_lane[EMULATED_MOST_THREADS];
static enum fate emulated_fate[EMULATED_MOST_THREADS];
static ucontext_t emulated_fiber[EMULATED_MOST_THREADS], emulated_scheduler;
static void (*emulated_kernel)(const void *);
static const void *emulated_argument;

static void emulated_meet(enum fate who) {
    int self = emulated_thread;
    emulated_fate[self] = who;
    swapcontext(&emulated_fiber[self], &emulated_scheduler);
    emulated_thread = self;
}

static inline float of_lane(float value, int mask) {
    emulated_lane[emulated_thread] = value;
    emulated_meet(MEETS_WARP);
    float other = emulated_lane[emulated_thread ^ mask];
    emulated_meet(MEETS_WARP);
    return other;
}

static void emulated_start(void) {
    emulated_kernel(emulated_argument);
    emulated_fate[emulated_thread] = ENDED;
}

static void emulated_prepare(ucontext_t *fiber, char *stack) {
    getcontext(fiber);
    fiber->uc_stack.ss_sp = stack;
    fiber->uc_stack.ss_size = EMULATED_STACK;
    fiber->uc_link = &emulated_scheduler;
    makecontext(fiber, emulated_start, 0);
}

/* Lets `first..end` go on if all of them wait for the same meeting. */
static int emulated_release(int first, int end, enum fate meeting) {
    for (int thread = first; thread < end; ++thread)
        if (emulated_fate[thread] != meeting) return 0;
    for (int thread = first; thread < end; ++thread) emulated_fate[thread] = RUNS;
    return 1;
}

/* Runs one warp until it waits for its block. */
static void emulated_run_warp(int first) {
    int end = first + EMULATED_LANES;
    do {
        for (int thread = first; thread < end; ++thread) {
            if (emulated_fate[thread] != RUNS) continue;
            emulated_thread = thread;
            swapcontext(&emulated_scheduler, &emulated_fiber[thread]);
        }
    } while (emulated_release(first, end, MEETS_WARP));
}

/* 0 once all threads of a block have ended; 1 if some wait for ever. */
static int emulated_run_block(void) {
    do {
        for (int first = 0; first < emulated_threads; first += EMULATED_LANES)
            emulated_run_warp(first);
    } while (emulated_release(0, emulated_threads, MEETS_BLOCK));
    for (int thread = 0; thread < emulated_threads; ++thread)
        if (emulated_fate[thread] != ENDED) return 1;
    return 0;
}

/* Runs `kernel`. 0 if all went well, 1 if threads waited for ever, 2 if no card
 * would take the launch, 3 if shared memory was written that was not asked for, 4
 * if a pack was moved to or from an address that is no multiple of its size. */
int emulate(void (*kernel)(const void *), const void *argument, long long blocks, int threads,
            int shared_bytes) {
    if (threads <= 0 || threads > EMULATED_MOST_THREADS || threads % EMULATED_LANES != 0) return 2;
    if (blocks <= 0 || blocks > 0x7fffffffLL) return 2;
    if (shared_bytes < 0 || (size_t)shared_bytes > sizeof(shared)) return 2;
    char *stacks = malloc((size_t)threads * EMULATED_STACK);
    if (!stacks) return 2;
    emulated_kernel = kernel;
    emulated_argument = argument;
    emulated_threads = threads;
    emulated_misaligned = 0;
    int failed = 0;
    for (emulated_block = 0; emulated_block < blocks && !failed; ++emulated_block) {
        memset(shared, 0xff, sizeof(shared));
        for (int thread = 0; thread < threads; ++thread) {
            emulated_prepare(&emulated_fiber[thread], stacks + (size_t)thread * EMULATED_STACK);
            emulated_fate[thread] = RUNS;
        }
        failed = emulated_run_block();
        /* Beyond what was asked for, shared memory must be untouched. */
        for (size_t word = (size_t)shared_bytes / sizeof(float); word < EMULATED_SHARED; ++word) {
            uint32_t bits;
            memcpy(&bits, &shared[word], sizeof(bits));
            if (bits != 0xffffffffu) failed = 3;
        }
    }
    free(stacks);
    return failed ? failed : emulated_misaligned ? 4 : 0;
}

#if defined(NUMBER_BF16)
typedef struct { uint16_t bits; } number;
static inline float wide(number x) {
    uint32_t bits = (uint32_t)x.bits << 16;
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}
static inline number narrow(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    number value;
    if ((bits & 0x7fffffffu) > 0x7f800000u) value.bits = (uint16_t)(bits >> 16 | 0x40);
    else value.bits = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    return value;
}
#elif defined(NUMBER_F16)
typedef _Float16 number;
static inline float wide(number x) { return (float)x; }
static inline number narrow(float x) { return (number)x; }
#else
typedef float number;
static inline float wide(number x) { return x; }
static inline number narrow(float x) { return x; }
#endif

#endif
