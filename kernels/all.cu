// All kernels as one translation unit: nvcc makes a fatbin of one source only, and the simulator compiles the same list.
#include "common.cuh"

#include "cast.cu"
#include "merge.cu"
#include "finish.cu"
#include "threshold.cu"
#include "batch.cu"
#include "decode.cu"
#include "columns.cu"
#include "reduce.cu"
#include "update.cu"
#include "dead.cu"
#include "record.cu"
