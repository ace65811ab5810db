/* Flash attention 3, for Hopper: bf16, heads of 128, every query sees every key.
 *
 * The kernels are those that the crate candle-flash-attn-v3 publishes (BSD-3-Clause,
 * Tri Dao and others), on top of CUTLASS; only this instance of them is compiled. */
#include <cute/tensor.hpp>
#include <cutlass/cutlass.h>

#include <cstdio>
#include <cstdlib>

#include "flash_call.h"

namespace {
struct launch_failed {};
} // namespace

/* The kernels' launcher leaves the process when a call to CUDA fails; a server
 * answers that one request with an error instead. */
#define exit(status) throw launch_failed()
#include "flash_fwd_launch_template.h"
#undef exit

/* Rows of queries and of keys in a tile, warps, stages of the pipeline: as the
 * crate instantiates dense attention for heads of 128. */
using traits = Flash_fwd_kernel_traits<128, 128, 176, 12, 2, false, 1, cutlass::bfloat16_t, false>;
using lengths = flash::FixedSeqLenTraits;

/* 0, or the error of CUDA. */
extern "C" int flash_attention_v3(const flash_call *call, void *stream) {
    auto parameters = flash_parameters<Flash_fwd_params>(*call);
    parameters.b_k = call->batch;
    parameters.page_block_size = -1; /* no pages */
    try {
        run_flash_fwd<traits, false, false, lengths, lengths>(
            parameters, static_cast<cudaStream_t>(stream));
    } catch (const launch_failed &) {
        int error = cudaGetLastError();
        return error ? error : cudaErrorUnknown;
    }
    return cudaGetLastError();
}
