/* Root-mean-square normalisations: over the last dimension, and over channels. */
#include "platform.h"

typedef struct {
    const number *x, *weight; /* (rows, width), (width) */
    number *y;                /* (rows, width) */
    int width;
    float eps;
} row_norm;

/* One block for each row; the normalised value is rounded before it is weighted. */
KERNEL(rms_norm, row_norm) {
    const number *x = call.x + BLOCK * call.width;
    number *y = call.y + BLOCK * call.width;
    float squares = 0.0f;
    for (int i = THREAD * PACK; i < call.width; i += THREADS * PACK) {
        pack numbers = load(x + i);
        for (int j = 0; j < PACK; ++j) squares += wide(numbers.at[j]) * wide(numbers.at[j]);
    }
    float scale = sqrtf(block_sum(squares) / call.width + call.eps);
    for (int i = THREAD * PACK; i < call.width; i += THREADS * PACK) {
        pack numbers = load(x + i), weights = load(call.weight + i);
        for (int j = 0; j < PACK; ++j)
            numbers.at[j] =
                narrow(rounded(wide(numbers.at[j]) / scale) * wide(weights.at[j]));
        store(y + i, numbers);
    }
}

typedef struct {
    const number *x, *scale; /* (batch, channels, pixels), (channels) */
    number *y;               /* (batch, channels, pixels) */
    long long pixels, tiles; /* tiles of WARP * PACK pixels that one picture has */
    int channels, activated;
    float smallest;
} channel_norm;

/* x / max(length over the channels, smallest) * scale, then x * sigmoid(x) if
 * `activated`. One block for each tile of pixels: a lane keeps to its pixels, a
 * warp takes every n-th channel. Shared memory: PACK floats for each thread. */
KERNEL(rms_over_channels, channel_norm) {
    int lane = THREAD % WARP, warp = THREAD / WARP, warps = THREADS / WARP;
    long long pixel = (BLOCK % call.tiles * WARP + lane) * PACK;
    int outside = pixel >= call.pixels;
    long long first = BLOCK / call.tiles * call.channels * call.pixels + pixel;

    float squares[PACK];
    for (int j = 0; j < PACK; ++j) squares[j] = 0.0f;
    for (int channel = warp; channel < call.channels && !outside; channel += warps) {
        pack numbers = load(call.x + first + channel * call.pixels);
        for (int j = 0; j < PACK; ++j) squares[j] += wide(numbers.at[j]) * wide(numbers.at[j]);
    }
    for (int j = 0; j < PACK; ++j) shared[THREAD * PACK + j] = squares[j];
    BARRIER();
    if (outside) return;
    float length[PACK];
    for (int j = 0; j < PACK; ++j) {
        float sum = 0.0f;
        for (int other = 0; other < warps; ++other) sum += shared[(other * WARP + lane) * PACK + j];
        length[j] = sqrtf(sum);
        if (length[j] < call.smallest) length[j] = call.smallest; /* fmaxf drops NaN */
    }

    for (int channel = warp; channel < call.channels; channel += warps) {
        pack numbers = load(call.x + first + channel * call.pixels);
        float scale = load_one(call.scale + channel);
        for (int j = 0; j < PACK; ++j) {
            float normalised = rounded(wide(numbers.at[j]) / length[j]);
            float x = rounded(normalised * scale);
            numbers.at[j] = narrow(call.activated ? silu(x) : x);
        }
        store(call.y + first + channel * call.pixels, numbers);
    }
}

typedef struct {
    const number *x; /* (rows, width) */
    number *y;       /* likewise; may be x */
    int width;
} row_softmax;

/* Softmax over the last dimension, all in 32 bits. One block for each row. A NaN is no
 * maximum, but its exponential is NaN, and so is the row; a row of -INFINITY alone
 * becomes zeros. */
KERNEL(softmax, row_softmax) {
    const number *x = call.x + BLOCK * call.width;
    number *y = call.y + BLOCK * call.width;
    float largest = -INFINITY;
    for (int i = THREAD * PACK; i < call.width; i += THREADS * PACK) {
        pack numbers = load(x + i);
        for (int j = 0; j < PACK; ++j) largest = fmaxf(largest, wide(numbers.at[j]));
    }
    largest = block_maximum(largest);
    if (largest == -INFINITY) largest = 0.0f;
    float sum = 0.0f;
    for (int i = THREAD * PACK; i < call.width; i += THREADS * PACK) {
        pack numbers = load(x + i);
        for (int j = 0; j < PACK; ++j) sum += expf(wide(numbers.at[j]) - largest);
    }
    sum = block_sum(sum);
    float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
    for (int i = THREAD * PACK; i < call.width; i += THREADS * PACK) {
        pack numbers = load(x + i);
        for (int j = 0; j < PACK; ++j)
            numbers.at[j] = narrow(expf(wide(numbers.at[j]) - largest) * inverse);
        store(y + i, numbers);
    }
}
