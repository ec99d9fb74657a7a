// Gradient by the kernels of the convolutions of winograd.h.
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
template <class A>
void transform_gradient(const Shape& s, const float* g, int64_t channel, const Strip* strips, int count,
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
        Vector d[16], t[4 * A::kSide], z[A::kPoints];
        for (int line = 0; line < 4; ++line) split<4>(rows[line] + 64 * v, d + 4 * line);
        for (int i = 0; i < 4; ++i) A::gradient(d + i, 4, t + i, 4);
        for (int i = 0; i < A::kSide; ++i) A::gradient(t + 4 * i, 1, z + A::kSide * i, 1);
        for (int k = 0; k < A::kPoints; ++k) store(out + k * stride + v * kLanes, z[k]);
    }
}

// Channels that are transformed together: as many as a vector holds.
constexpr int kChunk = kLanes;
constexpr int64_t kChunkStride = kChunk * kTiles + kLanes;  // between points, see `point_stride`

// Sizes of the gradient by the kernels. Channels are rounded up to whole vectors. The groups of tiles fall into slabs,
// which are summed up on their own: not by the number of threads, on which nothing may depend.
template <class A>
struct KernelGradient {
    static constexpr int kPanelWidth = 32;
    static constexpr int64_t kGroupsOfSlab = 8, kMostSlabs = 4, kMostSums = 4 << 20;
    Shape shape;
    int64_t in, out, in_stride, out_stride, sums, slabs;  // strides: between points

    explicit KernelGradient(const Shape& s)
        : shape(s),
          in((s.in + kLanes - 1) / kLanes * kLanes),
          out((s.out + kLanes - 1) / kLanes * kLanes),
          in_stride(in * kTiles + kLanes),
          out_stride(out * kTiles + kLanes),
          sums(kKernelPoints * in * out),
          slabs(std::max<int64_t>(1, std::min({s.groups() / kGroupsOfSlab, kMostSlabs, kMostSums / sums}))) {}

    int64_t width(int64_t channel) const { return std::min<int64_t>(kPanelWidth, in - channel); }  // of its panel
    // Of a thread: transformed images and gradients of a group, and what they are transposed from.
    int64_t scratch() const { return A::kPoints * (in_stride + out_stride + kChunkStride); }
};

// Factors of the products of matrices [out, tiles] × [tiles, in] of a group. Tiles change places with channels: from
// chunk [kPoints, 16 channels, 32 tiles] to images `v`, for each point [panels of 32 channels, the last of 16 or 32;
// tiles; channels of the panel].
template <class A>
void store_inputs(const KernelGradient<A>& sizes, const float* chunk, int64_t channel, float* v) {
    const int64_t panel = channel / sizes.kPanelWidth * sizes.kPanelWidth, width = sizes.width(panel);
    for (int k = 0; k < A::kPoints; ++k) {
        float* const to = v + k * sizes.in_stride + panel * kTiles + channel - panel;
        for (int part = 0; part < kTiles; part += kLanes) {
            Vector d[kLanes];
            for (int i = 0; i < kLanes; ++i) d[i] = load<Vector>(chunk + k * kChunkStride + i * kTiles + part);
            transpose(d);
            for (int i = 0; i < kLanes; ++i) store(to + (part + i) * width, d[i]);
        }
    }
}

// To gradients `z`, for each point [out / 8, tiles, 8].
template <class A>
void store_gradients(const KernelGradient<A>& sizes, const float* chunk, int64_t channel, float* z) {
    typedef float Row __attribute__((vector_size(4 * kRows)));
    for (int k = 0; k < A::kPoints; ++k) {
        float* const to = z + k * sizes.out_stride + channel * kTiles;
        for (int part = 0; part < kTiles; part += kLanes) {
            Vector d[kLanes];
            for (int i = 0; i < kLanes; ++i) d[i] = load<Vector>(chunk + k * kChunkStride + i * kTiles + part);
            transpose(d);
            for (int i = 0; i < kLanes; ++i) {
                float numbers[kLanes];
                store(numbers, d[i]);
                store(to + (part + i) * kRows, load<Row>(numbers));
                store(to + (kTiles + part + i) * kRows, load<Row>(numbers + kRows));
            }
        }
    }
}

// Fills a chunk with 16 channels, zeros beyond the last, by transform(channel, to).
template <class A, class Transform>
void fill_chunk(int64_t channel, int64_t channels, float* chunk, const Transform& transform) {
    for (int64_t i = 0; i < kChunk; ++i) {
        float* const to = chunk + i * kTiles;
        if (channel + i < channels) {
            transform(channel + i, to);
        } else {
            for (int k = 0; k < A::kPoints; ++k) std::fill_n(to + k * kChunkStride, kTiles, 0.f);
        }
    }
}

// Adds to sums [8, width] the product of z [tiles, 8], transposed, and VECTORS registers of v [tiles, width].
template <int VECTORS>
inline void add_product(const float* z, const float* v, int64_t width, float* sums) {
    for (int row = 0; row < kRows; row += kHeld) {
        Register held[kHeld][VECTORS] = {};
        for (int t = 0; t < kTiles; ++t) {
            Register inputs[VECTORS];
            for (int j = 0; j < VECTORS; ++j) inputs[j] = load<Register>(v + t * width + j * kWidth);
#pragma GCC unroll 8
            for (int i = 0; i < kHeld; ++i) {
                const float factor = z[t * kRows + row + i];
#pragma GCC unroll 2
                for (int j = 0; j < VECTORS; ++j) held[i][j] += factor * inputs[j];
            }
        }
        for (int i = 0; i < kHeld; ++i) {
            for (int j = 0; j < VECTORS; ++j) {
                float* const to = sums + (row + i) * width + j * kWidth;
                store(to, load<Register>(to) + held[i][j]);
            }
        }
    }
}

// Adds the products of a group to sums [36, out / 8, panels, 8, channels of the panel], for output channels begin..end.
template <class A>
void add_products(const KernelGradient<A>& sizes, const float* v, const float* z, int64_t begin, int64_t end,
                  float* sums) {
    for (int k = 0; k < A::kPoints; ++k) {
        float* to = sums + (kernel_point<A>(k) * sizes.out + begin) * sizes.in;
        for (int64_t out = begin; out < end; out += kRows) {
            const float* const gradients = z + k * sizes.out_stride + out * kTiles;
            for (int64_t panel = 0; panel < sizes.in; panel += sizes.kPanelWidth) {
                const float* const inputs = v + k * sizes.in_stride + panel * kTiles;
                const int64_t width = sizes.width(panel);
                int64_t i = 0;
                for (; i + 2 * kWidth <= width; i += 2 * kWidth) add_product<2>(gradients, inputs + i, width, to + i);
                for (; i < width; i += kWidth) add_product<1>(gradients, inputs + i, width, to + i);
                to += kRows * width;
            }
        }
    }
}

// Sums over the groups of a slab, for output channels begin..end, whole chunks. Nobody else writes to these sums.
template <class A>
void sum_slab(const KernelGradient<A>& sizes, const float* x, const float* g, int64_t slab, int64_t begin, int64_t end,
              float* scratch, float* sums) {
    const Shape& s = sizes.shape;
    float* const v = scratch;
    float* const z = v + A::kPoints * sizes.in_stride;
    float* const chunk = z + A::kPoints * sizes.out_stride;
    Strip strips[kTiles];
    for (int k = 0; k < kKernelPoints; ++k) {
        std::fill_n(sums + (k * sizes.out + begin) * sizes.in, (end - begin) * sizes.in, 0.f);
    }
    const int64_t last = s.groups() * (slab + 1) / sizes.slabs;
    for (int64_t group = s.groups() * slab / sizes.slabs; group < last; ++group) {
        const int count = find_strips(s, group, strips);
        for (int64_t channel = 0; channel < sizes.in; channel += kChunk) {
            fill_chunk<A>(channel, s.in, chunk, [&](int64_t c, float* to) {
                transform_input<A>(s, x, c, strips, count, to, kChunkStride);
            });
            store_inputs(sizes, chunk, channel, v);
        }
        for (int64_t channel = begin; channel < end; channel += kChunk) {
            fill_chunk<A>(channel, s.out, chunk, [&](int64_t c, float* to) {
                transform_gradient<A>(s, g, c, strips, count, to, kChunkStride);
            });
            store_gradients(sizes, chunk, channel, z);
        }
        add_products(sizes, v, z, begin, end, sums);
    }
}

// The gradients w [out, in, 3, 3] of one output channel from the finished sums of all slabs.
template <class A>
void finish_kernels(const KernelGradient<A>& sizes, const float* sums, int64_t out, float* w) {
    for (int64_t in = 0; in < sizes.shape.in; in += kLanes) {
        const int64_t panel = in / sizes.kPanelWidth * sizes.kPanelWidth, row = out % kRows;
        const float* const from = sums + (out - row) * sizes.in + panel * kRows + row * sizes.width(panel) + in - panel;
        Vector u[kKernelPoints], t[3 * kKernelSide];
        for (int k = 0; k < kKernelPoints; ++k) {
            u[k] = load<Vector>(from + k * sizes.in * sizes.out);
            for (int64_t i = 1; i < sizes.slabs; ++i) {
                u[k] += load<Vector>(from + k * sizes.in * sizes.out + i * sizes.sums);
            }
        }
        for (int i = 0; i < kKernelSide; ++i) A::kernel_transposed(u + i, kKernelSide, t + i, kKernelSide);
        float taps[9][kLanes];
        for (int i = 0; i < 3; ++i) {
            Vector g[3];
            A::kernel_transposed(t + kKernelSide * i, 1, g, 1);
            for (int j = 0; j < 3; ++j) store(taps[3 * i + j], g[j]);
        }
        for (int64_t i = 0; i < std::min<int64_t>(kLanes, sizes.shape.in - in); ++i) {
            for (int tap = 0; tap < 9; ++tap) w[9 * (out * sizes.shape.in + in + i) + tap] = taps[tap][i];
        }
    }
}

}  // namespace winograd
}  // namespace sg2
#pragma GCC diagnostic pop
#endif
