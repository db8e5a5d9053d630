// The few functions of libcuda and libcublas that driver.py calls, over the simulator (kernels/sim), so that the calls themselves can be
// tested without a GPU: argument order and types, tensor maps, the orientation of products. Not a model of the driver in anything else.

#include <cstring>

#include "sim/all.cpp"

namespace {

const int INVALID = 1, NOT_FOUND = 500, FAILED = 719;
std::string said = "invalid argument";

u32 size_of(char letter) { return letter == 'u' || letter == 'i' || letter == 'f' ? 4 : letter == 'm' ? 128 : 8; }
float half(u16 bits) { return to_f32(bf16{bits}); }

}  // namespace

extern "C" {

int cuInit(unsigned flags) { return flags ? INVALID : 0; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, 0; }
int cuDevicePrimaryCtxRetain(void** context, int) { return *context = &said, 0; }
int cuCtxSetCurrent(void* context) { return context == &said ? 0 : INVALID; }
int cuCtxSynchronize() { return 0; }
int cuStreamSynchronize(void* stream) { return stream ? INVALID : 0; }
int cuGetErrorString(int, const char** text) { return *text = said.c_str(), 0; }
int cuModuleLoad(void** module, const char* path) { return *module = &said, *path ? 0 : INVALID; }
int cuModuleGetFunction(void** function, void* module, const char* name) {
    const sim::Kernel* kernel = sim::find(name);
    *function = const_cast<sim::Kernel*>(kernel);
    return module != &said ? INVALID : kernel ? 0 : NOT_FOUND;
}
int cuFuncGetParamInfo(void* function, size_t index, size_t* offset, size_t* size) {
    const sim::Kernel* kernel = static_cast<sim::Kernel*>(function);
    if (index >= kernel->n_args) {
        return INVALID;
    }
    *offset = 0;
    *size = size_of(kernel->letters[index]);
    return 0;
}
int cuFuncSetAttribute(void*, int attribute, int value) { return attribute == 8 && value <= 227 * 1024 ? 0 : INVALID; }
int cuMemAlloc_v2(u64* at, size_t bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, bytes)) {
        return 2;
    }
    *at = reinterpret_cast<u64>(memory);
    return 0;
}
int cuMemcpyHtoD_v2(u64 to, const void* from, size_t bytes) { return memcpy(reinterpret_cast<void*>(to), from, bytes), 0; }
int cuMemcpyDtoH_v2(void* to, u64 from, size_t bytes) { return memcpy(to, reinterpret_cast<void*>(from), bytes), 0; }
int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz, unsigned shared, void* stream,
                   void** args, void** extra) {
    const sim::Kernel* kernel = static_cast<sim::Kernel*>(function);
    if (stream || extra) {
        return INVALID;
    }
    u32 grid[] = {x, y, z}, block[] = {bx, by, bz};
    if (lapidary_sim_launch(kernel->name, grid, block, shared, args, kernel->n_args, 0)) {
        said = lapidary_sim_error();
        return FAILED;
    }
    return 0;
}
int cuTensorMapEncodeTiled(u64* map, int type, u32 rank, void* address, const u64* dims, const u64* strides, const u32* box, const u32* ones,
                           int interleave, int swizzle, int promotion, int fill) {
    if (type != 9 || rank != 2 || interleave || swizzle != 3 || promotion < 0 || promotion > 3 || fill || ones[0] != 1 || ones[1] != 1 ||
        reinterpret_cast<u64>(map) % 64 || reinterpret_cast<u64>(address) % 16 || strides[0] % 16) {
        return INVALID;
    }
    const u64 words[16] = {reinterpret_cast<u64>(address), dims[0], dims[1], strides[0], box[0], box[1]};
    memcpy(map, words, sizeof words);
    return 0;
}

int cublasCreate_v2(void** handle) { return *handle = &said, 0; }
int cublasSetStream_v2(void* handle, void* stream) { return handle != &said || stream ? 7 : 0; }
int cublasSetWorkspace_v2(void* handle, void* at, size_t bytes) { return handle != &said || !at || !bytes ? 7 : 0; }
// Column-major c [m, n] = op(a) op(b), f32 sums.
int cublasGemmEx(void* handle, int op_a, int op_b, int m, int n, int k, const float* alpha, const void* a, int type_a, int lda, const void* b,
                 int type_b, int ldb, const float* beta, void* c, int type_c, int ldc, int compute, int algorithm) {
    if (handle != &said || *alpha != 1 || *beta != 0 || type_a != type_b || (type_a != 14 && type_a != 0) || type_c != 0 || compute != 68 ||
        algorithm != -1 || op_a != 1 || op_b != 0 || lda < k || ldb < k || ldc < m) {
        return 7;
    }
    auto at = [&](const void* p, size_t i) { return type_a == 14 ? half(static_cast<const u16*>(p)[i]) : static_cast<const float*>(p)[i]; };
    for (size_t j = 0; j < static_cast<size_t>(n); j++) {
        for (size_t i = 0; i < static_cast<size_t>(m); i++) {
            float sum = 0;
            for (size_t l = 0; l < static_cast<size_t>(k); l++) {
                sum += at(a, i * lda + l) * at(b, j * ldb + l);
            }
            static_cast<float*>(c)[j * ldc + i] = sum;
        }
    }
    return 0;
}

}  // extern "C"
