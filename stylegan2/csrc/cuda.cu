// The compiled operations on CUDA: the shared kernels, launched on a grid.
//
//     nvcc -std=c++17 -O3 -gencode arch=compute_80,code=sm_80 … -Xcompiler -fPIC,-fvisibility=hidden -shared cuda.cu
#include <cuda_runtime.h>

#include <algorithm>
#include <limits>
#include <new>
#include <string>

#include "bias_act.h"
#include "checks.h"
#include "interface.h"
#include "upfirdn2d.h"
#include "upfirdn2d_plan.h"

namespace sg2 {
namespace {

constexpr int64_t kThreads = 256;  // of a block
constexpr int64_t kMostBlocks = 1 << 20;

// What a launch left behind.
int launch_result() {
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? kSuccess : kCudaError + static_cast<int>(error);
}

bool fits_32_bits(int64_t number) { return number < std::numeric_limits<int32_t>::max() / 2; }

// ---------------------------------------------------------------------------------------------------------
// Bias and activation
// ---------------------------------------------------------------------------------------------------------

template <class T, class Index>
struct BiasActArrays {
    Index size, bias_size, bias_step;
    const T *first, *second, *bias, *reference;
    T* out;
};

template <int ACTIVATION, int ORDER, class T, class A, class Index>
__device__ void bias_act_all(const BiasActArrays<T, Index>& a, const BiasActScalars<A>& scalars) {
    const Index stride = static_cast<Index>(gridDim.x) * blockDim.x;
    for (Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; i < a.size; i += stride) {
        const A second = ORDER == 2 ? widen(a.second[i]) : A(0);
        const A reference = ORDER > 0 ? widen(a.reference[i]) : A(0);
        const A bias = ORDER == 0 && a.bias_size ? widen(a.bias[i / a.bias_step % a.bias_size]) : A(0);
        narrow(bias_act_element<ACTIVATION, ORDER>(widen(a.first[i]), second, bias, reference, scalars), a.out[i]);
    }
}

// The branch is the same for all threads, and memory is what they wait for: no kernel for each activation.
template <int ORDER, class T, class A, class Index>
__global__ void bias_act_kernel(BiasActArrays<T, Index> a, BiasActScalars<A> scalars, int activation) {
    switch (activation) {
        case SG2_LINEAR: return bias_act_all<SG2_LINEAR, ORDER>(a, scalars);
        case SG2_RELU: return bias_act_all<SG2_RELU, ORDER>(a, scalars);
        case SG2_LRELU: return bias_act_all<SG2_LRELU, ORDER>(a, scalars);
        case SG2_TANH: return bias_act_all<SG2_TANH, ORDER>(a, scalars);
        case SG2_SIGMOID: return bias_act_all<SG2_SIGMOID, ORDER>(a, scalars);
        case SG2_ELU: return bias_act_all<SG2_ELU, ORDER>(a, scalars);
        case SG2_SELU: return bias_act_all<SG2_SELU, ORDER>(a, scalars);
        case SG2_SOFTPLUS: return bias_act_all<SG2_SOFTPLUS, ORDER>(a, scalars);
        case SG2_SWISH: return bias_act_all<SG2_SWISH, ORDER>(a, scalars);
    }
}

template <class T, class Index>
int launch_bias_act(const Sg2BiasAct& args, const void* first, const void* second, const void* bias,
                    const void* reference, void* out, cudaStream_t stream) {
    using A = typename Accumulator<T>::Type;
    const BiasActArrays<T, Index> arrays = {
        static_cast<Index>(args.size),    static_cast<Index>(args.bias_size), static_cast<Index>(args.bias_step),
        static_cast<const T*>(first),     static_cast<const T*>(second),      static_cast<const T*>(bias),
        static_cast<const T*>(reference), static_cast<T*>(out),
    };
    const BiasActScalars<A> scalars = bias_act_scalars<T, A>(args);
    const unsigned blocks = static_cast<unsigned>(std::min((args.size + kThreads - 1) / kThreads, kMostBlocks));
    if (args.order == 0) bias_act_kernel<0><<<blocks, kThreads, 0, stream>>>(arrays, scalars, args.activation);
    if (args.order == 1) bias_act_kernel<1><<<blocks, kThreads, 0, stream>>>(arrays, scalars, args.activation);
    if (args.order == 2) bias_act_kernel<2><<<blocks, kThreads, 0, stream>>>(arrays, scalars, args.activation);
    return launch_result();
}

template <class T>
int bias_act(const Sg2BiasAct& args, const void* first, const void* second, const void* bias,
             const void* reference, void* out, cudaStream_t stream) {
    // Divisions of 32-bit numbers without sign are the fastest
    const bool small = fits_32_bits(args.size) && fits_32_bits(args.bias_size) && fits_32_bits(args.bias_step);
    const auto launch = small ? launch_bias_act<T, uint32_t> : launch_bias_act<T, uint64_t>;
    return launch(args, first, second, bias, reference, out, stream);
}

// ---------------------------------------------------------------------------------------------------------
// Up-sampling, FIR, down-sampling
// ---------------------------------------------------------------------------------------------------------

constexpr int64_t kLine = 1024;           // numbers in a line, in shared memory
constexpr int64_t kShared = 40 * 1024;    // bytes of it for a block
constexpr int64_t kLanes = 32;            // channels side by side in it
constexpr int64_t kWeights = 128;         // as many travel with the launch; more take a copy

// The threads of a block that work on one line.
struct Threads {
    static constexpr bool kSeveralRows = true;
    int rank, size;
    bool active;  // else it only waits with the others

    template <bool PLANAR, class Index, class Run>
    __device__ __forceinline__ void each(Index pixels, int lanes, const Run& run) const {
        if (!active) return;
        const Index all = pixels * static_cast<Index>(lanes);
        for (Index i = static_cast<Index>(rank); i < all; i += static_cast<Index>(size)) {
            if constexpr (PLANAR) {
                run(i, 0);
            } else {
                run(i / static_cast<Index>(lanes), static_cast<int>(i % static_cast<Index>(lanes)));
            }
        }
    }
    __device__ __forceinline__ void sync() const { __syncthreads(); }
};

template <bool PLANAR, class C>
struct Passes {
    template <class T, class A, class Index>
    __device__ __forceinline__ void fill(const Threads& team, const Fir<A, Index>& fir, const T* x,
                                         const Start<Index>& row, int32_t term, const Segment<Index>& s, int lanes,
                                         A* line) const {
        fill_line<PLANAR, false>(team, fir, x, row, term, s, lanes, line);
    }
    template <class Out, class A, class Index>
    __device__ __forceinline__ void sum(const Threads& team, const Fir<A, Index>& fir, const A* line, int32_t term,
                                        const Segment<Index>& s, int lanes, Out* to, Index pixel_stride,
                                        Index lane_stride) const {
        sum_pixels<PLANAR, false, false, C::UP, C::DOWN, C::COUNT>(team, fir, line, term, s, lanes, to, pixel_stride,
                                                                   lane_stride);
    }
    template <class A, class Index>
    __device__ __forceinline__ void add(const Threads& team, const Fir<A, Index>& fir, const A* line, int32_t term,
                                        const Segment<Index>& s, int lanes, A* to, Index pixel_stride,
                                        Index lane_stride) const {
        sum_pixels<PLANAR, false, true, C::UP, C::DOWN, C::COUNT>(team, fir, line, term, s, lanes, to, pixel_stride,
                                                                  lane_stride);
    }
    template <class T, class A, class Index>
    __device__ __forceinline__ void store(const Threads& team, const Fir<A, Index>& fir, const A* sums,
                                          Index outputs, int lanes, T* to) const {
        store_line<PLANAR, false>(team, fir, sums, outputs, lanes, to);
    }
};

// How the images are cut into pieces: a segment of a row of a block of channels.
struct Layout {
    bool planar;
    int32_t lanes;
    int64_t blocks;            // of channels
    int64_t segment, segments;  // outputs in a segment; segments in a row
    int64_t line, sums;        // numbers that a piece needs
    int64_t weights_x, weights_y;
    int32_t per_line, lines;   // threads on a piece; pieces in a block of threads
    int64_t pieces;

    template <class A>
    Layout(const Sg2Upfirdn2d& a, const Plan<A>& plan) {
        planar = a.channels == 1 || (a.in_stride[1] != 1 && a.out_stride[1] != 1) || a.in_stride[3] == 1 ||
                 a.out_stride[3] == 1;
        lanes = planar ? 1 : static_cast<int32_t>(std::min(a.channels, kLanes));
        blocks = (a.channels + lanes - 1) / lanes;
        const int64_t widest = std::max<int64_t>(1, kLine / lanes * a.up_x / std::max(a.up_x, a.down_x) / 2);
        segment = std::min((widest + a.up_x - 1) / a.up_x * a.up_x, a.out_width);
        segments = (a.out_width + segment - 1) / segment;
        const Segment<int64_t> first(plan.fir.x, 0, segment);
        line = (first.stop - first.first + 1) * lanes;
        sums = plan.fir.terms > 1 ? segment * lanes : 0;
        weights_x = static_cast<int64_t>(plan.weights_x.size());
        weights_y = static_cast<int64_t>(plan.weights_y.size());
        per_line = 8;
        while (per_line < kThreads && per_line < segment * lanes / 2) per_line *= 2;
        const int64_t room = (kShared / static_cast<int64_t>(sizeof(A)) - weights_x - weights_y) / (line + sums);
        lines = static_cast<int32_t>(std::max<int64_t>(1, std::min(kThreads / per_line, room)));
        pieces = a.batch * blocks * a.out_height * segments;
    }
    int64_t shared_numbers() const { return weights_x + weights_y + lines * (line + sums); }
};

template <class A>
struct Weights {
    A values[kWeights];
    const A* more;  // instead, in memory of the device
};

template <class T, class Index>
struct Images {
    const T* x;
    T* y;
    Index image_in_stride, image_out_stride;
    Index channels;
};

template <bool PLANAR, class C, class T, class A, class Index>
__global__ void __launch_bounds__(kThreads)
    upfirdn2d_kernel(const Images<T, Index> images, Fir<A, Index> fir, const Layout layout,
                     const __grid_constant__ Weights<A> weights) {
    extern __shared__ double shared_memory[];
    A* const shared = reinterpret_cast<A*>(shared_memory);
    const int weights_x = static_cast<int>(layout.weights_x);
    const int all_weights = weights_x + static_cast<int>(layout.weights_y);
    const int thread = threadIdx.x;
    for (int i = thread; i < all_weights; i += blockDim.x) {
        shared[i] = weights.more ? weights.more[i] : weights.values[i];
    }
    __syncthreads();
    fir.weights_x = shared;
    fir.weights_y = shared + weights_x;

    const int own = thread / layout.per_line;
    A* const line = shared + all_weights + own * (layout.line + layout.sums);
    const Index segments = static_cast<Index>(layout.segments), segment = static_cast<Index>(layout.segment);
    const Index blocks = static_cast<Index>(layout.blocks);
    for (int64_t base = static_cast<int64_t>(blockIdx.x) * layout.lines; base < layout.pieces;
         base += static_cast<int64_t>(gridDim.x) * layout.lines) {
        const Threads team = {thread % layout.per_line, layout.per_line, base + own < layout.pieces};
        const Index piece = static_cast<Index>(team.active ? base + own : base);
        const Index row = piece / segments;
        const Index plane = row / fir.y.out, my = row % fir.y.out;
        const Index image = plane / blocks, channel = plane % blocks * layout.lanes;
        const Index rest = images.channels - channel;
        const int lanes = PLANAR ? 1 : static_cast<int>(rest < layout.lanes ? rest : layout.lanes);
        const Index begin = piece % segments * segment;
        const Segment<Index> s(fir.x, begin, begin + segment < fir.x.out ? begin + segment : fir.x.out);
        const T* const x = images.x + (image * images.image_in_stride + channel * fir.channel_in_stride);
        T* const y = images.y + (image * images.image_out_stride + channel * fir.channel_out_stride +
                                 my * fir.y.out_stride);
        upfirdn2d_line(team, Passes<PLANAR, C>(), fir, x, y, Start<Index>(fir.y, my), s, lanes, fir.terms == 1, line,
                       line + layout.line);
    }
}

template <class Index>
Axis<Index> as(const Axis<int64_t>& a) {
    return {static_cast<Index>(a.in),         static_cast<Index>(a.out), static_cast<Index>(a.in_stride),
            static_cast<Index>(a.out_stride), a.up, a.down, a.pad, a.count};
}

template <bool PLANAR, class C, class Index, class T, class A>
int launch(const Sg2Upfirdn2d& a, const Plan<A>& plan, const Layout& layout, const Weights<A>& weights, const T* x,
           T* y, cudaStream_t stream) {
    const Images<T, Index> images = {x, y, static_cast<Index>(a.in_stride[0]), static_cast<Index>(a.out_stride[0]),
                                     static_cast<Index>(a.channels)};
    const Fir<A, Index> fir = {as<Index>(plan.fir.x),
                               as<Index>(plan.fir.y),
                               static_cast<Index>(plan.fir.channel_in_stride),
                               static_cast<Index>(plan.fir.channel_out_stride),
                               plan.fir.terms,
                               nullptr,
                               nullptr};
    const auto blocks = static_cast<unsigned>(std::min((layout.pieces + layout.lines - 1) / layout.lines, kMostBlocks));
    const auto threads = static_cast<unsigned>(layout.lines * layout.per_line);
    const size_t bytes = static_cast<size_t>(layout.shared_numbers()) * sizeof(A);
    upfirdn2d_kernel<PLANAR, C, T, A, Index><<<blocks, threads, bytes, stream>>>(images, fir, layout, weights);
    return launch_result();
}

// The furthest that an address lies from its array's start.
int64_t furthest(const int64_t* stride, int64_t n, int64_t c, int64_t y, int64_t x) {
    return std::abs(stride[0]) * n + std::abs(stride[1]) * c + std::abs(stride[2]) * y + std::abs(stride[3]) * x;
}

template <class T, class A>
int launch_fitting(const Sg2Upfirdn2d& a, const Plan<A>& plan, const Layout& layout, const Weights<A>& weights,
                   const T* x, T* y, cudaStream_t stream) {
    const bool small = fits_32_bits(furthest(a.in_stride, a.batch, a.channels, a.in_height, a.in_width)) &&
                       fits_32_bits(furthest(a.out_stride, a.batch, a.channels, a.out_height, a.out_width)) &&
                       fits_32_bits(a.out_width * a.down_x + std::abs(int64_t(a.pad_x))) &&
                       fits_32_bits(a.out_height * a.down_y + std::abs(int64_t(a.pad_y))) &&
                       fits_32_bits(a.in_width * a.up_x) && fits_32_bits(a.in_height * a.up_y) &&
                       fits_32_bits(layout.pieces);
    const Axis<int64_t>& axis = plan.fir.x;
    if (!small && layout.planar) return launch<true, Case<0, 0, 0>, int64_t>(a, plan, layout, weights, x, y, stream);
    if (!small) return launch<false, Case<0, 0, 0>, int64_t>(a, plan, layout, weights, x, y, stream);
    if (!layout.planar) {
        if (axis.count == 2) return launch<false, Case<0, 0, 2>, int32_t>(a, plan, layout, weights, x, y, stream);
        if (axis.count == 4) return launch<false, Case<0, 0, 4>, int32_t>(a, plan, layout, weights, x, y, stream);
        return launch<false, Case<0, 0, 0>, int32_t>(a, plan, layout, weights, x, y, stream);
    }
    return with_case(axis.up, axis.down, axis.count, [&](auto c) {
        return launch<true, decltype(c), int32_t>(a, plan, layout, weights, x, y, stream);
    });
}

template <class T>
int upfirdn2d(const Sg2Upfirdn2d& args, const double* taps, const void* x, void* y, cudaStream_t stream) {
    using A = typename Accumulator<T>::Type;
    const Plan<A> plan(args, taps);
    const Layout layout(args, plan);
    if (layout.shared_numbers() * static_cast<int64_t>(sizeof(A)) > 48 * 1024) return kLargeFilter;
    std::vector<A> all(plan.weights_x);
    all.insert(all.end(), plan.weights_y.begin(), plan.weights_y.end());
    Weights<A> weights = {};
    void* copy = nullptr;
    if (static_cast<int64_t>(all.size()) <= kWeights) {
        std::copy(all.begin(), all.end(), weights.values);
    } else {
        // Ordered with the kernel; memory of `all` has been read when the call returns
        cudaError_t error = cudaMallocAsync(&copy, all.size() * sizeof(A), stream);
        if (error == cudaSuccess) {
            error = cudaMemcpyAsync(copy, all.data(), all.size() * sizeof(A), cudaMemcpyHostToDevice, stream);
        }
        if (error != cudaSuccess) {
            if (copy) cudaFreeAsync(copy, stream);
            return kCudaError + static_cast<int>(error);
        }
        weights.more = static_cast<const A*>(copy);
    }
    const int result =
        launch_fitting(args, plan, layout, weights, static_cast<const T*>(x), static_cast<T*>(y), stream);
    if (copy) cudaFreeAsync(copy, stream);
    return result;
}

// "cuda sm_80,sm_90"
std::string architectures() {
    std::string names = "cuda ";
    for (const int number : {__CUDA_ARCH_LIST__}) {
        names += (names.back() == ' ' ? "sm_" : ",sm_") + std::to_string(number / 10);
    }
    return names;
}

}  // namespace
}  // namespace sg2

extern "C" {

int sg2_bias_act(const Sg2BiasAct* args, const void* first, const void* second, void* bias, const void* reference,
                 void* out, void* stream) {
    using namespace sg2;
    const int error = check(args, first, second, bias, reference, out);
    if (error || args->size == 0) return error;
    if (args->order > 0 && args->bias_size > 0) return kNoSums;
    const auto on = static_cast<cudaStream_t>(stream);
    switch (args->type) {
        case SG2_FLOAT32: return bias_act<float>(*args, first, second, bias, reference, out, on);
        case SG2_FLOAT64: return bias_act<double>(*args, first, second, bias, reference, out, on);
        case SG2_FLOAT16: return bias_act<Half>(*args, first, second, bias, reference, out, on);
        default: return bias_act<BFloat16>(*args, first, second, bias, reference, out, on);
    }
}

int sg2_upfirdn2d(const Sg2Upfirdn2d* args, const double* taps, const void* x, void* y, void* stream) {
    using namespace sg2;
    const int error = check(args, taps, x, y);
    if (error || is_empty(*args)) return error;
    const auto on = static_cast<cudaStream_t>(stream);
    try {
        switch (args->type) {
            case SG2_FLOAT32: return upfirdn2d<float>(*args, taps, x, y, on);
            case SG2_FLOAT64: return upfirdn2d<double>(*args, taps, x, y, on);
            case SG2_FLOAT16: return upfirdn2d<Half>(*args, taps, x, y, on);
            default: return upfirdn2d<BFloat16>(*args, taps, x, y, on);
        }
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
}

int sg2_interface_version(void) { return SG2_INTERFACE_VERSION; }

const char* sg2_error_message(int code) {
    if (code >= sg2::kCudaError) return cudaGetErrorString(static_cast<cudaError_t>(code - sg2::kCudaError));
    return sg2::error_text(code);
}

const char* sg2_built_for(void) {
    static const std::string names = sg2::architectures();
    return names.c_str();
}

}  // extern "C"
