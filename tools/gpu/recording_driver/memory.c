/* Memory of the card: addresses without anything behind them.
 *
 * No address is given out twice, so what is used after it was freed is found; reading
 * one on the host ends the program. Copies to the host bring zeros. */
#define _GNU_SOURCE
#include "recorder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Where no other memory of a process is, and so high that two numbers of a kernel's
 * arguments, side by side, are seldom an address: the upper one would have to be 16640
 * to 20479. */
#define FIRST_ADDRESS 0x410000000000ull
#define SPACE (15ull << 40)
/* Nothing begins within so many bytes of a multiple of 2^32: the last four bytes of a
 * kernel's arguments may be what is left of an address's upper half, beside a small number. */
#define LOW_GAP (16ull << 20)
#define ALIGNMENT 512 /* of the real pool's addresses, and what lengths are rounded to */
#define MOST_USERS 4

typedef struct {
    uint64_t address;
    size_t bytes;
    bool ordered;  /* allocated in the order of a stream */
    Moment made;
    Moment written; /* time 0: never by a copy */
    Moment used[MOST_USERS]; /* the last by each stream; time 0: none */
    bool freed;
    Moment freed_at;
    char maker[48];
} Block;

/* Memory of the host that the card reads itself. */
typedef struct {
    char *first;
    size_t bytes;
} Pinned;

/* A copy from pinned memory, or to it. */
typedef struct {
    char *first;
    size_t bytes;
    Moment at;
} PinnedCopy;

static Block *blocks; /* by address */
static size_t block_count, block_room;
static uint64_t first_address, next_address;
static size_t live, peak, section_peak;
static char pool;
static uint64_t release_threshold;
static Pinned pinned[256];
static PinnedCopy copies[256];
static unsigned next_copy;

size_t live_bytes(void) { return live; }
size_t peak_bytes(void) { return peak; }
size_t section_peak_bytes(void) { return section_peak; }
void start_section_peak(void) { section_peak = live; }

static size_t total_bytes(void) { return setting("RECORDING_DRIVER_MIB", 81559) << 20; }
/* What the context and the kernels take of it. */
static size_t reserved_bytes(void) { return 600ull << 20; }

bool is_device_address(uint64_t address) {
    bool is_in_gap = (address & UINT32_MAX) < LOW_GAP;
    return first_address && !is_in_gap && address >= first_address && address < first_address + SPACE;
}

static size_t rounded(size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

static bool reserve(void) {
    if (first_address) return true;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
    if (mmap((void *)FIRST_ADDRESS, SPACE, PROT_NONE, flags, -1, 0) != (void *)FIRST_ADDRESS) return false;
    first_address = next_address = FIRST_ADDRESS;
    return true;
}

/* The block that holds `address`, freed or not. */
static Block *find_block(uint64_t address) {
    size_t low = 0, high = block_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (blocks[middle].address <= address) low = middle + 1;
        else high = middle;
    }
    if (low == 0) return NULL;
    Block *block = &blocks[low - 1];
    return address < block->address + (block->bytes ? block->bytes : 1) ? block : NULL;
}

/* The next address at which `bytes` lie beside the gaps, if they are fewer than 2^32. */
static uint64_t place_for(size_t bytes) {
    uint64_t low = next_address & UINT32_MAX;
    bool reaches_gap = low + bytes > UINT32_MAX && bytes < UINT32_MAX - LOW_GAP;
    uint64_t from = next_address - low;
    if (reaches_gap) from += 1ull << 32;
    return reaches_gap || low < LOW_GAP ? from + LOW_GAP : next_address;
}

static Result allocate(uint64_t *address, size_t bytes, bool ordered, Moment made) {
    if (!reserve()) return OUT_OF_MEMORY;
    if (live + rounded(bytes) + reserved_bytes() > total_bytes()) {
        fault("out of memory", "%zu bytes besides %zu", bytes, live);
        return OUT_OF_MEMORY;
    }
    if (block_count == block_room) {
        block_room = block_room ? 2 * block_room : 4096;
        blocks = realloc(blocks, block_room * sizeof(Block));
        if (!blocks) abort();
    }
    next_address = place_for(rounded(bytes));
    /* A gap after each block: what is beside it belongs to nobody. */
    blocks[block_count++] = (Block){.address = next_address, .bytes = bytes, .ordered = ordered, .made = made};
    *address = next_address;
    next_address += rounded(bytes) + ALIGNMENT;
    if (next_address > first_address + SPACE) {
        fprintf(stderr, "recording driver: %llu TiB were allocated in all, and no address is left\n", SPACE >> 40);
        abort();
    }
    live += rounded(bytes);
    if (live > peak) peak = live;
    if (live > section_peak) section_peak = live;
    count(ALLOCATION, bytes, "of memory");
    return OK;
}

static void note_use(Block *block, Moment now) {
    for (int i = 0; i < MOST_USERS; i++)
        if (!block->used[i].time || block->used[i].stream == now.stream) {
            block->used[i] = now;
            return;
        }
    fault("recorder", "a block of more than %d streams", MOST_USERS);
}

/* Whether all that used the block is done before `now`. */
static void expect_unused(const char *what, const Block *block, Moment now) {
    for (int i = 0; i < MOST_USERS; i++)
        if (block->used[i].time && !is_after(now, block->used[i]))
            fault("order", "%s on the %s of memory by %s, which the %s may still use", what,
                  stream_name(now.stream), block->maker, stream_name(block->used[i].stream));
}

void touch(const char *what, Moment now, uint64_t address, size_t bytes, enum Access access) {
    Block *block = find_block(address);
    if (!block) {
        fault("memory", "%s touches %#lx, where nothing is", what, address);
        return;
    }
    if (block->freed) {
        fault("memory", "%s touches memory by %s that was freed", what, block->maker);
        return;
    }
    if (address + bytes > block->address + block->bytes)
        fault("memory", "%s touches %zu bytes at %zu of the %zu by %s", what, bytes,
              (size_t)(address - block->address), block->bytes, block->maker);
    if (block->ordered && !is_after(now, block->made))
        fault("order", "%s on the %s of memory that the %s may not have yet", what, stream_name(now.stream),
              stream_name(block->made.stream));
    if (block->written.time && !is_after(now, block->written))
        fault("order", "%s on the %s of memory that the %s may still fill", what, stream_name(now.stream),
              stream_name(block->written.stream));
    if (access == WRITES) {
        expect_unused(what, block, now);
        block->written = now;
    }
    note_use(block, now);
    if (!block->maker[0]) snprintf(block->maker, sizeof(block->maker), "%s", what);
}

static void give_back(Block *block, Moment now) {
    block->freed = true;
    block->freed_at = now;
    live -= rounded(block->bytes);
    count(FREE, block->bytes, "of memory");
}

static Block *to_free(uint64_t address) {
    Block *block = find_block(address);
    if (!block || block->address != address) {
        fault("memory", "%#lx is freed, which is no allocation", address);
        return NULL;
    }
    if (block->freed) {
        fault("memory", "memory by %s is freed twice", block->maker);
        return NULL;
    }
    return block;
}

void report_leaks(void) {
    for (size_t i = 0; i < block_count; i++)
        if (!blocks[i].freed) fault("leak", "%zu bytes by %s", blocks[i].bytes, blocks[i].maker);
}

static Pinned *pinned_with(const void *address) {
    for (size_t i = 0; i < sizeof(pinned) / sizeof(*pinned); i++)
        if ((char *)address >= pinned[i].first && (char *)address < pinned[i].first + pinned[i].bytes) return &pinned[i];
    return NULL;
}

/* What is in pinned memory may be written again, or be freed, only after the card has
 * fetched it. Who has it copied has written it before. */
static void expect_fetched(const char *what, const char *first, size_t bytes) {
    for (size_t i = 0; i < sizeof(copies) / sizeof(*copies); i++)
        if (copies[i].bytes && copies[i].first < first + bytes && first < copies[i].first + copies[i].bytes) {
            if (!host_is_after(copies[i].at)) fault("order", "%s of pinned memory that a copy may still read", what);
            copies[i].bytes = 0;
        }
}

/* === The driver's functions === */

API Result cuMemAllocAsync(uint64_t *address, size_t bytes, void *stream) {
    LOCKED;
    return allocate(address, bytes, true, next_moment(stream));
}

API Result cuMemAllocFromPoolAsync(uint64_t *address, size_t bytes, void *from, void *stream) {
    (void)from;
    return cuMemAllocAsync(address, bytes, stream);
}

API Result cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    LOCKED;
    return allocate(address, bytes, false, (Moment){0});
}

API Result cuMemFreeAsync(uint64_t address, void *stream) {
    LOCKED;
    Block *block = to_free(address);
    if (!block) return INVALID_VALUE;
    Moment now = next_moment(stream);
    expect_unused("freed", block, now);
    if (block->ordered && !is_after(now, block->made)) fault("order", "memory is freed before it is allocated");
    give_back(block, now);
    return OK;
}

API Result cuMemFree_v2(uint64_t address) {
    LOCKED;
    Block *block = to_free(address);
    if (!block) return INVALID_VALUE;
    wait_for_all();
    count(WAIT, 0, "for memory to be freed");
    give_back(block, (Moment){0});
    return OK;
}

API Result cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    LOCKED;
    /* The pool keeps what is freed, if it was told to. */
    size_t taken = release_threshold ? peak : live;
    *total = total_bytes();
    *free_bytes = *total - reserved_bytes() - taken;
    return OK;
}

API Result cuDeviceGetDefaultMemPool(void **of, int device) {
    (void)device;
    *of = &pool;
    return OK;
}

API Result cuDeviceGetMemPool(void **of, int device) { return cuDeviceGetDefaultMemPool(of, device); }

enum { RELEASE_THRESHOLD = 4, RESERVED_NOW, RESERVED_MOST, USED_NOW, USED_MOST };

API Result cuMemPoolSetAttribute(void *of, int attribute, void *value) {
    (void)of;
    LOCKED;
    if (attribute == RELEASE_THRESHOLD) release_threshold = *(uint64_t *)value;
    if (attribute == USED_MOST) peak = live;
    return OK;
}

API Result cuMemPoolGetAttribute(void *of, int attribute, void *value) {
    (void)of;
    LOCKED;
    switch (attribute) {
    case RELEASE_THRESHOLD: *(uint64_t *)value = release_threshold; break;
    case RESERVED_NOW: case RESERVED_MOST: case USED_MOST: *(uint64_t *)value = peak; break;
    case USED_NOW: *(uint64_t *)value = live; break;
    default: return INVALID_VALUE;
    }
    return OK;
}

API Result cuMemPoolTrimTo(void *of, size_t bytes) {
    (void)of;
    (void)bytes;
    return OK;
}

API Result cuMemHostAlloc(void **address, size_t bytes, unsigned flags) {
    (void)flags;
    LOCKED;
    for (size_t i = 0; i < sizeof(pinned) / sizeof(*pinned); i++)
        if (!pinned[i].bytes) {
            *address = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (*address == MAP_FAILED) return OUT_OF_MEMORY;
            pinned[i] = (Pinned){*address, bytes};
            return OK;
        }
    return OUT_OF_MEMORY;
}

API Result cuMemFreeHost(void *address) {
    LOCKED;
    Pinned *found = pinned_with(address);
    if (!found || found->first != address) return INVALID_VALUE;
    expect_fetched("freeing", found->first, found->bytes);
    munmap(found->first, found->bytes);
    *found = (Pinned){0};
    return OK;
}

API Result cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    LOCKED;
    Moment now = next_moment(stream);
    touch("a copy from the host", now, to, bytes, WRITES);
    if (pinned_with(from)) {
        expect_fetched("filling", from, bytes);
        copies[next_copy++ % (sizeof(copies) / sizeof(*copies))] = (PinnedCopy){(char *)from, bytes, now};
        count(HTOD_PINNED, bytes, "from pinned memory");
        return OK;
    }
    /* The driver takes short ones along at once, and may wait with longer ones. */
    count(HTOD, bytes, bytes > 65536 ? "from pageable memory, above 64 KiB" : "from pageable memory");
    return OK;
}

API Result cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) {
    Result result = cuMemcpyHtoDAsync_v2(to, from, bytes, NULL);
    LOCKED;
    wait_for_stream(NULL);
    count(WAIT, 0, "for a copy from the host");
    return result;
}

API Result cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
    LOCKED;
    Moment now = next_moment(stream);
    touch("a copy to the host", now, from, bytes, USES);
    memset(to, 0, bytes);
    count(DTOH, bytes, "to the host");
    if (!pinned_with(to)) {
        wait_for_stream(stream);
        count(WAIT, 0, "for a copy to the host");
    }
    return OK;
}

API Result cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) {
    return cuMemcpyDtoHAsync_v2(to, from, bytes, NULL);
}

API Result cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
    LOCKED;
    Moment now = next_moment(stream);
    touch("a copy on the card", now, from, bytes, USES);
    touch("a copy on the card", now, to, bytes, WRITES);
    count(DTOD, bytes, "on the card");
    return OK;
}

API Result cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t bytes) {
    return cuMemcpyDtoDAsync_v2(to, from, bytes, NULL);
}

API Result cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *stream) {
    (void)value;
    LOCKED;
    touch("a fill", next_moment(stream), to, bytes, WRITES);
    count(FILL, bytes, "of memory");
    return OK;
}

API Result cuMemsetD8_v2(uint64_t to, unsigned char value, size_t bytes) {
    return cuMemsetD8Async(to, value, bytes, NULL);
}
