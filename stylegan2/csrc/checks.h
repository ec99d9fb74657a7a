// Checks of arguments and texts of errors, for both libraries.
#pragma once

#include <cmath>
#include <cstdlib>

#include "interface.h"

namespace sg2 {

enum Error {
    kSuccess = 0,
    kBadType = 1,
    kBadActivation = 2,
    kBadOrder = 3,
    kBadSize = 4,
    kBadFilter = 5,
    kNoMemory = 6,
    kNullPointer = 7,
    kLargeFilter = 8,
    kNoWinograd = 9,
    kNoSums = 10,
    kBadConvolution = 11,
    kCudaError = 1000,  // + the CUDA runtime's own code
};

inline const char* error_text(int code) {
    switch (code) {
        case kSuccess: return "no error";
        case kBadType: return "unknown element type; expected a value of Sg2Type";
        case kBadActivation: return "unknown activation; expected a value of Sg2Activation";
        case kBadOrder: return "unknown order; expected 0 (value), 1 or 2 (derivatives)";
        case kBadSize: return "a size is negative, or a factor, step or number of taps is below 1";
        case kBadFilter: return "the filter holds infinite or NaN taps";
        case kNoMemory: return "out of memory";
        case kNullPointer: return "a pointer that is needed is null";
        case kLargeFilter: return "the filter is too large for a GPU's shared memory; expected some hundred taps";
        case kNoWinograd: return "this library was built without convolutions; they need GCC 12 or Clang, on the CPU";
        case kNoSums: return "this library sums no derivatives for the bias; only the one for the CPU does";
        case kBadConvolution:
            return "expected sizes of at least 1, padding 0 to 2, stride 1 or 2, `what` 0 to 2, and padded images of at "
                   "least 3x3";
        default: return "unknown error";
    }
}

inline int check(const Sg2BiasAct* a, const void* first, const void* second, const void* bias,
                 const void* reference, const void* out) {
    if (!a) return kNullPointer;
    if (a->type < SG2_FLOAT32 || a->type > SG2_BFLOAT16) return kBadType;
    if (a->activation < SG2_LINEAR || a->activation > SG2_SWISH) return kBadActivation;
    if (a->order < 0 || a->order > 2) return kBadOrder;
    if (a->size < 0 || a->bias_size < 0 || (a->bias_size > 0 && a->bias_step < 1)) return kBadSize;
    if (a->size == 0) return kSuccess;
    if (!first || !out || (a->bias_size > 0 && !bias)) return kNullPointer;
    if ((a->order > 0 && !reference) || (a->order > 1 && !second)) return kNullPointer;
    return kSuccess;
}

inline bool is_empty(const Sg2Upfirdn2d& a) {
    return a.batch == 0 || a.channels == 0 || a.out_height == 0 || a.out_width == 0;
}

inline int check(const Sg2Upfirdn2d* a, const double* taps, const void* x, const void* y) {
    if (!a || !taps) return kNullPointer;
    if (a->type < SG2_FLOAT32 || a->type > SG2_BFLOAT16) return kBadType;
    const int64_t sizes[] = {a->batch, a->channels, a->in_height, a->in_width, a->out_height, a->out_width};
    for (const int64_t size : sizes) {
        if (size < 0) return kBadSize;
    }
    const int32_t numbers[] = {a->up_x, a->up_y, a->down_x, a->down_y, a->taps_x, a->taps_y};
    for (const int32_t number : numbers) {
        if (number < 1) return kBadSize;
    }
    for (int64_t i = 0; i < static_cast<int64_t>(a->taps_x) * a->taps_y; ++i) {
        if (!std::isfinite(taps[i])) return kBadFilter;
    }
    const bool reads = a->in_height > 0 && a->in_width > 0;
    return !is_empty(*a) && ((reads && !x) || !y) ? kNullPointer : kSuccess;
}

inline int check(const Sg2Winograd* a, const void* first, const void* second, const void* out) {
    if (!a || !first || !second || !out) return kNullPointer;
    if (a->batch < 1 || a->in < 1 || a->out < 1) return kBadConvolution;
    if (a->pad < 0 || a->pad > 2 || a->stride < 1 || a->stride > 2 || a->what < 0 || a->what > 2) return kBadConvolution;
    return a->height + 2 * a->pad < 3 || a->width + 2 * a->pad < 3 ? kBadConvolution : kSuccess;
}

inline int check(const Sg2Styled* a, const void* w, const void* kernels) {
    if (!a || !w || !kernels) return kNullPointer;
    return a->in < 1 || a->out < 1 || a->up < 1 || a->up > 2 ? kBadSize : kSuccess;
}

inline int check(const Sg2Styled* a, const void* x, const void* kernels, const void* styles, const void* y) {
    if (!x || !styles || !y) return kNullPointer;
    const int error = check(a, x, kernels);
    return !error && (a->batch < 1 || a->height < 1 || a->width < 1) ? kBadSize : error;
}

}  // namespace sg2
