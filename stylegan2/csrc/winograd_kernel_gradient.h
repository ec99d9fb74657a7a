// Gradient by the kernels of the convolution of winograd.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "winograd.h"

#if defined(SG2_WINOGRAD)
#pragma GCC diagnostic push
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif
namespace sg2 {
namespace winograd {

// One channel's gradients of the result, 4x4 a tile, transformed: as transform_input does with images.
inline void transform_gradient(const Shape& s, const float* g, int64_t channel, const Strip* strips, int count,
                               float* out, int64_t stride) {
    alignas(64) float rows[4][4 * kTiles] = {};
    for (int i = 0; i < count; ++i) {
        const Strip& strip = strips[i];
        for (int line = 0; line < 4; ++line) {
            const int64_t y = 4 * strip.row + line;
            if (y >= s.out_height()) continue;
            const float* row = g + ((strip.image * s.out + channel) * s.out_height() + y) * s.out_width();
            copy_pixels(rows[line] + 4 * strip.lane, row, s.out_width(), 4 * strip.column, 4 * strip.length);
        }
    }
    for (int v = 0; v < kTiles / kLanes; ++v) {
        Vector d[16], t[24], z[36];
        for (int line = 0; line < 4; ++line) split<4>(rows[line] + 64 * v, d + 4 * line);
        for (int i = 0; i < 4; ++i) gradient_transform(d + i, 4, t + i, 4);
        for (int i = 0; i < 6; ++i) gradient_transform(t + 4 * i, 1, z + 6 * i, 1);
        for (int k = 0; k < kPoints; ++k) store(out + k * stride + v * kLanes, z[k]);
    }
}

inline int64_t fours(int64_t channels) { return (channels + 3) / 4; }

// Working memory of kernel_gradient: transformed inputs and gradients of some groups of tiles, and the 36 sums.
struct Workspace {
    int64_t groups, length, in_stride, out_stride;
    Buffer inputs, gradients, products;

    explicit Workspace(const Shape& s)
        : groups(std::min<int64_t>({kLongest, s.groups(), std::max<int64_t>(1, 2048 / (s.in + s.out))})),
          length(groups * kTiles),
          in_stride(4 * fours(s.in) * length + kLanes),
          out_stride(4 * fours(s.out) * length + kLanes),
          inputs(kPoints * in_stride),
          gradients(kPoints * out_stride),
          products(kPoints * products_per_point(s)) {
        std::fill_n(inputs.get(), kPoints * in_stride, 0.f);
        std::fill_n(gradients.get(), kPoints * out_stride, 0.f);
        std::fill_n(products.get(), kPoints * products_per_point(s), 0.f);
    }
    static int64_t products_per_point(const Shape& s) { return fours(s.in) * fours(s.out) * kLanes; }
};

// Transforms channel `channel` of x, or beyond those of g, for the groups from `first` on.
inline void transform_channel(const Shape& s, const Workspace& space, const float* x, const float* g, int64_t channel,
                              int64_t first) {
    Strip strips[kTiles];
    for (int64_t group = 0; group < space.groups; ++group) {
        const int count = find_strips(s, first + group, strips);  // 0 beyond the last tile: zeros
        const int64_t out = channel - s.in;
        if (out < 0) {
            float* to = space.inputs.get() + channel * space.length + group * kTiles;
            transform_input(s, x, channel, strips, count, to, space.in_stride);
        } else {
            float* to = space.gradients.get() + out * space.length + group * kTiles;
            transform_gradient(s, g, out, strips, count, to, space.out_stride);
        }
    }
}

// Adds [out, tiles] × [tiles, in] of one point to its sums, in blocks of 4 × 4.
inline void add_products(const Shape& s, const Workspace& space, int point) {
    const float* const inputs = space.inputs.get() + point * space.in_stride;
    const float* const gradients = space.gradients.get() + point * space.out_stride;
    float* to = space.products.get() + point * Workspace::products_per_point(s);
    constexpr int kHeldColumns = kHeld == 8 ? 4 : 2;
    for (int64_t out = 0; out < 4 * fours(s.out); out += 4) {
        for (int64_t in = 0; in < 4 * fours(s.in); in += 4, to += kLanes) {
            Vector sum[16] = {};
            for (int column = 0; column < 4; column += kHeldColumns) {
                const float* v = inputs + (in + column) * space.length;
                const float* z = gradients + out * space.length;
                Register held[4][kHeldColumns] = {};
                for (int64_t t = 0; t < space.length; t += kWidth) {
#pragma GCC unroll 4
                    for (int i = 0; i < 4; ++i) {
                        const Register gradient = load<Register>(z + i * space.length + t);
#pragma GCC unroll 4
                        for (int j = 0; j < kHeldColumns; ++j) {
                            held[i][j] += gradient * load<Register>(v + j * space.length + t);
                        }
                    }
                }
                for (int i = 0; i < 4; ++i) {
                    for (int j = 0; j < kHeldColumns; ++j) {
                        std::memcpy(&sum[4 * i + column + j], &held[i][j], sizeof(Register));
                    }
                }
            }
            add_sums(sum, to);
        }
    }
}

// The gradients w [out, in, 3, 3] of four output channels from the finished sums.
inline void finish_kernels(const Shape& s, const Workspace& space, int64_t four, float* w) {
    for (int64_t in = 0; in < s.in; in += 4) {
        const float* from = space.products.get() + (four * fours(s.in) + in / 4) * kLanes;
        Vector u[36], t[18], g[9];
        for (int k = 0; k < kPoints; ++k) u[k] = load<Vector>(from + k * Workspace::products_per_point(s));
        for (int i = 0; i < 6; ++i) kernel_transform_transposed(u + i, 6, t + i, 6);
        for (int i = 0; i < 3; ++i) kernel_transform_transposed(t + 6 * i, 1, g + 3 * i, 1);
        for (int64_t i = 0; i < std::min<int64_t>(4, s.out - 4 * four); ++i) {
            for (int64_t j = 0; j < std::min<int64_t>(4, s.in - in); ++j) {
                float* const taps = w + 9 * ((4 * four + i) * s.in + in + j);
                for (int tap = 0; tap < 9; ++tap) taps[tap] = g[tap][lane_of(static_cast<int>(4 * i + j))];
            }
        }
    }
}

}  // namespace winograd
}  // namespace sg2
#pragma GCC diagnostic pop
#endif
