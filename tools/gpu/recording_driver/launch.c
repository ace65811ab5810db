/* Modules and launches of kernels.
 *
 * A module's text says which arguments its kernels take, so that the addresses among
 * them are found: also those inside a struct. */
#include "recorder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Of Hopper. */
enum { MOST_THREADS = 1024, MOST_DEPTH = 64, PLAIN_SHARED = 48 << 10, MOST_SHARED = 227 << 10 };
#define MOST_BLOCKS_X 0x7fffffffu
#define MOST_BLOCKS_YZ 65535u
enum { MOST_PARAMETERS = 64, DYNAMIC_SHARED_ATTRIBUTE = 8 };

typedef struct {
    char *text; /* PTX; NULL if it is machine code */
} Module;

typedef struct Function {
    char name[128];
    int parameters; /* -1: not known */
    size_t sizes[MOST_PARAMETERS];
    unsigned most_shared; /* dynamic */
    unsigned most_threads; /* of a block, by its text; 0: it does not say */
    const Module *module;
    struct Function *next;
} Function;

static Function *functions;

static size_t size_of_type(const char *type) {
    static const struct { const char *name; size_t bytes; } types[] = {
        {"64", 8}, {"32", 4}, {"16", 2}, {"8", 1},
    };
    for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++)
        if (strstr(type, types[i].name)) return types[i].bytes;
    return 0;
}

/* Reads `.param .u64 name, .param .align 8 .b8 name[40]) .maxntid 128, 1, 1 …{`. */
static void read_parameters(Function *function, const char *at) {
    const char *end = strchr(at, ')');
    function->parameters = 0;
    for (at = strstr(at, ".param"); at && at < end; at = strstr(at + 1, ".param")) {
        char type[16] = "", rest[256] = "";
        const char *word = at + strlen(".param");
        int alignment, skipped = 0;
        if (sscanf(word, " .align %d%n", &alignment, &skipped) == 1) word += skipped;
        if (sscanf(word, " .%15s %255[^,)]", type, rest) < 1 || function->parameters == MOST_PARAMETERS) {
            function->parameters = -1;
            return;
        }
        const char *length = strchr(rest, '[');
        size_t count = length ? strtoul(length + 1, NULL, 10) : 1;
        function->sizes[function->parameters++] = size_of_type(type) * count;
    }
    const char *body = end ? strchr(end, '{') : NULL;
    const char *most = end ? strstr(end, ".maxntid") : NULL;
    unsigned x = 1, y = 1, z = 1;
    if (most && most < body && sscanf(most, ".maxntid %u, %u, %u", &x, &y, &z) >= 1) function->most_threads = x * y * z;
}

static bool describe(Function *function) {
    function->parameters = -1;
    if (!function->module->text) return true;
    char wanted[160];
    snprintf(wanted, sizeof(wanted), ".entry %s(", function->name);
    const char *found = strstr(function->module->text, wanted);
    if (!found) return false;
    read_parameters(function, found);
    return true;
}

static void expect_limits(const Function *function, const unsigned grid[3], const unsigned block[3], unsigned shared) {
    const char *name = function->name;
    unsigned long long threads = (unsigned long long)block[0] * block[1] * block[2];
    if (!grid[0] || !grid[1] || !grid[2] || grid[0] > MOST_BLOCKS_X || grid[1] > MOST_BLOCKS_YZ || grid[2] > MOST_BLOCKS_YZ)
        fault("limit", "%s: a grid of %u, %u, %u", name, grid[0], grid[1], grid[2]);
    if (!threads || threads > MOST_THREADS || block[2] > MOST_DEPTH)
        fault("limit", "%s: a block of %u, %u, %u", name, block[0], block[1], block[2]);
    if (function->most_threads && threads > function->most_threads)
        fault("limit", "%s: %llu threads, compiled for %u", name, threads, function->most_threads);
    if (shared > function->most_shared) fault("limit", "%s: %u bytes of shared memory", name, shared);
}

static void touch_arguments(const Function *function, Moment now, void **arguments) {
    for (int i = 0; i < function->parameters && arguments; i++)
        for (size_t at = 0; at + sizeof(uint64_t) <= function->sizes[i]; at += sizeof(uint64_t)) {
            uint64_t word;
            memcpy(&word, (char *)arguments[i] + at, sizeof(word));
            if (is_device_address(word)) touch(function->name, now, word, 0, USES);
        }
}

/* === The driver's functions === */

API Result cuModuleLoadData(void **module, const void *image) {
    LOCKED;
    Module *made = calloc(1, sizeof(*made));
    const char *text = image;
    /* PTX begins with a comment or a directive; machine code does not. */
    if (text[0] == '/' || text[0] == '.' || text[0] == '\n') made->text = strdup(text);
    *module = made;
    return OK;
}

API Result cuModuleLoadDataEx(void **module, const void *image, unsigned options, int *names, void **values) {
    (void)options;
    (void)names;
    (void)values;
    return cuModuleLoadData(module, image);
}

API Result cuModuleUnload(void *module) {
    (void)module; /* its functions stay known, for the report */
    return OK;
}

API Result cuModuleGetFunction(void **function, void *module, const char *name) {
    LOCKED;
    for (Function *known = functions; known; known = known->next)
        if (known->module == module && !strcmp(known->name, name)) {
            *function = known;
            return OK;
        }
    Function *made = calloc(1, sizeof(*made));
    snprintf(made->name, sizeof(made->name), "%s", name);
    made->module = module;
    made->most_shared = PLAIN_SHARED;
    if (!describe(made)) {
        fault("module", "there is no kernel %s", name);
        free(made);
        return NOT_FOUND;
    }
    made->next = functions;
    functions = made;
    *function = made;
    return OK;
}

API Result cuFuncSetAttribute(void *function, int attribute, int value) {
    LOCKED;
    Function *changed = function;
    if (attribute != DYNAMIC_SHARED_ATTRIBUTE) return OK;
    if (value < 0 || value > MOST_SHARED) {
        fault("limit", "%s: %d bytes of shared memory wanted", changed->name, value);
        return INVALID_VALUE;
    }
    changed->most_shared = (unsigned)value;
    return OK;
}

API Result cuFuncGetAttribute(int *value, int attribute, void *function) {
    (void)attribute;
    (void)function;
    *value = MOST_THREADS;
    return OK;
}

API Result cuFuncSetCacheConfig(void *function, int config) {
    (void)function;
    (void)config;
    return OK;
}

API Result cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                          unsigned block_y, unsigned block_z, unsigned shared, void *stream, void **arguments,
                          void **extra) {
    (void)extra;
    LOCKED;
    const Function *launched = function;
    Moment now = next_moment(stream);
    expect_limits(launched, (unsigned[]){grid_x, grid_y, grid_z}, (unsigned[]){block_x, block_y, block_z}, shared);
    touch_arguments(launched, now, arguments);
    count(LAUNCH, 0, "%s", launched->name);
    return OK;
}

API Result cuLaunchCooperativeKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                     unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                                     void *stream, void **arguments) {
    return cuLaunchKernel(function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared, stream, arguments, NULL);
}

API Result cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *function, int threads, size_t shared) {
    (void)function;
    (void)shared;
    *blocks = threads > 0 ? 2048 / threads : 0;
    return OK;
}
