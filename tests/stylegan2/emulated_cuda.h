// As much of CUDA as csrc/cuda.cu needs, on the CPU: the kernels run with their grid, blocks, shared memory and
// barriers, one thread at a time. For tests on machines without a GPU.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(threads)

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaErrorLaunchFailure = 719 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1 };

namespace emulation {

struct Dim3 {
    unsigned x, y, z;
};

inline Dim3 thread_index, block_index, block_size, grid_size;
inline double* shared_memory;
inline cudaError_t last_error = cudaSuccess;

// Threads run in turn, each on a stack of its own; a jump leads from one to the next, since swapcontext asks the
// system each time.
struct Thread {
    ucontext_t context{};
    jmp_buf place{};
    std::vector<char> stack = std::vector<char>(1 << 17);
    bool started = false, finished = true;
};

inline ucontext_t first_scheduler;
inline jmp_buf scheduler;
inline Thread* running;
inline void (*body)(const void*);
inline const void* body_data;

inline void yield() {
    if (_setjmp(running->place) == 0) _longjmp(scheduler, 1);
}

inline void run_thread() {
    for (;;) {
        body(body_data);
        running->finished = true;
        yield();
    }
}

inline void resume(Thread& thread) {
    running = &thread;
    if (_setjmp(scheduler) != 0) return;
    if (thread.started) _longjmp(thread.place, 1);
    thread.started = true;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.data();
    thread.context.uc_stack.ss_size = thread.stack.size();
    thread.context.uc_link = &first_scheduler;
    makecontext(&thread.context, run_thread, 0);
    setcontext(&thread.context);
}

// Runs all threads up to their next barrier; those of a block must all come to it, or all finish.
inline void run_block(std::vector<Thread>& threads, unsigned count) {
    for (unsigned i = 0; i < count; ++i) threads[i].finished = false;
    for (unsigned finished = 0; finished == 0;) {
        for (unsigned i = 0; i < count; ++i) {
            thread_index = {i, 0, 0};
            resume(threads[i]);
            finished += threads[i].finished;
        }
        if (finished != 0 && finished != count) std::abort();
    }
}

template <class Body>
void launch(unsigned blocks, unsigned threads, size_t shared_bytes, cudaStream_t, const Body& kernel) {
    static std::vector<Thread> pool(1024);
    // Behind the shared memory: a mark that must survive. NaN before it, since nothing clears it on a GPU
    const size_t numbers = shared_bytes / sizeof(double) + 1;
    std::vector<double> shared(numbers + 1);
    body = [](const void* data) { (*static_cast<const Body*>(data))(); };
    body_data = &kernel;
    block_size = {threads, 1, 1};
    grid_size = {blocks, 1, 1};
    if (threads > 1024 || shared_bytes > 48 * 1024) last_error = cudaErrorLaunchFailure;
    for (unsigned block = 0; block < blocks && last_error == cudaSuccess; ++block) {
        std::memset(shared.data(), 0xff, numbers * sizeof(double));
        shared[numbers] = 12345;
        shared_memory = shared.data();
        block_index = {block, 0, 0};
        run_block(pool, threads);
        if (shared[numbers] != 12345) last_error = cudaErrorLaunchFailure;
    }
}

}  // namespace emulation

#define threadIdx emulation::thread_index
#define blockIdx emulation::block_index
#define blockDim emulation::block_size
#define gridDim emulation::grid_size

inline void __syncthreads() { emulation::yield(); }

inline cudaError_t cudaGetLastError() {
    const cudaError_t error = emulation::last_error;
    emulation::last_error = cudaSuccess;
    return error;
}
inline const char* cudaGetErrorString(cudaError_t) { return "error of the emulation"; }
// Of tests: whether copies fail, and how many blocks of memory are in use.
extern "C" {
__attribute__((visibility("default"))) inline int emulated_copies_fail = 0;
__attribute__((visibility("default"))) inline int emulated_blocks = 0;
}
inline cudaError_t cudaMallocAsync(void** memory, size_t bytes, cudaStream_t) {
    *memory = std::malloc(bytes);
    ++emulated_blocks;
    return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
    if (emulated_copies_fail) return cudaErrorLaunchFailure;
    std::memcpy(to, from, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaFreeAsync(void* memory, cudaStream_t) {
    std::free(memory);
    --emulated_blocks;
    return cudaSuccess;
}

// Types of 16 bits: float16 by the compiler, bfloat16 as the upper half of a float.
using __half = _Float16;
struct __nv_bfloat16 {
    uint16_t bits;
};
inline float __half2float(__half value) { return static_cast<float>(value); }
inline __half __float2half_rn(float value) { return static_cast<__half>(value); }
inline float __bfloat162float(__nv_bfloat16 value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
