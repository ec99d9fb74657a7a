// Convolution with 3x3 kernels and stride 2, and its transposed, with 81 products for 4x4 outputs instead of 144.
//
// Along one axis the outer taps meet even pixels alone and the middle tap odd ones:
//
//     y[i] = (g[0] x[2i] + g[2] x[2i + 2]) + g[1] x[2i + 1].
//
// The bracket is F(4, 2) with five products for four outputs; the rest stays four products.
#pragma once

#include <algorithm>
#include <cstdint>

#include "winograd.h"
#include "winograd_kernel_gradient.h"

#if defined(SG2_WINOGRAD)
#pragma GCC diagnostic push
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif
namespace sg2 {
namespace winograd {

// F(4x4, 3x3) of stride 2 for the points ±a, ±b and infinity; with 1/2 and 5/4 all of A and B is exact in float. The nine
// inputs of a tile come as five even ones, then four odd ones; so do the points.
struct Strided {
    static constexpr int kSide = 9, kPoints = 81;
    static constexpr int kPanel = 4 * kRows;  // the inputs of a group exceed the nearer caches: read them seldom
    static constexpr int kernel_of(int place) { return place < 5 ? place : 5; }  // the middle tap for all odd ones

    static constexpr float a1 = 0.5f, a2 = a1 * a1, a3 = a2 * a1;
    static constexpr float b1 = 1.25f, b2 = b1 * b1, b3 = b2 * b1;
    static constexpr float ga = 1 / (2 * a1 * (a2 - b2)), gb = 1 / (2 * b1 * (b2 - a2));

    template <class V>
    static inline void input(const V* d, int s, V* t, int q) {  // Bᵀ d: 9 to 9
        const V even_a = a1 * (d[2 * s] - b2 * d[0]), odd_a = d[3 * s] - b2 * d[s];
        const V even_b = b1 * (d[2 * s] - a2 * d[0]), odd_b = d[3 * s] - a2 * d[s];
        t[0] = odd_a + even_a;
        t[q] = odd_a - even_a;
        t[2 * q] = odd_b + even_b;
        t[3 * q] = odd_b - even_b;
        t[4 * q] = (a2 * b2) * d[0] - (a2 + b2) * d[2 * s] + d[4 * s];
        for (int i = 5; i < kSide; ++i) t[i * q] = d[i * s];
    }

    template <class V>
    static inline void input_transposed(const V* m, int s, V* d, int q) {  // B m: 9 to 9
        const V sum_a = m[0] + m[s], difference_a = a1 * (m[0] - m[s]);
        const V sum_b = m[2 * s] + m[3 * s], difference_b = b1 * (m[2 * s] - m[3 * s]);
        d[0] = (a2 * b2) * m[4 * s] - b2 * difference_a - a2 * difference_b;
        d[q] = -b2 * sum_a - a2 * sum_b;
        d[2 * q] = difference_a + difference_b - (a2 + b2) * m[4 * s];
        d[3 * q] = sum_a + sum_b;
        d[4 * q] = m[4 * s];
        for (int i = 5; i < kSide; ++i) d[i * q] = m[i * s];
    }

    template <class V>
    static inline void output(const V* m, int s, V* y, int q) {  // Aᵀ m: 9 to 4
        const V even_a = m[0] + m[s], odd_a = m[0] - m[s];
        const V even_b = m[2 * s] + m[3 * s], odd_b = m[2 * s] - m[3 * s];
        y[0] = even_a + even_b + m[5 * s];
        y[q] = a1 * odd_a + b1 * odd_b + m[6 * s];
        y[2 * q] = a2 * even_a + b2 * even_b + m[7 * s];
        y[3 * q] = a3 * odd_a + b3 * odd_b + m[4 * s] + m[8 * s];
    }

    template <class V>
    static inline void gradient(const V* y, int s, V* z, int q) {  // A y: 4 to 9
        const V even_a = y[0] + a2 * y[2 * s], odd_a = a1 * y[s] + a3 * y[3 * s];
        const V even_b = y[0] + b2 * y[2 * s], odd_b = b1 * y[s] + b3 * y[3 * s];
        z[0] = even_a + odd_a;
        z[q] = even_a - odd_a;
        z[2 * q] = even_b + odd_b;
        z[3 * q] = even_b - odd_b;
        z[4 * q] = y[3 * s];
        for (int i = 0; i < 4; ++i) z[(5 + i) * q] = y[i * s];
    }

    template <class V>
    static inline void kernel(const V* g, int s, V* u, int q) {  // G g: 3 to 6, of which the last stands four times
        const V first_a = ga * g[0], last_a = (ga * a1) * g[2 * s];
        const V first_b = gb * g[0], last_b = (gb * b1) * g[2 * s];
        u[0] = last_a + first_a;
        u[q] = last_a - first_a;
        u[2 * q] = last_b + first_b;
        u[3 * q] = last_b - first_b;
        u[4 * q] = g[2 * s];
        u[5 * q] = g[s];
    }

    template <class V>
    static inline void kernel_transposed(const V* u, int s, V* g, int q) {  // Gᵀ u: 6 to 3, the four already added up
        g[0] = ga * (u[0] - u[s]) + gb * (u[2 * s] - u[3 * s]);
        g[q] = u[5 * s];
        g[2 * q] = (ga * a1) * (u[0] + u[s]) + (gb * b1) * (u[2 * s] + u[3 * s]) + u[4 * s];
    }
};

// Which of the nine lines of a tile comes in which place: even ones first.
inline int64_t line_in_place(int place) { return place < 5 ? 2 * place : 2 * (place - 5) + 1; }

#define SG2_MIX(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)

// `count` pairs of pixels of a row, the first pixel at `from`, to even and odd ones; 0 outside of the row.
inline void copy_pairs(const float* row, int64_t width, int64_t from, int64_t count, float* even, float* odd) {
    const auto pixel = [=](int64_t at) { return at >= 0 && at < width ? row[at] : 0.f; };
    int64_t i = 0;
    while (i < count) {
        const int64_t at = from + 2 * i;
        if (i + kLanes <= count && at >= 0 && at + 2 * kLanes <= width) {
            const Vector a = load<Vector>(row + at), b = load<Vector>(row + at + kLanes);
            store(even + i, SG2_MIX(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30));
            store(odd + i, SG2_MIX(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31));
            i += kLanes;
        } else {
            even[i] = pixel(at);
            odd[i] = pixel(at + 1);
            ++i;
        }
    }
}

// The reverse: adds even and odd pixels to a row, those outside of it not.
inline void add_pairs(const float* even, const float* odd, int64_t count, int64_t from, int64_t width, float* row) {
    int64_t i = 0;
    while (i < count) {
        const int64_t at = from + 2 * i;
        if (i + kLanes <= count && at >= 0 && at + 2 * kLanes <= width) {
            const Vector a = load<Vector>(even + i), b = load<Vector>(odd + i);
            store(row + at, load<Vector>(row + at) +
                                SG2_MIX(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23));
            store(row + at + kLanes, load<Vector>(row + at + kLanes) +
                                         SG2_MIX(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
            i += kLanes;
        } else {
            if (at >= 0 && at < width) row[at] += even[i];
            if (at + 1 >= 0 && at + 1 < width) row[at + 1] += odd[i];
            ++i;
        }
    }
}

#undef SG2_MIX

template <>
inline void transform_input<Strided>(const Shape& s, const float* x, int64_t channel, const Strip* strips, int count,
                                     float* out, int64_t stride) {
    // Pixels 0, 2, 4, 6; 1, 3, 5, 7; and 8 of each tile.
    alignas(64) float even[9][4 * kTiles], odd[9][4 * kTiles], last[9][kTiles];
    const int64_t lanes = lanes_of(strips, count);
    for (int place = 0; place < 9; ++place) {
        std::fill(even[place] + 4 * lanes, even[place] + 4 * kTiles, 0.f);
        std::fill(odd[place] + 4 * lanes, odd[place] + 4 * kTiles, 0.f);
        std::fill(last[place] + lanes, last[place] + kTiles, 0.f);
    }
    for (int i = 0; i < count; ++i) {
        const Strip& strip = strips[i];
        const int64_t plane = strip.image * s.in + channel, left = 8 * strip.column - s.pad;
        const int64_t right = left + 8 * strip.length, end = strip.lane + strip.length;
        for (int place = 0; place < 9; ++place) {
            const int64_t y = 8 * strip.row + line_in_place(place) - s.pad;
            const bool outside = y < 0 || y >= s.height;
            const float* row = outside ? x : x + (plane * s.height + y) * s.width;
            const int64_t width = outside ? 0 : s.width;
            copy_pairs(row, width, left, 4 * strip.length, even[place] + 4 * strip.lane, odd[place] + 4 * strip.lane);
            for (int64_t tile = strip.lane; tile + 1 < end; ++tile) last[place][tile] = even[place][4 * (tile + 1)];
            last[place][end - 1] = right >= 0 && right < width ? row[right] : 0.f;
        }
    }
    for (int v = 0; v < kTiles / kLanes; ++v) {
        Vector d[Strided::kPoints];
        for (int place = 0; place < 9; ++place) {
            split<4>(even[place] + 64 * v, d + 9 * place);
            d[9 * place + 4] = load<Vector>(last[place] + kLanes * v);
            split<4>(odd[place] + 64 * v, d + 9 * place + 5);
        }
        transform_and_store_input<Strided>(d, out + v * kLanes, stride);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Transposed convolution: x = Σ_c B [(G g Gᵀ) ⊙ (A y Aᵀ)] Bᵀ, where the 9x9 pixels of neighbouring tiles overlap by one
// ---------------------------------------------------------------------------------------------------------------------

// Adds one channel's tiles to its planes of x, from the products m [81, 32].
inline void add_tiles(const Shape& s, const float* m, int64_t channel, const Strip* strips, int count, float* x) {
    alignas(64) float even[9][4 * kTiles], odd[9][4 * kTiles], last[9][kTiles];
    for (int part = 0; part < kTiles / kLanes; ++part) {
        Vector d[Strided::kPoints], t[Strided::kPoints];
        for (int k = 0; k < Strided::kPoints; ++k) d[k] = load<Vector>(m + k * kTiles + part * kLanes);
        for (int i = 0; i < 9; ++i) Strided::input_transposed(d + i, 9, t + i, 9);
        for (int i = 0; i < 9; ++i) Strided::input_transposed(t + 9 * i, 1, d + 9 * i, 1);
        for (int place = 0; place < 9; ++place) {
            join(d + 9 * place, even[place] + 64 * part);
            store(last[place] + kLanes * part, d[9 * place + 4]);
            join(d + 9 * place + 5, odd[place] + 64 * part);
        }
    }
    for (int i = 0; i < count; ++i) {
        const Strip& strip = strips[i];
        const int64_t left = 8 * strip.column - s.pad, right = left + 8 * strip.length;
        const int64_t end = strip.lane + strip.length;
        for (int place = 0; place < 9; ++place) {
            const int64_t y = 8 * strip.row + line_in_place(place) - s.pad;
            if (y < 0 || y >= s.height) continue;
            float* const row = x + ((strip.image * s.in + channel) * s.height + y) * s.width;
            for (int64_t tile = strip.lane; tile + 1 < end; ++tile) even[place][4 * (tile + 1)] += last[place][tile];
            add_pairs(even[place] + 4 * strip.lane, odd[place] + 4 * strip.lane, 4 * strip.length, left, s.width, row);
            if (right >= 0 && right < s.width) row[right] += last[place][end - 1];
        }
    }
}

// The sums are over the channels of y: what kernels and products are concerned, the channels change places.
inline Shape swap_channels(const Shape& s) { return {s.batch, s.out, s.in, s.height, s.width, s.pad, s.stride}; }

// How many images are computed together: groups end with them, so that nobody else adds to their pixels. As few as
// leave the fewest lanes of groups empty.
inline int64_t images_together(const Shape& s) {
    const auto groups = [&](int64_t images) { return (images * s.rows() * s.columns() + kTiles - 1) / kTiles; };
    int64_t best = 1, fewest = s.batch * groups(1);
    for (int64_t images = 2; images <= s.batch; ++images) {
        const int64_t all = s.batch / images * groups(images) + groups(s.batch % images);
        if (all < fewest) best = images, fewest = all;
    }
    return best;
}

inline int64_t spread_scratch(const Shape& s) {
    return Strided::kPoints * (point_stride(swap_channels(s)) + Strided::kPanel * kTiles);
}

// Channels begin..end of images x from y, begin a multiple of 8; kernels u [in / 8, 36, out, 8].
inline void spread(const Shape& s, const float* y, const float* u, int64_t begin, int64_t end, float* scratch,
                   float* x) {
    const Shape swapped = swap_channels(s);
    const int64_t stride = point_stride(swapped), plane = s.height * s.width;
    float* const m = scratch + Strided::kPoints * stride;
    Strip strips[kTiles];
    for (int64_t image = 0; image < s.batch; ++image) {
        std::fill_n(x + (image * s.in + begin) * plane, (end - begin) * plane, 0.f);
    }
    for (int64_t group = 0; group < s.groups(); ++group) {
        const int count = find_strips(s, group, strips);
        for (int64_t c = 0; c < s.out; ++c) {
            transform_gradient<Strided>(s, y, c, strips, count, scratch + c * kTiles, stride);
        }
        for (int64_t first = begin; first < end; first += Strided::kPanel) {
            const int64_t rows = std::min<int64_t>(Strided::kPanel, end - first);
            multiply_points<Strided>(swapped, u, scratch, first, rows, m);
            for (int64_t row = 0; row < rows; ++row) {
                add_tiles(s, m + row * Strided::kPoints * kTiles, first + row, strips, count, x);
            }
        }
    }
}

}  // namespace winograd
}  // namespace sg2
#pragma GCC diagnostic pop
#endif
