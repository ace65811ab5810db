/* What the card says of itself, and contexts. */
#include "recorder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char context;
static int holders; /* of the context: it ends with the last */
static _Thread_local void *current;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void enter(void) { pthread_mutex_lock(&lock); }

void leave(void *unused) {
    (void)unused;
    pthread_mutex_unlock(&lock);
}

/* CUdevice_attribute → what an H100 with 80 GB answers. */
static const struct {
    int attribute, value;
} attributes[] = {
    {1, 1024},      /* threads of a block */
    {2, 1024},      /* along x */
    {3, 1024},
    {4, 64},
    {5, 0x7fffffff}, /* blocks along x */
    {6, 65535},
    {7, 65535},
    {8, 48 << 10},   /* shared memory of a block */
    {9, 64 << 10},   /* constant memory */
    {10, 32},        /* threads of a warp */
    {12, 65536},     /* registers of a block */
    {13, 1980000},   /* kHz */
    {14, 512},       /* alignment of textures */
    {16, 132},       /* multiprocessors */
    {31, 1},         /* kernels at a time */
    {36, 2619000},   /* kHz of the memory */
    {37, 5120},      /* bits of its bus */
    {38, 50 << 20},  /* second cache */
    {39, 2048},      /* threads of a multiprocessor */
    {40, 3},         /* copy engines */
    {41, 1},         /* unified addresses */
    {78, 1},         /* stream priorities */
    {81, 228 << 10}, /* shared memory of a multiprocessor */
    {82, 65536},
    {83, 1},         /* managed memory */
    {97, 227 << 10}, /* shared memory of a block, if asked for */
    {115, 1},        /* memory pools */
};

API Result cuInit(unsigned flags) {
    (void)flags;
    return OK;
}

API Result cuDriverGetVersion(int *version) {
    *version = 13000;
    return OK;
}

API Result cuDeviceGetCount(int *count) {
    *count = 1;
    return OK;
}

API Result cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? OK : 101;
}

API Result cuDeviceGetName(char *name, int length, int device) {
    (void)device;
    snprintf(name, (size_t)length, "recording driver");
    return OK;
}

API Result cuDeviceGetUuid_v2(char uuid[16], int device) {
    (void)device;
    memset(uuid, 1, 16);
    return OK;
}

API Result cuDeviceGetUuid(char uuid[16], int device) { return cuDeviceGetUuid_v2(uuid, device); }

API Result cuDeviceTotalMem_v2(size_t *bytes, int device) {
    (void)device;
    *bytes = setting("RECORDING_DRIVER_MIB", 81559) << 20;
    return OK;
}

API Result cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    *value = 0;
    if (attribute == 75 || attribute == 76) {
        uint64_t capability = setting("RECORDING_DRIVER_CAPABILITY", 90);
        *value = (int)(attribute == 75 ? capability / 10 : capability % 10);
    }
    for (size_t i = 0; i < sizeof(attributes) / sizeof(*attributes); i++)
        if (attributes[i].attribute == attribute) *value = attributes[i].value;
    return OK;
}

API Result cuDevicePrimaryCtxRetain(void **of, int device) {
    (void)device;
    LOCKED;
    holders++;
    *of = &context;
    return OK;
}

API Result cuDevicePrimaryCtxRelease_v2(int device) {
    (void)device;
    LOCKED;
    if (--holders > 0) return OK;
    end_section("the context's end");
    report_leaks();
    return OK;
}

API Result cuCtxGetCurrent(void **of) {
    *of = current;
    return OK;
}

API Result cuCtxSetCurrent(void *of) {
    current = of;
    return OK;
}

API Result cuCtxGetDevice(int *device) {
    *device = 0;
    return current ? OK : NOT_INITIALISED;
}

API Result cuCtxSetFlags(unsigned flags) {
    (void)flags;
    return OK;
}

API Result cuCtxSetLimit(int limit, size_t value) {
    (void)limit;
    (void)value;
    return OK;
}

API Result cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return OK;
}

static const char *name_of(Result error) {
    switch (error) {
    case OK: return "CUDA_SUCCESS";
    case INVALID_VALUE: return "CUDA_ERROR_INVALID_VALUE";
    case OUT_OF_MEMORY: return "CUDA_ERROR_OUT_OF_MEMORY";
    case 100: return "CUDA_ERROR_NO_DEVICE";
    case NOT_FOUND: return "CUDA_ERROR_NOT_FOUND";
    default: return "CUDA_ERROR_UNKNOWN";
    }
}

API Result cuGetErrorName(Result error, const char **name) {
    *name = name_of(error);
    return OK;
}

API Result cuGetErrorString(Result error, const char **text) { return cuGetErrorName(error, text); }
