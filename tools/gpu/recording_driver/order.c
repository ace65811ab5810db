/* Streams and events, and what they order.
 *
 * Each stream counts its work, and has a clock of what must be done before its next
 * work begins: its own, what it was told to wait for, and what the host has waited
 * for. The host has such a clock, too. */
#include "recorder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LEGACY = 0, PER_THREAD = 2, NON_BLOCKING = 1 };

typedef struct {
    void *handle;
    pthread_t thread; /* of a per-thread stream */
    bool blocking;    /* waits for the legacy stream, and it for this one */
    bool destroyed;
    Clock before;
    char name[32];
} Stream;

typedef struct {
    Clock at;
    uint64_t work;
    bool recorded;
} Event;

static Stream streams[MOST_STREAMS];
static int stream_count;
static Clock host;
static uint64_t work;

static void join(Clock *clock, const Clock *other) {
    for (int i = 0; i < MOST_STREAMS; i++)
        if (clock->of[i] < other->of[i]) clock->of[i] = other->of[i];
}

static int add_stream(void *handle, bool blocking, const char *name) {
    if (stream_count == MOST_STREAMS) {
        fprintf(stderr, "recording driver: more than %d streams\n", MOST_STREAMS);
        abort();
    }
    Stream *stream = &streams[stream_count];
    *stream = (Stream){.handle = handle, .thread = pthread_self(), .blocking = blocking};
    snprintf(stream->name, sizeof(stream->name), "%s %d", name, stream_count);
    return stream_count++;
}

static int find_stream(void *handle) {
    uintptr_t number = (uintptr_t)handle;
    if (number == 1) handle = NULL; /* CU_STREAM_LEGACY */
    bool of_thread = number == PER_THREAD;
    for (int i = 0; i < stream_count; i++)
        if (streams[i].handle == handle && (!of_thread || pthread_equal(streams[i].thread, pthread_self()))) {
            if (streams[i].destroyed) fault("stream", "%s is used after its end", streams[i].name);
            return i;
        }
    if (handle && !of_thread) fault("stream", "%p is none", handle);
    return add_stream(handle, true, of_thread ? "thread's stream" : handle ? "unknown stream" : "legacy stream");
}

Moment next_moment(void *handle) {
    int index = find_stream(handle);
    Stream *stream = &streams[index];
    join(&stream->before, &host);
    for (int i = 0; stream->blocking && i < stream_count; i++)
        if (streams[i].blocking && (!handle || !streams[i].handle)) join(&stream->before, &streams[i].before);
    work++;
    return (Moment){index, ++stream->before.of[index]};
}

bool host_is_after(Moment before) { return host.of[before.stream] >= before.time; }

bool is_after(Moment now, Moment before) { return streams[now.stream].before.of[before.stream] >= before.time; }

const char *stream_name(int stream) { return streams[stream].name; }

void wait_for_stream(void *handle) { join(&host, &streams[find_stream(handle)].before); }

void wait_for_all(void) {
    for (int i = 0; i < stream_count; i++) join(&host, &streams[i].before);
}

uint64_t work_so_far(void) { return work; }

/* === The driver's functions === */

API Result cuStreamCreate(void **stream, unsigned flags) {
    LOCKED;
    *stream = malloc(1);
    add_stream(*stream, !(flags & NON_BLOCKING), "stream");
    return OK;
}

API Result cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) {
    (void)priority;
    return cuStreamCreate(stream, flags);
}

API Result cuStreamDestroy_v2(void *stream) {
    LOCKED;
    streams[find_stream(stream)].destroyed = true; /* its handle is never given out again */
    return OK;
}

API Result cuStreamSynchronize(void *stream) {
    LOCKED;
    wait_for_stream(stream);
    count(WAIT, 0, "for a stream");
    end_section("cuStreamSynchronize");
    return OK;
}

API Result cuCtxSynchronize(void) {
    LOCKED;
    wait_for_all();
    count(WAIT, 0, "for the context");
    end_section("cuCtxSynchronize");
    return OK;
}

API Result cuStreamQuery(void *stream) {
    LOCKED;
    find_stream(stream);
    return OK;
}

API Result cuStreamIsCapturing(void *stream, int *status) {
    (void)stream;
    *status = 0;
    return OK;
}

API Result cuStreamWaitEvent(void *stream, void *event, unsigned flags) {
    (void)flags;
    LOCKED;
    Stream *waiting = &streams[find_stream(stream)];
    if (((Event *)event)->recorded) join(&waiting->before, &((Event *)event)->at);
    return OK;
}

API Result cuEventCreate(void **event, unsigned flags) {
    (void)flags;
    *event = calloc(1, sizeof(Event));
    return OK;
}

API Result cuEventDestroy_v2(void *event) {
    free(event);
    return OK;
}

API Result cuEventRecord(void *event, void *stream) {
    LOCKED;
    Moment now = next_moment(stream);
    *(Event *)event = (Event){.at = streams[now.stream].before, .work = work, .recorded = true};
    return OK;
}

API Result cuEventQuery(void *event) {
    (void)event;
    return OK;
}

API Result cuEventSynchronize(void *event) {
    LOCKED;
    if (((Event *)event)->recorded) join(&host, &((Event *)event)->at);
    count(WAIT, 0, "for an event");
    return OK;
}

/* A thousandth of a millisecond for each piece of work. */
API Result cuEventElapsedTime_v2(float *milliseconds, void *start, void *end) {
    LOCKED;
    *milliseconds = (float)(((Event *)end)->work - ((Event *)start)->work) / 1000;
    return OK;
}

API Result cuEventElapsedTime(float *milliseconds, void *start, void *end) {
    return cuEventElapsedTime_v2(milliseconds, start, end);
}
