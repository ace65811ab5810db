/* Two predictions -> the guided flow -> the next latents. One warp for each token. */
#include "platform.h"

typedef struct {
    const number *conditional;   /* (tokens, width) */
    const number *unconditional; /* likewise; or null: no guidance */
    const number *latents;       /* likewise; null if `next` is */
    number *flow;                /* likewise, or null */
    number *next;                /* likewise, or null */
    long long tokens;
    int width, keep_length;
    float scale, sigma_change;
} guided;

/* unconditional + scale * (conditional - unconditional), rounded after each. */
INSIDE float combined(guided call, long long i) {
    float conditional = load_one(call.conditional + i);
    if (!call.unconditional) return conditional;
    float unconditional = load_one(call.unconditional + i);
    float difference = rounded(conditional - unconditional);
    return rounded(unconditional + rounded(difference * call.scale));
}

KERNEL(guided_step, guided) {
    long long token = BLOCK * (THREADS / WARP) + THREAD / WARP;
    int idle = token >= call.tokens;
    if (idle) token = call.tokens - 1;
    int lane = THREAD % WARP;
    long long first = token * call.width;

    float ratio = 1.0f;
    if (call.unconditional && call.keep_length) {
        float wanted = 0.0f, actual = 0.0f;
        for (int i = lane; i < call.width; i += WARP) {
            float conditional = load_one(call.conditional + first + i);
            float flow = combined(call, first + i);
            wanted += conditional * conditional;
            actual += flow * flow;
        }
        wanted = rounded(sqrtf(warp_sum(wanted)));
        actual = rounded(sqrtf(warp_sum(actual)));
        ratio = rounded(wanted / actual);
    }
    if (idle) return;

    for (int i = lane; i < call.width; i += WARP) {
        float flow = combined(call, first + i);
        if (call.unconditional && call.keep_length) flow = rounded(flow * ratio);
        if (call.flow) store_one(call.flow + first + i, flow);
        if (call.next) {
            float change = rounded(flow * call.sigma_change);
            store_one(call.next + first + i, load_one(call.latents + first + i) + change);
        }
    }
}
