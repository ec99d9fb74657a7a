// The compiled operations on the CPU: the shared kernels, run over cores and vector lanes.
//
//     c++ -std=c++17 -O3 -march=native -ffp-contract=fast -fno-math-errno -fno-trapping-math -fopenmp -fPIC
//         -fvisibility=hidden -shared cpu.cpp
#include <algorithm>
#include <new>
#include <vector>

#include "bias_act.h"
#include "checks.h"
#include "interface.h"
#include "large_pages.h"
#include "streaming.h"
#include "threads.h"
#include "upfirdn2d.h"
#include "upfirdn2d_plan.h"
#include "winograd_calls.h"

namespace sg2 {
namespace {

// ---------------------------------------------------------------------------------------------------------
// Lanes
// ---------------------------------------------------------------------------------------------------------

struct Serial {
    static constexpr bool kSeveralRows = false;

    template <bool PLANAR, class Run>
    SG2_HD void each(int64_t pixels, int lanes, const Run& run) const {
        if constexpr (PLANAR) {
            SG2_SIMD for (int64_t pixel = 0; pixel < pixels; ++pixel) run(pixel, 0);
        } else {
            for (int64_t pixel = 0; pixel < pixels; ++pixel) {
                SG2_SIMD for (int lane = 0; lane < lanes; ++lane) run(pixel, lane);
            }
        }
    }
    SG2_HD void sync() const {}
};

// ---------------------------------------------------------------------------------------------------------
// Bias and activation
// ---------------------------------------------------------------------------------------------------------

constexpr int64_t kBlock = 1024;  // elements that pass through the first cache: widened, streamed or summed at a time

// A run of elements; bias: one per element, or null for the same `same_bias` everywhere.
template <class A>
struct Run {
    int64_t size;
    const A *first, *second, *bias, *reference;
    A* out;
    A same_bias;
};

template <int ACTIVATION, int ORDER, class A>
void compute(const Run<A>& r, const BiasActScalars<A>& scalars) {
    const BiasActScalars<A> s = scalars;
    const A *const first = r.first, *const second = r.second, *const bias = r.bias, *const reference = r.reference;
    A* const out = r.out;
    const A same_bias = r.same_bias;
    const int64_t size = r.size;
    if constexpr (ORDER == 0) {
        if (bias) {
            SG2_SIMD for (int64_t i = 0; i < size; ++i) {
                out[i] = bias_act_element<ACTIVATION, 0>(first[i], A(0), bias[i], A(0), s);
            }
        } else {
            SG2_SIMD for (int64_t i = 0; i < size; ++i) {
                out[i] = bias_act_element<ACTIVATION, 0>(first[i], A(0), same_bias, A(0), s);
            }
        }
    } else {
        SG2_SIMD for (int64_t i = 0; i < size; ++i) {
            const A other = ORDER == 2 ? second[i] : A(0);
            out[i] = bias_act_element<ACTIVATION, ORDER>(first[i], other, A(0), reference[i], s);
        }
    }
}

template <class A>
using Compute = void (*)(const Run<A>&, const BiasActScalars<A>&);

template <class A, int ORDER>
Compute<A> compute_of_order(int activation) {
    static constexpr Compute<A> kTable[] = {
        compute<SG2_LINEAR, ORDER, A>,   compute<SG2_RELU, ORDER, A>, compute<SG2_LRELU, ORDER, A>,
        compute<SG2_TANH, ORDER, A>,     compute<SG2_SIGMOID, ORDER, A>, compute<SG2_ELU, ORDER, A>,
        compute<SG2_SELU, ORDER, A>,     compute<SG2_SOFTPLUS, ORDER, A>, compute<SG2_SWISH, ORDER, A>,
    };
    return kTable[activation];
}

template <class A>
Compute<A> compute_for(const Sg2BiasAct& args) {
    if (args.order == 0) return compute_of_order<A, 0>(args.activation);
    return args.order == 1 ? compute_of_order<A, 1>(args.activation) : compute_of_order<A, 2>(args.activation);
}

// The bias as runs see it: rows of `step` equal values, or, where those would be short, a table of `period` values.
template <class A>
struct Bias {
    std::vector<A> values;
    int64_t step = 1, period = 1;
    bool by_element = false;

    template <class T>
    Bias(const Sg2BiasAct& args, const T* bias) {
        const int64_t size = args.order == 0 ? args.bias_size : 0;
        step = size > 0 ? args.bias_step : std::max<int64_t>(args.size, 1);
        values.assign(std::max<int64_t>(size, 1), A(0));
        for (int64_t i = 0; i < size; ++i) values[i] = widen(bias[i]);
        by_element = size > 0 && step < 32;
        if (!by_element) return;
        const int64_t repeat = std::max<int64_t>(1, 256 / (size * step));
        std::vector<A> table(repeat * size * step);
        for (size_t i = 0; i < table.size(); ++i) table[i] = values[i / step % size];
        values.swap(table);
        period = static_cast<int64_t>(values.size());
    }
    // How many elements from `at` on one run covers
    int64_t run_length(int64_t at) const { return by_element ? period - at % period : step - at % step; }
    void set(Run<A>& run, int64_t at) const {
        run.bias = by_element ? values.data() + at % period : nullptr;
        run.same_bias = by_element ? A(0) : values[at / step % static_cast<int64_t>(values.size())];
    }
};

template <class T>
struct Arrays {
    const T *first, *second, *reference;
    T* out;
};

template <class T>
void widen_block(const T* from, int64_t at, int64_t size, float* to) {
    if (!from) return;
    SG2_SIMD for (int64_t i = 0; i < size; ++i) to[i] = widen(from[at + i]);
}

// Computes run.size elements from `at` on and tells where they are, for sums; `block` has room for kBlock.
template <class T, class A>
const A* compute_at(const Arrays<T>& arrays, int64_t at, Run<A>& run, Compute<A> function, const BiasActScalars<A>& s,
                    bool streamed, A* block) {
    if constexpr (kSame<T, A>) {
        run.first = arrays.first + at;
        run.second = arrays.second ? arrays.second + at : nullptr;
        run.reference = arrays.reference ? arrays.reference + at : nullptr;
        run.out = streamed ? block : arrays.out + at;
        function(run, s);
        if (streamed) stream(block, arrays.out + at, run.size * static_cast<int64_t>(sizeof(A)));
    } else {  // types of 16 bits: through float
        float second[kBlock], reference[kBlock];
        widen_block(arrays.first, at, run.size, block);
        widen_block(arrays.second, at, run.size, second);
        widen_block(arrays.reference, at, run.size, reference);
        run.first = run.out = block;
        run.second = second;
        run.reference = reference;
        function(run, s);
        T* const out = arrays.out + at;
        SG2_SIMD for (int64_t i = 0; i < run.size; ++i) narrow(block[i], out[i]);
    }
    return run.out;
}

// A sum in an order that follows from the size alone.
template <class A>
double sum_of(const A* values, int64_t size) {
    constexpr int64_t kSums = 64;
    A sums[kSums] = {};
    int64_t i = 0;
    for (; i + kSums <= size; i += kSums) {
        SG2_SIMD for (int64_t k = 0; k < kSums; ++k) sums[k] += values[i + k];
    }
    for (int64_t k = 0; i + k < size; ++k) sums[k] += values[i + k];
    for (int64_t half = kSums / 2; half > 0; half /= 2) {
        SG2_SIMD for (int64_t k = 0; k < half; ++k) sums[k] += sums[k + half];
    }
    return sums[0];
}

// Derivatives and, while they are in the first cache, the sums over all that one element of the bias was added to. Sums
// run over blocks that do not depend on the number of threads.
template <class T, class A>
void derivatives_and_sums(const Sg2BiasAct& args, const Arrays<T>& arrays, Compute<A> function,
                          const BiasActScalars<A>& scalars, bool streamed, T* bias_sums) {
    const int64_t step = args.bias_step, rows = (args.size + step - 1) / step;
    const int64_t per_row = (step + kBlock - 1) / kBlock;
    std::vector<double> sums(rows * per_row);
    in_parts(rows * per_row, threads_for(args.size, args.threads), [&](int, int64_t begin, int64_t end) {
        alignas(64) A block[kBlock];
        Run<A> run{};
        for (int64_t i = begin; i < end; ++i) {
            const int64_t row = i / per_row, at = row * step + i % per_row * kBlock;
            run.size = std::min({kBlock, (row + 1) * step - at, args.size - at});
            if (run.size <= 0) continue;
            sums[i] = sum_of(compute_at(arrays, at, run, function, scalars, streamed, block), run.size);
        }
        if (streamed) finish_streaming();
    });
    std::vector<double> totals(args.bias_size);
    for (int64_t row = 0; row < rows; ++row) {
        double& total = totals[row % args.bias_size];
        for (int64_t i = 0; i < per_row; ++i) total += sums[row * per_row + i];
    }
    for (int64_t i = 0; i < args.bias_size; ++i) narrow(static_cast<A>(totals[i]), bias_sums[i]);
}

template <class T>
void bias_act(const Sg2BiasAct& args, const void* first, const void* second, void* bias, const void* reference,
              void* out) {
    using A = typename Accumulator<T>::Type;
    const Arrays<T> arrays = {static_cast<const T*>(first), args.order > 1 ? static_cast<const T*>(second) : nullptr,
                              args.order > 0 ? static_cast<const T*>(reference) : nullptr, static_cast<T*>(out)};
    const int64_t bytes = args.size * static_cast<int64_t>(sizeof(T));
    prefer_large_pages(out, bytes);
    const bool streamed = kSame<T, A> && is_streamed(bytes);
    const Compute<A> function = compute_for<A>(args);
    const BiasActScalars<A> scalars = bias_act_scalars<T, A>(args);
    if (args.order > 0 && args.bias_size > 0) {
        return derivatives_and_sums(args, arrays, function, scalars, streamed, static_cast<T*>(bias));
    }
    const Bias<A> table(args, static_cast<const T*>(bias));
    const int64_t longest = kSame<T, A> && !streamed ? args.size : kBlock;
    in_parts(args.size, threads_for(args.size, args.threads), [&](int, int64_t begin, int64_t end) {
        alignas(64) A block[kBlock];
        Run<A> run{};
        for (int64_t at = begin; at < end; at += run.size) {
            run.size = std::min({end - at, table.run_length(at), longest});
            table.set(run, at);
            compute_at(arrays, at, run, function, scalars, streamed, block);
        }
        if (streamed) finish_streaming();
    });
}

// ---------------------------------------------------------------------------------------------------------
// Up-sampling, FIR, down-sampling
// ---------------------------------------------------------------------------------------------------------

constexpr int64_t kLine = 8192;   // numbers in a line: 32 KiB of float
constexpr int64_t kLanes = 256;   // channels side by side in it
constexpr int64_t kGathered = 16;  // the same, where they are not side by side in memory

// How the images are cut into lines.
struct Layout {
    bool unit_in, unit_out;
    int lanes;
    int64_t blocks;   // of channels
    int64_t segment;  // outputs along x

    explicit Layout(const Sg2Upfirdn2d& a) {
        const bool by_channel = a.channels > 1 && (a.in_stride[1] == 1 || a.out_stride[1] == 1) &&
                                a.in_stride[3] != 1 && a.out_stride[3] != 1;
        const bool small = !by_channel && a.channels >= 8 && a.out_width <= 8;
        const int64_t most = by_channel ? kLanes : (small ? kGathered : 1);
        lanes = static_cast<int>(std::min(a.channels, most));
        unit_in = (lanes == 1 ? a.in_stride[3] : a.in_stride[1]) == 1;
        unit_out = (lanes == 1 ? a.out_stride[3] : a.out_stride[1]) == 1;
        blocks = (a.channels + lanes - 1) / lanes;
        // A segment of s outputs reads about s·down/up pixels
        const int64_t widest = std::max<int64_t>(1, kLine / lanes * a.up_x / std::max(a.up_x, a.down_x));
        segment = (widest + a.up_x - 1) / a.up_x * a.up_x;
        segment = std::min(segment, std::max<int64_t>(a.out_width, 1));
    }
};

// The passes over a line, each compiled once for all lines that need it.
template <class T, class A>
struct Passes {
    using F = const Fir<A, int64_t>&;
    using S = const Segment<int64_t>&;
    using Fill = void (*)(const Serial&, F, const T*, const Start<int64_t>&, int32_t, S, int, A*);
    using Sum = void (*)(const Serial&, F, const A*, int32_t, S, int, A*, int64_t, int64_t);
    using Store = void (*)(const Serial&, F, const A*, int64_t, int, T*);
    Fill fill;
    Sum sum_to, add;
    Store store;

    template <class Out>
    SG2_HD void sum(const Serial& team, F fir, const A* line, int32_t term, S s, int lanes, Out* to,
                    int64_t pixel_stride, int64_t lane_stride) const {
        // No other type: is stored by `store`
        if constexpr (kSame<Out, A>) sum_to(team, fir, line, term, s, lanes, to, pixel_stride, lane_stride);
    }
};

template <bool PLANAR, class T, class A>
Passes<T, A> passes_of(const Layout& layout) {
    using I = int64_t;
    Passes<T, A> passes{};
    passes.fill = layout.unit_in ? fill_line<PLANAR, true, Serial, T, A, I> : fill_line<PLANAR, false, Serial, T, A, I>;
    passes.store =
        layout.unit_out ? store_line<PLANAR, true, Serial, T, A, I> : store_line<PLANAR, false, Serial, T, A, I>;
    return passes;
}

template <bool PLANAR, class C, class T, class A>
void set_sums(Passes<T, A>& passes) {
    passes.sum_to = sum_pixels<PLANAR, true, false, C::UP, C::DOWN, C::COUNT, Serial, A, A, int64_t>;
    passes.add = sum_pixels<PLANAR, true, true, C::UP, C::DOWN, C::COUNT, Serial, A, A, int64_t>;
}

template <class T, class A>
Passes<T, A> passes_for(const Layout& layout, const Fir<A, int64_t>& fir) {
    if (layout.lanes == 1) {
        Passes<T, A> passes = passes_of<true, T, A>(layout);
        with_case(fir.x.up, fir.x.down, fir.x.count, [&](auto c) { set_sums<true, decltype(c)>(passes); });
        return passes;
    }
    Passes<T, A> passes = passes_of<false, T, A>(layout);
    switch (fir.x.count) {  // vectors run over lanes, whatever the factors are
        case 1: set_sums<false, Case<0, 0, 1>>(passes); break;
        case 2: set_sums<false, Case<0, 0, 2>>(passes); break;
        case 4: set_sums<false, Case<0, 0, 4>>(passes); break;
        default: set_sums<false, Case<0, 0, 0>>(passes);
    }
    return passes;
}

template <class T>
struct Images {
    const Sg2Upfirdn2d& args;
    const Fir<typename Accumulator<T>::Type, int64_t>& fir;
    const Layout& layout;
    const T* x;
    T* y;
    std::vector<Start<int64_t>> rows;  // where the rows of the result start
    std::vector<Segment<int64_t>> segments;
};

// The lines [begin, end) of all lines (image, block of channels, row).
template <class T, class A>
void run_lines(const Images<T>& images, const Passes<T, A>& passes, int64_t begin, int64_t end, A* line, A* sums) {
    const Sg2Upfirdn2d& a = images.args;
    const Layout& layout = images.layout;
    const Fir<A, int64_t>& fir = images.fir;
    const bool direct = kSame<T, A> && layout.unit_out && fir.terms == 1;
    int64_t my = begin % a.out_height, plane = begin / a.out_height;
    for (int64_t i = begin; i < end; ++plane, my = 0) {
        const int64_t channel = plane % layout.blocks * layout.lanes;
        const int64_t image = plane / layout.blocks;
        const int lanes = static_cast<int>(std::min<int64_t>(layout.lanes, a.channels - channel));
        const T* const x = images.x + image * a.in_stride[0] + channel * a.in_stride[1];
        T* const y = images.y + image * a.out_stride[0] + channel * a.out_stride[1];
        for (; my < a.out_height && i < end; ++my, ++i) {
            for (const Segment<int64_t>& segment : images.segments) {
                upfirdn2d_line(Serial(), passes, fir, x, y + my * a.out_stride[2], images.rows[my], segment, lanes,
                               direct, line, sums);
            }
        }
    }
}

// Whether the result begins at y and has no gaps.
bool is_dense(const Sg2Upfirdn2d& a) {
    const int64_t sizes[] = {a.batch, a.channels, a.out_height, a.out_width};
    int64_t last = 0, count = 1;
    for (int i = 0; i < 4; ++i) {
        if (a.out_stride[i] < 0) return false;
        last += (sizes[i] - 1) * a.out_stride[i];
        count *= sizes[i];
    }
    return last + 1 == count;
}

template <class T>
void upfirdn2d(const Sg2Upfirdn2d& args, const double* taps, const void* x, void* y) {
    using A = typename Accumulator<T>::Type;
    const int64_t outputs = args.batch * args.channels * args.out_height * args.out_width;
    if (is_dense(args)) prefer_large_pages(y, outputs * static_cast<int64_t>(sizeof(T)));
    const Plan<A> plan(args, taps);
    const Layout layout(args);
    Images<T> images = {args, plan.fir, layout, static_cast<const T*>(x), static_cast<T*>(y), {}, {}};
    for (int64_t my = 0; my < args.out_height; ++my) images.rows.emplace_back(plan.fir.y, my);
    for (int64_t from = 0; from < args.out_width; from += layout.segment) {
        images.segments.emplace_back(plan.fir.x, from, std::min(from + layout.segment, args.out_width));
    }
    const Passes<T, A> passes = passes_for<T, A>(layout, plan.fir);
    const int64_t lines = args.batch * layout.blocks * args.out_height;
    const int64_t inputs = args.batch * args.channels * args.in_height * args.in_width;
    const int parts = threads_for(std::max(inputs, outputs), args.threads);

    const Segment<int64_t>& widest = images.segments[0];
    const int64_t line = (widest.stop - widest.first + 1) * layout.lanes;
    const int64_t each = (line + layout.segment * layout.lanes + 63) / 64 * 64;
    std::vector<A> scratch(each * parts);
    in_parts(lines, parts, [&](int part, int64_t begin, int64_t end) {
        A* const own = scratch.data() + part * each;
        run_lines(images, passes, begin, end, own, own + line);
    });
}

}  // namespace
}  // namespace sg2

extern "C" {

int sg2_bias_act(const Sg2BiasAct* args, const void* first, const void* second, void* bias, const void* reference,
                 void* out, void*) {
    using namespace sg2;
    const int error = check(args, first, second, bias, reference, out);
    if (error || args->size == 0) return error;
    try {
        switch (args->type) {
            case SG2_FLOAT32: bias_act<float>(*args, first, second, bias, reference, out); break;
            case SG2_FLOAT64: bias_act<double>(*args, first, second, bias, reference, out); break;
            case SG2_FLOAT16: bias_act<Half>(*args, first, second, bias, reference, out); break;
            default: bias_act<BFloat16>(*args, first, second, bias, reference, out);
        }
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
    return kSuccess;
}

int sg2_upfirdn2d(const Sg2Upfirdn2d* args, const double* taps, const void* x, void* y, void*) {
    using namespace sg2;
    const int error = check(args, taps, x, y);
    if (error || is_empty(*args)) return error;
    try {
        switch (args->type) {
            case SG2_FLOAT32: upfirdn2d<float>(*args, taps, x, y); break;
            case SG2_FLOAT64: upfirdn2d<double>(*args, taps, x, y); break;
            case SG2_FLOAT16: upfirdn2d<Half>(*args, taps, x, y); break;
            default: upfirdn2d<BFloat16>(*args, taps, x, y);
        }
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
    return kSuccess;
}

int sg2_winograd(const Sg2Winograd* args, const void* first, const void* second, void* out, void*) {
    using namespace sg2;
    const int error = check(args, first, second, out);
    if (error) return error;
#if defined(SG2_WINOGRAD)
    const auto *a = static_cast<const float*>(first), *b = static_cast<const float*>(second);
    try {
        winograd_by(*args, a, b, static_cast<float*>(out));
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
    return kSuccess;
#else
    return kNoWinograd;
#endif
}

#if defined(SG2_WINOGRAD)

int64_t sg2_styled_kernels_size(const Sg2Styled* args) {
    return args ? sg2::winograd::kernel_size(sg2::shape_of(*args)) : 0;
}

int sg2_styled_kernels(const Sg2Styled* args, const void* w, void* kernels, void*) {
    const int error = sg2::check(args, w, kernels);
    if (!error) sg2::styled_kernels(*args, static_cast<const float*>(w), static_cast<float*>(kernels));
    return error;
}

int sg2_styled_convolution(const Sg2Styled* args, const void* x, const void* kernels, const void* styles,
                           const void* scale, const void* noise, const void* bias, void* y, void*) {
    using namespace sg2;
    const int error = check(args, x, kernels, styles, y);
    if (error) return error;
    const auto floats = [](const void* from) { return static_cast<const float*>(from); };
    try {
        styled_convolution(*args, floats(x), floats(kernels), floats(styles), floats(scale), floats(noise),
                           floats(bias), static_cast<float*>(y));
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
    return kSuccess;
}

#else

int64_t sg2_styled_kernels_size(const Sg2Styled*) { return 0; }

int sg2_styled_kernels(const Sg2Styled*, const void*, void*, void*) { return sg2::kNoWinograd; }

int sg2_styled_convolution(const Sg2Styled*, const void*, const void*, const void*, const void*, const void*,
                           const void*, void*, void*) {
    return sg2::kNoWinograd;
}

#endif

int sg2_has_winograd(void) {
#if defined(SG2_WINOGRAD)
    return 1;
#else
    return 0;
#endif
}

int sg2_interface_version(void) { return SG2_INTERFACE_VERSION; }

const char* sg2_error_message(int code) { return sg2::error_text(code); }

const char* sg2_built_for(void) {
#if defined(__AVX512F__)
    return "avx512";
#elif defined(__AVX2__)
    return "avx2";
#elif defined(__ARM_NEON)
    return "neon";
#else
    return "generic";
#endif
}

}  // extern "C"
