/* A block of threads on one thread of a CPU, for tests.
 *
 * Every thread of a block is a fiber. It runs until it meets the others of its
 * block (BARRIER) or of its warp (of_lane), then the next one runs; a warp runs as
 * far ahead of the others as it can. So whatever is read of another warp before
 * meeting it is not there yet, and what is overwritten too early is lost. Shared
 * memory is filled with NaN before each block. Blocks run one after another.
 *
 * Whatever is read or written lies in one of the tensors that the launch was made
 * of, at a multiple of its size, or the fiber stops there. The kernels are compiled
 * with the compiler's checks of undefined behaviour, which call the functions
 * `__ubsan_handle_...` below: so an index that does not fit its type is seen. */
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
#define BARRIER() emulated_meet(MEETS_BLOCK, __LINE__)
#define READS(pointer) emulated_touch((pointer), sizeof(*(pointer)), 0)
#define WRITES(pointer) emulated_touch((pointer), sizeof(*(pointer)), 1)

/* A kernel becomes a function of a pointer to its arguments. */
#define KERNEL(name, arguments)                                                \
    static void name##_body(const arguments call);                             \
    void name(const void *argument) { name##_body(*(const arguments *)argument); } \
    static void name##_body(const arguments call)

#define EMULATED_LANES 32
#define EMULATED_STACK (64 * 1024)
#define EMULATED_SHARED (48 * 1024 / sizeof(float))

enum fate { RUNS, MEETS_WARP, MEETS_BLOCK, ENDED };

/* What went wrong first; emulation.rs has the words. */
enum fault {
    NONE,
    WAITS_FOR_EVER,
    NO_LAUNCH,
    SHARED_OVERFLOW,
    MISALIGNED,
    READS_OUTSIDE,
    WRITES_OUTSIDE,
    UNDEFINED,
    TWO_BARRIERS
};

/* Memory of a tensor. */
struct emulated_range {
    uint64_t first, end;
    int writable;
};

struct emulated_launch {
    long long blocks;
    /* Those that are run. */
    long long first, end;
    int threads, shared_bytes;
    const struct emulated_range *ranges;
    int range_count;
};

static long long emulated_block;
static int emulated_thread, emulated_threads;
static enum fault emulated_fault;
static int emulated_fault_line;
static const struct emulated_launch *emulated_launched;
static float shared[EMULATED_SHARED];
static float emulated_lane[MOST_THREADS];
static enum fate emulated_fate[MOST_THREADS];
/* The line at which a thread meets the others. */
static int emulated_place[MOST_THREADS];
static ucontext_t emulated_fiber[MOST_THREADS], emulated_scheduler;
static void (*emulated_kernel)(const void *);
static const void *emulated_argument;

static void emulated_note(enum fault fault, int line) {
    if (emulated_fault) return;
    emulated_fault = fault;
    emulated_fault_line = line;
}

static void emulated_meet(enum fate who, int line) {
    int self = emulated_thread;
    emulated_fate[self] = who;
    emulated_place[self] = line;
    swapcontext(&emulated_fiber[self], &emulated_scheduler);
    emulated_thread = self;
}

static inline float of_lane(float value, int mask) {
    emulated_lane[emulated_thread] = value;
    emulated_meet(MEETS_WARP, __LINE__);
    float other = emulated_lane[emulated_thread ^ mask];
    emulated_meet(MEETS_WARP, __LINE__);
    return other;
}

/* Stops the fiber at what a card would fault at, or worse, not fault at. */
static void emulated_touch(const void *address, size_t bytes, int writes) {
    uint64_t first = (uint64_t)(uintptr_t)address;
    const struct emulated_launch *launch = emulated_launched;
    int inside = 0;
    for (int i = 0; i < launch->range_count && !inside; ++i) {
        const struct emulated_range *range = &launch->ranges[i];
        inside = first >= range->first && first + bytes <= range->end;
        inside = inside && (range->writable || !writes);
    }
    if (inside && first % bytes == 0) return;
    emulated_note(inside ? MISALIGNED : writes ? WRITES_OUTSIDE : READS_OUTSIDE, 0);
    emulated_meet(ENDED, __LINE__);
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
    for (int thread = first; thread < end; ++thread) {
        if (emulated_place[thread] != emulated_place[first]) emulated_note(TWO_BARRIERS, 0);
        emulated_fate[thread] = RUNS;
    }
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

static void emulated_run_block(void) {
    do {
        for (int first = 0; first < emulated_threads; first += EMULATED_LANES)
            emulated_run_warp(first);
    } while (emulated_release(0, emulated_threads, MEETS_BLOCK));
    for (int thread = 0; thread < emulated_threads; ++thread)
        if (emulated_fate[thread] != ENDED) emulated_note(WAITS_FOR_EVER, 0);
}

/* Beyond what was asked for, shared memory must be untouched. */
static void emulated_check_shared(int shared_bytes) {
    for (size_t word = (size_t)shared_bytes / sizeof(float); word < EMULATED_SHARED; ++word) {
        uint32_t bits;
        memcpy(&bits, &shared[word], sizeof(bits));
        if (bits != 0xffffffffu) emulated_note(SHARED_OVERFLOW, 0);
    }
}

static int emulated_can_launch(const struct emulated_launch *launch) {
    return launch->threads > 0 && launch->threads <= MOST_THREADS &&
           launch->threads % EMULATED_LANES == 0 && launch->blocks > 0 &&
           launch->blocks <= 0x7fffffffLL && launch->shared_bytes >= 0 &&
           (size_t)launch->shared_bytes <= sizeof(shared);
}

/* Runs blocks of `kernel`, and returns an `enum fault`. */
int emulate(void (*kernel)(const void *), const void *argument,
            const struct emulated_launch *launch) {
    emulated_fault = NONE;
    if (!emulated_can_launch(launch)) return NO_LAUNCH;
    char *stacks = malloc((size_t)launch->threads * EMULATED_STACK);
    if (!stacks) return NO_LAUNCH;
    emulated_kernel = kernel;
    emulated_argument = argument;
    emulated_launched = launch;
    emulated_threads = launch->threads;
    for (emulated_block = launch->first; emulated_block < launch->end && !emulated_fault;
         ++emulated_block) {
        memset(shared, 0xff, sizeof(shared));
        for (int thread = 0; thread < launch->threads; ++thread) {
            emulated_prepare(&emulated_fiber[thread], stacks + (size_t)thread * EMULATED_STACK);
            emulated_fate[thread] = RUNS;
        }
        emulated_run_block();
        emulated_check_shared(launch->shared_bytes);
    }
    free(stacks);
    return emulated_fault;
}

/* The line of arithmetic that is undefined, in whichever source it stands. */
int emulated_line(void) { return emulated_fault_line; }

/* What the compiler hands its checks begins with the place in the source. */
struct emulated_source {
    const char *file;
    uint32_t line, column;
};

#define CHECKED(what, ...)                                                     \
    void __ubsan_handle_##what(const struct emulated_source *at, __VA_ARGS__); \
    void __ubsan_handle_##what(const struct emulated_source *at, __VA_ARGS__) { \
        emulated_note(UNDEFINED, (int)at->line);                               \
    }

#define EMULATED_UNUSED __attribute__((unused)) void *

CHECKED(add_overflow, EMULATED_UNUSED left, EMULATED_UNUSED right)
CHECKED(sub_overflow, EMULATED_UNUSED left, EMULATED_UNUSED right)
CHECKED(mul_overflow, EMULATED_UNUSED left, EMULATED_UNUSED right)
CHECKED(negate_overflow, EMULATED_UNUSED value)
CHECKED(divrem_overflow, EMULATED_UNUSED left, EMULATED_UNUSED right)
CHECKED(shift_out_of_bounds, EMULATED_UNUSED left, EMULATED_UNUSED right)
CHECKED(out_of_bounds, EMULATED_UNUSED index)

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
