/* What the noise level does to tokens: normalise and modulate; gate and add.
 *
 * One block for each token. The factors of a token depend on its batch entry and
 * on whether it lies before `switch_token`. */
#include "platform.h"

typedef struct {
    const number *x; /* (batch, tokens, width) */
    number *y;       /* likewise */
    vectors scale, shift;             /* of the tokens before `switch_token` */
    vectors late_scale, late_shift;   /* of the others */
    int tokens, width, switch_token;
    float eps;
} modulated_norm;

/* y = norm(x) * (1 + scale) + shift, rounded after every operation. */
KERNEL(modulated_layer_norm, modulated_norm) {
    long long entry = BLOCK / call.tokens;
    int late = (int)(BLOCK % call.tokens) >= call.switch_token;
    const number *scale = vector_of(late ? call.late_scale : call.scale, entry);
    const number *shift = vector_of(late ? call.late_shift : call.shift, entry);
    const number *x = call.x + BLOCK * call.width;
    number *y = call.y + BLOCK * call.width;

    float sum = 0.0f;
    for (int i = THREAD * PACK; i < call.width; i += THREADS * PACK) {
        pack numbers = load(x + i);
        for (int j = 0; j < PACK; ++j) sum += wide(numbers.at[j]);
    }
    float mean = block_sum(sum) / call.width;

    float squares = 0.0f;
    for (int i = THREAD * PACK; i < call.width; i += THREADS * PACK) {
        pack numbers = load(x + i);
        for (int j = 0; j < PACK; ++j) {
            float deviation = wide(numbers.at[j]) - mean;
            squares += deviation * deviation;
        }
    }
    float inverse = 1.0f / sqrtf(block_sum(squares) / call.width + call.eps);

    for (int i = THREAD * PACK; i < call.width; i += THREADS * PACK) {
        pack numbers = load(x + i), scales = load(scale + i), shifts = load(shift + i);
        for (int j = 0; j < PACK; ++j) {
            float normalised = rounded((wide(numbers.at[j]) - mean) * inverse);
            float scaled = rounded(normalised * rounded(wide(scales.at[j]) + 1.0f));
            numbers.at[j] = narrow(scaled + wide(shifts.at[j]));
        }
        store(y + i, numbers);
    }
}

typedef struct {
    const number *x, *update; /* (batch, tokens, width) */
    number *y;                /* likewise */
    const number *bias;       /* (width), added to the update first; or null */
    vectors gate, late_gate;
    int tokens, width, switch_token;
} gated_sum;

/* y = x + gate * (update + bias), rounded after every operation. */
KERNEL(gated_add, gated_sum) {
    long long entry = BLOCK / call.tokens;
    int late = (int)(BLOCK % call.tokens) >= call.switch_token;
    const number *gate = vector_of(late ? call.late_gate : call.gate, entry);
    const number *x = call.x + BLOCK * call.width, *update = call.update + BLOCK * call.width;
    number *y = call.y + BLOCK * call.width;
    for (int i = THREAD * PACK; i < call.width; i += THREADS * PACK) {
        pack numbers = load(x + i), updates = load(update + i), gates = load(gate + i);
        pack biases;
        if (call.bias) biases = load(call.bias + i);
        for (int j = 0; j < PACK; ++j) {
            float change = wide(updates.at[j]);
            if (call.bias) change = rounded(change + wide(biases.at[j]));
            change = rounded(wide(gates.at[j]) * change);
            numbers.at[j] = narrow(wide(numbers.at[j]) + change);
        }
        store(y + i, numbers);
    }
}
