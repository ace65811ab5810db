/* Flash attention 2, for Ampere, Ada and later: bf16, heads of 128, every query sees
 * every key.
 *
 * The kernels are those that the crate candle-flash-attn publishes (BSD-3-Clause,
 * Tri Dao and others), on top of CUTLASS; only this instance of them is compiled. */
#include "kernels.h"
#include "kernel_helpers.h"
#include "error.h"

#include "flash_call.h"

namespace {
thread_local int first_error;
} // namespace

/* The kernels' launcher passes over errors. */
#undef C10_CUDA_CHECK
#define C10_CUDA_CHECK(call)                                                             \
    do {                                                                                 \
        int error = (call);                                                              \
        if (!first_error) first_error = error;                                           \
    } while (0)
#include "flash_fwd_launch_template.h"

/* Rows of queries and of keys in a tile, warps: as the crate instantiates attention
 * for heads of 128 on the larger cards. */
using traits = Flash_fwd_kernel_traits<128, 128, 64, 4, false, false, cutlass::bfloat16_t>;

/* 0, or the error of CUDA. */
extern "C" int flash_attention_v2(const flash_call *call, void *stream) {
    auto parameters = flash_parameters<Flash_fwd_params>(*call);
    parameters.is_seqlens_k_cumulative = true;
    parameters.num_splits = 1;
    first_error = 0;
    run_flash_fwd<traits, false, false>(parameters, static_cast<cudaStream_t>(stream));
    return first_error;
}
