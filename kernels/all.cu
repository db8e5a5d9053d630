// All kernels as one translation unit: nvcc makes a fatbin of one source only, and the simulator compiles the same list.
#include "common.cuh"

#include "cast.cu"
#include "columns.cu"
#include "decode.cu"
#include "encode_ampere.cu"
#include "encode_hopper.cu"
#include "finish.cu"
#include "reduce.cu"
#include "update.cu"
