// A whole layer of the generator without gradients: modulation, 3x3 convolution, demodulation, noise, bias, activation.
//
//     y = clamp(gain · act(scale · (w * (style · x)) + noise + bias))
//
// Memory is read and written once. With up = 2 the convolution yields the four pixels of a 2x2 block as four channels:
// what zero insertion, 3x3 kernel and 4x4 filter are together is four 3x3 kernels on the small image.
#pragma once

#include <algorithm>
#include <cstdint>

#include "interface.h"
#include "portable.h"
#include "winograd.h"

#if defined(SG2_WINOGRAD)
#pragma GCC diagnostic push
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif
namespace sg2 {
namespace winograd {

struct Finish {
    int64_t channels;                   // of the result
    const float *scale, *noise, *bias;  // [batch, channels], [1 or batch, H, W], [channels]; null for none
    int64_t noise_step;                 // between the images of the noise
    float alpha, gain, limit;           // alpha 1: no activation
};

SG2_PASS inline void finish_line(const Finish& f, const float* from, const float* noise, int64_t size, float scale,
                                 float bias, float* to) {
    const float alpha = f.alpha, gain = f.gain, limit = f.limit;
    const auto finish = [=](float value) SG2_INLINE_LAMBDA {
        const float y = gain * (value < 0 ? value * alpha : value);
        return y > limit ? limit : (y < -limit ? -limit : y);
    };
    if (noise) {
        SG2_SIMD for (int64_t i = 0; i < size; ++i) to[i] = finish(from[i] * scale + noise[i] + bias);
    } else {
        SG2_SIMD for (int64_t i = 0; i < size; ++i) to[i] = finish(from[i] * scale + bias);
    }
}

SG2_PASS inline void interleave(const float* even, const float* odd, int64_t size, float* to) {
    SG2_SIMD for (int64_t i = 0; i < size; ++i) {
        to[2 * i] = even[i];
        to[2 * i + 1] = odd[i];
    }
}

// `lines`: 4 per channel of the convolution; UP of these for every row of pixels in a tile, UP² in all.
template <int UP>
void write_finished(const Shape& s, const Finish& f, const float (*lines)[4 * kTiles], int64_t channel,
                    const Strip* strips, int count, float* y) {
    const int64_t height = UP * s.out_height(), width = UP * s.out_width();
    for (int i = 0; i < count; ++i) {
        const Strip& strip = strips[i];
        const int64_t left = 4 * strip.column, pixels = std::min(4 * strip.length, s.out_width() - left);
        const int64_t plane = strip.image * f.channels + channel;
        const float scale = f.scale ? f.scale[plane] : 1.f, bias = f.bias ? f.bias[channel] : 0.f;
        const float* const noise = f.noise ? f.noise + strip.image * f.noise_step : nullptr;
        for (int64_t line = 0; line < std::min<int64_t>(4, s.out_height() - 4 * strip.row); ++line) {
            for (int64_t part = 0; part < UP; ++part) {
                const int64_t at = (UP * (4 * strip.row + line) + part) * width + UP * left;
                const float* from = lines[4 * UP * part + line] + 4 * strip.lane;
                alignas(64) float both[8 * kTiles];
                if constexpr (UP == 2) {
                    interleave(from, lines[4 * (UP * part + 1) + line] + 4 * strip.lane, pixels, both);
                    from = both;
                }
                finish_line(f, from, noise ? noise + at : nullptr, UP * pixels, scale, bias,
                            y + plane * height * width + at);
            }
        }
    }
}

// As `convolve`; s.out counts the channels of the convolution, UP² for each of the result.
template <int UP>
void convolve_and_finish(const Shape& s, const Finish& f, const float* x, const float* styles, const float* u, float* v,
                         float* y, int64_t begin, int64_t end) {
    constexpr int kTogether = UP * UP;
    alignas(64) float m[kRows * Dense::kPoints * kTiles], lines[4 * kTogether][4 * kTiles];
    Strip strips[kTiles];
    for (int64_t group = begin; group < end; ++group) {
        const int count = find_strips(s, group, strips);
        for (int64_t c = 0; c < s.in; ++c) {
            if (c + 1 < s.in) prefetch_input(s, x, c + 1, strips, count);
            transform_scaled_input(s, x, styles, c, strips, count, v + c * kTiles, point_stride(s));
        }
        for (int64_t first = 0; first < s.out; first += kRows) {
            multiply_points<Dense>(s, u, v, first, kRows, m);
            for (int row = 0; row < kRows && first + row < s.out; row += kTogether) {
                for (int i = 0; i < kTogether; ++i) {
                    transform_output<Dense>(m + (row + i) * Dense::kPoints * kTiles, lines + 4 * i);
                }
                write_finished<UP>(s, f, lines, (first + row) / kTogether, strips, count, y);
            }
        }
    }
}

}  // namespace winograd
}  // namespace sg2
#pragma GCC diagnostic pop
#endif
