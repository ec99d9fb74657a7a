// The plain C interface of the compiled operations: one shared library for the CPU, one for CUDA, same functions.
//
// No header of torch is needed, so a build takes seconds. Pointers are to memory of the library's own device.
// Every function returns 0, or a code that sg2_error_message explains; nothing is thrown across the interface.
#pragma once

#include <stdint.h>

#define SG2_INTERFACE_VERSION 5

#if defined(_WIN32)
#define SG2_EXPORT __declspec(dllexport)
#else
#define SG2_EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

// Type of the elements of x, b and y. Sums run in float for float16 and bfloat16.
enum Sg2Type { SG2_FLOAT32 = 0, SG2_FLOAT64 = 1, SG2_FLOAT16 = 2, SG2_BFLOAT16 = 3 };

enum Sg2Activation {
    SG2_LINEAR = 0,
    SG2_RELU = 1,
    SG2_LRELU = 2,
    SG2_TANH = 3,
    SG2_SIGMOID = 4,
    SG2_ELU = 5,
    SG2_SELU = 6,
    SG2_SOFTPLUS = 7,
    SG2_SWISH = 8
};

// y = clamp(gain · act(x + b)), element by element over `size` contiguous elements in memory order; the bias of
// element i is b[(i / bias_step) % bias_size].
//
// order 0: out = y                                      first = x
// order 1: out = first · dy/dx                          first = gradient of y
// order 2: out = first · second · d²y/dx²               first, second = gradient of y, and of order 1's out
//
// Orders 1 and 2 read the point of linearisation from `reference`, which holds y, or x + b for SG2_SWISH, and no bias.
// Where bias_size is not 0 they write to `bias`: for each of its elements the sum of `out` over all elements that it
// belongs to (not on CUDA).
// Where |y| has reached the clamp they give 0. The y of SG2_LRELU tells its slope only for alpha ≥ 0.
typedef struct {
    int64_t size;
    int64_t bias_size;  // 0: no bias
    int64_t bias_step;
    double alpha;
    double gain;
    double clamp;  // < 0: none
    int32_t type;
    int32_t activation;
    int32_t order;
    int32_t threads;  // CPU: at most so many; 0: all. CUDA ignores it
} Sg2BiasAct;

SG2_EXPORT int sg2_bias_act(const Sg2BiasAct* args, const void* first, const void* second, void* bias,
                            const void* reference, void* out, void* stream);

// y[n, c, my, mx] = Σ_ty Σ_tx taps[ty, tx] · u[n, c, my·down_y − pad_y + ty, mx·down_x − pad_x + tx], where
// u is x with up − 1 zeros after every element, and 0 outside; taps are given as they are multiplied
// (correlation), float64, [taps_y, taps_x] contiguous, in memory of the HOST for both libraries. Strides are not
// negative; x and y do not overlap.
typedef struct {
    int64_t batch, channels, in_height, in_width, out_height, out_width;
    int64_t in_stride[4];   // in elements, of n, c, y, x
    int64_t out_stride[4];
    int32_t up_x, up_y, down_x, down_y;
    int32_t pad_x, pad_y;  // on the left and at the top, of the zero-stuffed image; may be negative
    int32_t taps_x, taps_y;
    int32_t type;
    int32_t threads;
} Sg2Upfirdn2d;

SG2_EXPORT int sg2_upfirdn2d(const Sg2Upfirdn2d* args, const double* taps, const void* x, void* y, void* stream);

// Convolution with 3×3 kernels, of contiguous float32: x [batch, in, height, width] padded by `pad`, 0..2, on every
// side; w [out, in, 3, 3], a correlation; y [batch, out, H, W] with H = ⌊(height + 2·pad − 3) / stride⌋ + 1 and W alike,
// stride 1 or 2. Only the library for the CPU has it, and where GCC 12 or Clang built that; an error elsewhere.
//
// what 0: first = x, second = w, out = y
// what 1: first = y, second = w, out = x     (gradient by the image)
// what 2: first = x, second = y, out = w     (gradient by the kernel)
typedef struct {
    int64_t batch, in, out, height, width, pad, stride;
    int32_t what;
    int32_t threads;  // at most so many; 0: all
} Sg2Winograd;

SG2_EXPORT int sg2_winograd(const Sg2Winograd* args, const void* first, const void* second, void* out, void* stream);
// One layer of the generator by the same algorithm, without gradients, of contiguous float32:
//
//     y = clamp(gain · lrelu(scale · (w * (style · x)) + noise + bias)),
//
// x [batch, in, height, width], styles [batch, in], scale [batch, out], noise [1 or batch, H, W], bias [out],
// y [batch, out, H, W] with (H, W) = up · (height, width); scale, noise and bias may be null. `kernels` are those that
// sg2_styled_kernels makes of w, a correlation padded by 1: for up 1 [out, in, 3, 3]; for up 2 [out, 4, in, 3, 3], one
// for each pixel of a 2×2 block of y, row by row. Only where sg2_winograd computes.
typedef struct {
    int64_t batch, in, out, height, width;
    double slope;  // of the leaky ReLU below 0; 1: none
    double gain;
    double clamp;  // < 0: none
    int32_t up;    // 1 or 2
    int32_t noise_per_image;
    int32_t threads;
} Sg2Styled;

SG2_EXPORT int sg2_styled_convolution(const Sg2Styled* args, const void* x, const void* kernels, const void* styles,
                                      const void* scale, const void* noise, const void* bias, void* y, void* stream);
// How many numbers the kernels of a layer are, and the kernels; both read only in, out, up and threads.
SG2_EXPORT int64_t sg2_styled_kernels_size(const Sg2Styled* args);
SG2_EXPORT int sg2_styled_kernels(const Sg2Styled* args, const void* w, void* kernels, void* stream);
// 1 where sg2_winograd and sg2_styled_convolution compute, else 0.
SG2_EXPORT int sg2_has_winograd(void);

SG2_EXPORT int sg2_interface_version(void);
SG2_EXPORT const char* sg2_error_message(int code);
// "avx512", "avx2", "neon", "generic", or "cuda sm_80,…": what the library was built for.
SG2_EXPORT const char* sg2_built_for(void);

#ifdef __cplusplus
}
#endif
