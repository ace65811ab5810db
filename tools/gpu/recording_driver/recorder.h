/* A card that computes nothing: what its parts know of each other.
 *
 * The functions have CUDA's names and arguments, so that a program calls them as it
 * would the driver and its libraries. Pointers and handles are opaque; errors have
 * CUDA's numbers. Everything is under one lock. */
#ifndef RECORDER_H
#define RECORDER_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef int Result; /* CUresult, cublasStatus_t or curandStatus_t */
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALISED = 3, INVALID_HANDLE = 400, NOT_FOUND = 500 };

#define API __attribute__((visibility("default")))
#define MOST_STREAMS 32

/* === order.c: what comes before what === */

/* How much of each stream's work is known to be done before a moment. */
typedef struct {
    uint64_t of[MOST_STREAMS];
} Clock;

/* Work number `time` of a stream. */
typedef struct {
    int stream;
    uint64_t time;
} Moment;

/* Notes new work on the stream with the handle. */
Moment next_moment(void *stream);
/* Whether the host, or the work of `now`, can only come after `before` is done. */
bool host_is_after(Moment before);
bool is_after(Moment now, Moment before);
const char *stream_name(int stream);
/* The host waits for the stream with the handle. */
void wait_for_stream(void *stream);
void wait_for_all(void);
uint64_t work_so_far(void);

/* === memory.c === */

enum Access { USES, WRITES };

/* Notes that `what` touches `bytes` from `address` on; the address must be in memory that
 * is allocated, and is there by then. 0 bytes: however many there are. */
void touch(const char *what, Moment now, uint64_t address, size_t bytes, enum Access access);
bool is_device_address(uint64_t address);
void report_leaks(void);
size_t live_bytes(void);
size_t peak_bytes(void);
size_t section_peak_bytes(void);
void start_section_peak(void);

/* === report.c: what was counted === */

enum Kind { LAUNCH, PRODUCT, HTOD, HTOD_PINNED, DTOH, DTOD, FILL, ALLOCATION, FREE, WAIT, CHOICE, KINDS };

/* Counts something by its name; `bytes` of it. */
void count(enum Kind kind, size_t bytes, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* Something that a real card would not forgive. */
void fault(const char *kind, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Ends a section of the report. */
void end_section(const char *why);
uint64_t setting(const char *name, uint64_t otherwise);

/* === The lock === */

void enter(void);
void leave(void *unused);
/* Held until the end of the block. */
#define LOCKED __attribute__((cleanup(leave), unused)) int locked = (enter(), 0)

#endif
