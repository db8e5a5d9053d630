// The CUDA language on a CPU, for `g++ -std=c++17 -x c++`: common.cuh includes this where `__CUDACC__` is absent. See ../README.md.
#pragma once

#include "language.hpp"
#include "tensor.hpp"
#include "launch.hpp"
