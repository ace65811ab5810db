/* Queries, keys and values of two streams of tokens -> the heads that attention
 * takes, the tokens of the first stream before those of the second.
 *
 * One warp for each head of each token. */
#include "platform.h"

typedef struct {
    const number *x;       /* (batch, tokens, heads * size), rows of `stride` numbers */
    const number *bias;    /* (heads * size), or null */
    const number *weight;  /* (size): of the normalisation; or null: as they are */
    const float *cos, *sin; /* (tokens, size / 2): of the turn; or null: unturned */
    long long stride;
    int tokens;
    float eps;
} stream;

typedef struct {
    stream first, second;
    number *y;
    long long batch_stride, head_stride, token_stride; /* of y, in numbers */
    long long rows;                                    /* batch * all tokens * heads */
    int heads, size;
} joint;

/* Adjacent numbers are turned together, so a lane moves at least two. */
#define STEP (PACK > 2 ? PACK : 2)

INSIDE void load_step(const number *from, float to[STEP]) {
    for (int i = 0; i < STEP; i += PACK) {
        pack numbers = load(from + i);
        for (int j = 0; j < PACK; ++j) to[i + j] = wide(numbers.at[j]);
    }
}

INSIDE void load_head(stream s, const number *x, int channel, int column, float to[STEP]) {
    load_step(x + channel, to);
    if (!s.bias) return;
    float bias[STEP];
    load_step(s.bias + column + channel, bias);
    for (int j = 0; j < STEP; ++j) to[j] = rounded(to[j] + bias[j]);
}

KERNEL(joint_heads, joint) {
    long long row = BLOCK * (THREADS / WARP) + THREAD / WARP;
    /* The warps of the last block that have nothing to do follow its last row. */
    int idle = row >= call.rows;
    if (idle) row = call.rows - 1;
    int lane = THREAD % WARP, tokens = call.first.tokens + call.second.tokens;
    int head = (int)(row % call.heads);
    int token = (int)(row / call.heads % tokens);
    long long entry = row / call.heads / tokens;
    int later = token >= call.first.tokens;
    stream s = later ? call.second : call.first;
    int own = later ? token - call.first.tokens : token;
    int column = head * call.size;
    const number *x = s.x + (entry * s.tokens + own) * s.stride + column;
    number *y = call.y + entry * call.batch_stride + head * call.head_stride +
                token * call.token_stride;

    float scale = 1.0f;
    if (s.weight) {
        float squares = 0.0f;
        for (int i = lane * STEP; i < call.size; i += WARP * STEP) {
            float numbers[STEP];
            load_head(s, x, i, column, numbers);
            for (int j = 0; j < STEP; ++j) squares += numbers[j] * numbers[j];
        }
        scale = sqrtf(warp_sum(squares) / call.size + s.eps);
    }
    if (idle) return;

    for (int i = lane * STEP; i < call.size; i += WARP * STEP) {
        float numbers[STEP];
        load_head(s, x, i, column, numbers);
        if (s.weight) {
            float weights[STEP];
            load_step(s.weight + i, weights);
            for (int j = 0; j < STEP; ++j)
                numbers[j] = rounded(rounded(numbers[j] / scale) * weights[j]);
        }
        if (s.cos) {
            for (int j = 0; j < STEP; j += 2) {
                long long angle = (long long)own * (call.size / 2) + (i + j) / 2;
                float cos = load_float(s.cos + angle), sin = load_float(s.sin + angle);
                float even = numbers[j];
                numbers[j] = even * cos - numbers[j + 1] * sin;
                numbers[j + 1] = even * sin + numbers[j + 1] * cos;
            }
        }
        for (int k = 0; k < STEP; k += PACK) {
            pack turned;
            for (int j = 0; j < PACK; ++j) turned.at[j] = narrow(numbers[k + j]);
            store(y + i + k, turned);
        }
    }
}
