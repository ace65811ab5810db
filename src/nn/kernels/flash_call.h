/* What both entry points of flash attention are told. */
#ifndef FLASH_CALL_H
#define FLASH_CALL_H

#include <cstdint>

/* (batch, tokens, heads, 128) each, bf16; the last dimension has no gaps. */
struct flash_tensor {
    void *first;
    /* Numbers between neighbours. */
    int64_t batch_stride, token_stride, head_stride;
};

struct flash_call {
    flash_tensor q, k, v, o;
    float *log_sums; /* (batch, heads, queries): written, of no use to us */
    int batch, heads, key_heads, queries, keys;
    float scale; /* of the scores */
};

/* The parameters as both versions of the kernels take them; they differ in a few
 * fields that only the entry points set. */
template <class Parameters>
Parameters flash_parameters(const flash_call &call) {
    Parameters to{};
    auto rounded = [](int tokens) { return (tokens + 127) / 128 * 128; };
    to.q_ptr = call.q.first, to.k_ptr = call.k.first, to.v_ptr = call.v.first;
    to.q_batch_stride = call.q.batch_stride, to.q_row_stride = call.q.token_stride;
    to.k_batch_stride = call.k.batch_stride, to.k_row_stride = call.k.token_stride;
    to.v_batch_stride = call.v.batch_stride, to.v_row_stride = call.v.token_stride;
    to.q_head_stride = call.q.head_stride, to.k_head_stride = call.k.head_stride;
    to.v_head_stride = call.v.head_stride;
    to.o_ptr = call.o.first, to.o_batch_stride = call.o.batch_stride;
    to.o_row_stride = call.o.token_stride, to.o_head_stride = call.o.head_stride;
    to.softmax_lse_ptr = call.log_sums;
    to.b = call.batch, to.h = call.heads, to.h_k = call.key_heads;
    to.h_h_k_ratio = call.heads / call.key_heads;
    to.seqlen_q = call.queries, to.seqlen_q_rounded = rounded(call.queries);
    to.seqlen_k = call.keys, to.seqlen_k_rounded = rounded(call.keys);
    to.d = to.d_rounded = 128;
    to.scale_softmax = call.scale;
    to.scale_softmax_log2 = call.scale * 1.4426950408889634f; /* exponentials are of 2 */
    to.scale_softmax_rp_dropout = call.scale;
    to.p_dropout = to.rp_dropout = 1.0f; /* the probability of keeping a number */
    to.p_dropout_in_uint8_t = 255;
    to.window_size_left = to.window_size_right = -1; /* none */
    to.is_bf16 = true;
    return to;
}

#endif
