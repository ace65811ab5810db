/* Every kernel in one number format and pack size: the unit that is compiled. */
#include "platform.h"

#include "activation.cu"
#include "fp8.cu"
#include "guidance.cu"
#include "heads.cu"
#include "modulation.cu"
#include "norms.cu"
#include "unfold.cu"
