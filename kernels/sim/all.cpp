// The simulator: all kernels, and small ones that it is tested with.
#include "sim/shim.hpp"

#include "all.cu"
#include "sim/faults.cu"
#include "sim/layouts.cu"
