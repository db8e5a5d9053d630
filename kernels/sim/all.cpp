// The simulator: all kernels, and those with planted faults that it must find.
#include "sim/shim.hpp"

#include "all.cu"
#include "sim/faults.cu"
