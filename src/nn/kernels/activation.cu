/* Activations in 32 bits, with the bias of the layer before. */
#include "platform.h"

typedef struct {
    const number *x;    /* (rows, width) */
    const number *bias; /* (width), or null */
    number *y;          /* (rows, width) */
    long long count;    /* rows * width */
    int width;
} biased;

INSIDE float gelu(float x) {
    /* 0.5 (1 + tanh u) = 1 / (1 + exp(-2 u)); sqrt(2 / pi) = 0.79788456 */
    float u = 0.79788456f * (x + 0.044715f * x * x * x);
    return x / (1.0f + expf(-2.0f * u));
}

INSIDE float silu(float x) { return x / (1.0f + expf(-x)); }

#define ACTIVATION(name, function)                                                       \
    KERNEL(name, biased) {                                                               \
        long long i = (BLOCK * THREADS + THREAD) * PACK;                                 \
        if (i >= call.count) return;                                                     \
        pack numbers = load(call.x + i), biases;                                         \
        if (call.bias) biases = load(call.bias + i % call.width);                        \
        for (int j = 0; j < PACK; ++j) {                                                 \
            float x = wide(numbers.at[j]);                                               \
            if (call.bias) x = rounded(x + wide(biases.at[j]));                          \
            numbers.at[j] = narrow(function(x));                                         \
        }                                                                                \
        store(call.y + i, numbers);                                                      \
    }

ACTIVATION(biased_gelu, gelu)
ACTIVATION(biased_silu, silu)

typedef struct {
    const number *gate, *x; /* (count) each */
    number *y;              /* (count) */
    long long count;
} gated;

/* y = silu(gate) * x, rounded in between. */
KERNEL(gated_silu, gated) {
    long long i = (BLOCK * THREADS + THREAD) * PACK;
    if (i >= call.count) return;
    pack gates = load(call.gate + i), numbers = load(call.x + i);
    for (int j = 0; j < PACK; ++j)
        numbers.at[j] = narrow(rounded(silu(wide(gates.at[j]))) * wide(numbers.at[j]));
    store(call.y + i, numbers);
}
