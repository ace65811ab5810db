/* Commits every fault that the recording driver should see, and some that are none.
 *
 * Each case is a process of its own; its report must name the kind of fault that is
 * expected and no other. */
#define _GNU_SOURCE
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

int cuDevicePrimaryCtxRetain(void **, int), cuDevicePrimaryCtxRelease_v2(int);
int cuStreamCreate(void **, unsigned), cuStreamSynchronize(void *), cuStreamWaitEvent(void *, void *, unsigned);
int cuEventCreate(void **, unsigned), cuEventRecord(void *, void *), cuEventSynchronize(void *);
int cuMemAllocAsync(uint64_t *, size_t, void *), cuMemFreeAsync(uint64_t, void *), cuMemAlloc_v2(uint64_t *, size_t);
int cuMemHostAlloc(void **, size_t, unsigned), cuMemFreeHost(void *);
int cuMemcpyHtoDAsync_v2(uint64_t, const void *, size_t, void *), cuMemcpyDtoHAsync_v2(void *, uint64_t, size_t, void *);
int cuMemcpyDtoDAsync_v2(uint64_t, uint64_t, size_t, void *), cuMemsetD8Async(uint64_t, unsigned char, size_t, void *);
int cuModuleLoadData(void **, const void *), cuModuleGetFunction(void **, void *, const char *);
int cuFuncSetAttribute(void *, int, int);
int cuLaunchKernel(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **);
int cublasCreate_v2(void **), cublasSetStream_v2(void *, void *);
int cublasGemmStridedBatchedEx(void *, int, int, int, int, int, const void *, const void *, int, int, long long,
                               const void *, int, int, long long, const void *, void *, int, int, long long, int, int,
                               int);
int cublasLtMatmulDescCreate(void **, int, int), cublasLtMatmulPreferenceCreate(void **);
int cublasLtMatmulDescSetAttribute(void *, int, const void *, size_t);
int cublasLtMatmulPreferenceSetAttribute(void *, int, const void *, size_t);
int cublasLtMatrixLayoutCreate(void **, int, uint64_t, uint64_t, int64_t);
int cublasLtMatmulAlgoGetHeuristic(void *, void *, void *, void *, void *, void *, void *, int, void *, int *);
int cublasLtMatmul(void *, void *, const void *, const void *, void *, const void *, void *, const void *,
                   const void *, void *, void *, void *, const void *, void *, size_t, void *);

static const char TEXT[] = "// made by hand\n.version 8.0\n.visible .entry plain(\n\t.param .u64 .ptr .align 1 plain_0,\n"
                           "\t.param .align 8 .b8 plain_1[24]\n)\n.maxntid 256, 1, 1\n{\n\tret;\n}\n";

static void *const THREAD_STREAM = (void *)2;
static void *beside;

static uint64_t memory(size_t bytes, void *stream) {
    uint64_t address;
    cuMemAllocAsync(&address, bytes, stream);
    return address;
}

static void *recorded(void *stream) {
    void *event;
    cuEventCreate(&event, 2);
    cuEventRecord(event, stream);
    return event;
}

static void launch_on(void *stream, unsigned grid_x, unsigned grid_y, unsigned threads, unsigned shared, uint64_t a, uint64_t b) {
    static void *module, *kernel;
    if (!module) {
        cuModuleLoadData(&module, TEXT);
        cuModuleGetFunction(&kernel, module, "plain");
        cuFuncSetAttribute(kernel, 8, 100 << 10);
    }
    uint64_t call[3] = {7, b, 9};
    void *arguments[] = {&a, call};
    cuLaunchKernel(kernel, grid_x, grid_y, 1, threads, 1, 1, shared, stream, arguments, NULL);
}

static void launch(unsigned grid_x, unsigned grid_y, unsigned threads, unsigned shared) {
    uint64_t x = memory(64, THREAD_STREAM);
    launch_on(THREAD_STREAM, grid_x, grid_y, threads, shared, x, x);
    cuMemFreeAsync(x, THREAD_STREAM);
}

static void nothing_wrong(void) {
    launch(0x7fffffff, 65535, 256, 100 << 10);
    /* A tensor loaded beside the work, used, and freed after its use. */
    uint64_t weights = memory(1 << 20, beside);
    void *stage;
    cuMemHostAlloc(&stage, 1 << 20, 0);
    for (int i = 0; i < 2; i++) {
        cuMemcpyHtoDAsync_v2(weights, stage, 1 << 20, beside);
        cuEventSynchronize(recorded(beside));
    }
    cuStreamWaitEvent(THREAD_STREAM, recorded(beside), 0);
    launch_on(THREAD_STREAM, 1, 1, 32, 0, weights, 0);
    cuStreamWaitEvent(beside, recorded(THREAD_STREAM), 0);
    cuMemFreeAsync(weights, beside);
    cuMemFreeHost(stage);
    cuDevicePrimaryCtxRelease_v2(0);
}

static void a_grid_too_long(void) { launch(0x80000000, 1, 32, 0); }
static void a_grid_too_wide(void) { launch(1, 65536, 32, 0); }
static void no_grid(void) { launch(0, 1, 32, 0); }
static void a_block_too_large(void) { launch(1, 1, 512, 0); }
static void too_much_shared_memory(void) { launch(1, 1, 32, 101 << 10); }

static void far_too_much_shared_memory(void) {
    void *module, *kernel;
    cuModuleLoadData(&module, TEXT);
    cuModuleGetFunction(&kernel, module, "plain");
    cuFuncSetAttribute(kernel, 8, 228 << 10);
}

static void an_unknown_kernel(void) {
    void *module, *kernel;
    cuModuleLoadData(&module, TEXT);
    cuModuleGetFunction(&kernel, module, "pla");
}

static void freed_memory_in_an_argument(void) {
    uint64_t x = memory(64, THREAD_STREAM);
    cuMemFreeAsync(x, THREAD_STREAM);
    launch_on(THREAD_STREAM, 1, 1, 32, 0, x, 0);
}

static void freed_memory_in_a_struct(void) {
    uint64_t x = memory(64, THREAD_STREAM);
    cuMemFreeAsync(x, THREAD_STREAM);
    launch_on(THREAD_STREAM, 1, 1, 32, 0, 0, x + 8);
}

static void freed_memory_in_a_copy(void) {
    uint64_t x = memory(64, THREAD_STREAM), y = memory(64, THREAD_STREAM);
    cuMemFreeAsync(x, THREAD_STREAM);
    cuMemcpyDtoDAsync_v2(y, x, 64, THREAD_STREAM);
}

static void a_fill_too_long(void) { cuMemsetD8Async(memory(64, THREAD_STREAM), 0, 65, THREAD_STREAM); }
static void a_copy_from_nowhere(void) { memory(64, THREAD_STREAM); char x[8]; cuMemcpyDtoHAsync_v2(x, 4096, 8, THREAD_STREAM); }

static void memory_freed_twice(void) {
    uint64_t x = memory(64, THREAD_STREAM);
    cuMemFreeAsync(x, THREAD_STREAM);
    cuMemFreeAsync(x, THREAD_STREAM);
}

static void a_use_before_an_upload_is_there(void) {
    uint64_t x = memory(64, THREAD_STREAM);
    cuStreamWaitEvent(beside, recorded(THREAD_STREAM), 0);
    cuMemcpyHtoDAsync_v2(x, &x, 8, beside);
    launch_on(THREAD_STREAM, 1, 1, 32, 0, x, 0);
}

static void memory_of_a_stream_on_another(void) { launch_on(THREAD_STREAM, 1, 1, 32, 0, memory(64, beside), 0); }

static void memory_freed_while_it_is_used(void) {
    uint64_t x = memory(64, beside);
    cuStreamWaitEvent(THREAD_STREAM, recorded(beside), 0);
    launch_on(THREAD_STREAM, 1, 1, 32, 0, x, 0);
    cuMemFreeAsync(x, beside);
}

static void pinned_memory_rewritten(void) {
    void *stage;
    cuMemHostAlloc(&stage, 4096, 0);
    uint64_t x = memory(4096, THREAD_STREAM);
    cuMemcpyHtoDAsync_v2(x, stage, 4096, THREAD_STREAM);
    cuMemcpyHtoDAsync_v2(x, (char *)stage + 64, 64, THREAD_STREAM);
}

static void pinned_memory_freed(void) {
    void *stage;
    cuMemHostAlloc(&stage, 4096, 0);
    cuMemcpyHtoDAsync_v2(memory(4096, THREAD_STREAM), stage, 4096, THREAD_STREAM);
    cuMemFreeHost(stage);
}

static void memory_left(void) {
    memory(64, THREAD_STREAM);
    cuDevicePrimaryCtxRelease_v2(0);
}

static void more_memory_than_there_is(void) {
    memory(40ull << 30, THREAD_STREAM);
    memory(40ull << 30, THREAD_STREAM);
}

/* 8 x 8 x 8, the last matrix too short by one number. */
static void a_product_beside_its_memory(void) {
    void *handle;
    cublasCreate_v2(&handle);
    cublasSetStream_v2(handle, THREAD_STREAM);
    uint64_t a = memory(256, THREAD_STREAM), c = memory(252, THREAD_STREAM);
    float one = 1;
    cublasGemmStridedBatchedEx(handle, 0, 0, 8, 8, 8, &one, (void *)a, 0, 8, 0, (void *)a, 0, 8, 0, &one, (void *)c, 0,
                               8, 0, 1, 0, 0);
}

static void product_of_views(size_t offset, unsigned promised) {
    void *description, *preference, *layout;
    uint64_t algorithm[12];
    int found, turned = 1;
    cublasLtMatmulDescCreate(&description, 0, 0);
    cublasLtMatmulDescSetAttribute(description, 3, &turned, sizeof(turned));
    cublasLtMatmulPreferenceCreate(&preference);
    for (int attribute = 5; promised && attribute < 9; attribute++)
        cublasLtMatmulPreferenceSetAttribute(preference, attribute, &promised, sizeof(promised));
    cublasLtMatrixLayoutCreate(&layout, 14, 16, 16, 16);
    cublasLtMatmulAlgoGetHeuristic(NULL, description, layout, layout, layout, layout, preference, 1, algorithm, &found);
    uint64_t x = memory(4096, THREAD_STREAM);
    cublasLtMatmul(NULL, description, NULL, (void *)x, layout, (void *)(x + offset), layout, NULL, (void *)(x + 2048),
                   layout, (void *)(x + 2048), layout, algorithm, NULL, 0, THREAD_STREAM);
    cuMemFreeAsync(x, THREAD_STREAM);
}

static void less_alignment_than_promised(void) { product_of_views(32, 0); }
static void as_much_alignment_as_promised(void) { product_of_views(32, 32); }

static const struct {
    const char *name, *fault;
    void (*commit)(void);
} cases[] = {
#define CASE(name, fault) {#name, fault, name}
    CASE(nothing_wrong, NULL),
    CASE(as_much_alignment_as_promised, NULL),
    CASE(a_grid_too_long, "limit"),
    CASE(a_grid_too_wide, "limit"),
    CASE(no_grid, "limit"),
    CASE(a_block_too_large, "limit"),
    CASE(too_much_shared_memory, "limit"),
    CASE(far_too_much_shared_memory, "limit"),
    CASE(an_unknown_kernel, "module"),
    CASE(freed_memory_in_an_argument, "memory"),
    CASE(freed_memory_in_a_struct, "memory"),
    CASE(freed_memory_in_a_copy, "memory"),
    CASE(a_fill_too_long, "memory"),
    CASE(a_copy_from_nowhere, "memory"),
    CASE(memory_freed_twice, "memory"),
    CASE(a_use_before_an_upload_is_there, "order"),
    CASE(memory_of_a_stream_on_another, "order"),
    CASE(memory_freed_while_it_is_used, "order"),
    CASE(pinned_memory_rewritten, "order"),
    CASE(pinned_memory_freed, "order"),
    CASE(memory_left, "leak"),
    CASE(more_memory_than_there_is, "out of memory"),
    CASE(a_product_beside_its_memory, "memory"),
    CASE(less_alignment_than_promised, "alignment"),
};

/* Whether the report names a fault of this kind and none of another. */
static bool is_told(const char *path, const char *kind) {
    char line[8192], wanted[64];
    int told = 0, others = 0;
    snprintf(wanted, sizeof(wanted), "{\"fault\":\"%s\"", kind ? kind : "");
    FILE *report = fopen(path, "r");
    while (report && fgets(line, sizeof(line), report)) {
        if (kind && !strncmp(line, wanted, strlen(wanted))) told++;
        else if (!strncmp(line, "{\"fault\"", 8)) others++;
    }
    if (report) fclose(report);
    return report && others == 0 && (kind == NULL || told > 0);
}

static void commit(void (*fault)(void), const char *path) {
    setenv("RECORDING_DRIVER_REPORT", path, 1);
    if (!freopen("/dev/null", "w", stderr)) exit(2);
    void *context;
    cuDevicePrimaryCtxRetain(&context, 0);
    cuStreamCreate(&beside, 1);
    fault();
    exit(0);
}

int main(void) {
    int wrong = 0;
    char path[] = "/tmp/recording-XXXXXX";
    close(mkstemp(path));
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        int status;
        fflush(stdout); /* else the child prints it, too */
        pid_t child = fork();
        if (child == 0) commit(cases[i].commit, path);
        waitpid(child, &status, 0);
        if (status != 0 || !is_told(path, cases[i].fault)) {
            printf("%s: wanted %s\n", cases[i].name, cases[i].fault ? cases[i].fault : "no fault");
            wrong++;
        }
    }
    unlink(path);
    printf("%zu cases, %d wrong\n", sizeof(cases) / sizeof(*cases), wrong);
    return wrong > 0;
}
