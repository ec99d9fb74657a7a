// Convolution with 3x3 kernels by minimal filtering (Winograd 1980; Lavin & Gray 2015, arXiv 1509.09308): tiles of 4x4
// outputs with fewer products.
//
//     y = Aᵀ [Σ_c (G g Gᵀ) ⊙ (Bᵀ d B)] A,          dL/dg = Gᵀ [Σ_tiles (A (dL/dy) Aᵀ) ⊙ (Bᵀ d B)] G
//
// The sums over channels, or tiles, are products of matrices, one for each point. A, B and G are those of an algorithm:
// `Dense` for stride 1, here; `Strided` for stride 2, in winograd_strided.h. float32, NCHW, CPU; needs the vector
// extensions of GCC 12 or Clang. Nothing depends on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>

#include "large_pages.h"

#if defined(__GNUC__) && defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SG2_WINOGRAD 1
#endif
#endif

#if defined(SG2_WINOGRAD)
#pragma GCC diagnostic push
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // nothing here is called from elsewhere: the ABI of vectors does not matter
#endif
namespace sg2 {
namespace winograd {

typedef float Vector __attribute__((vector_size(64)));  // one number of each of 16 tiles

constexpr int kLanes = 16;
constexpr int kTiles = 32;  // of a group: two vectors
constexpr int kRows = 8;    // output channels computed together
constexpr int kKernelSide = 6, kKernelPoints = 36;  // values of a transformed kernel along an axis; all

// What the processor adds up at a time, and how many rows of two such vectors fit its registers.
#if defined(__AVX512F__)
constexpr int kWidth = 16, kHeld = 8;
#elif defined(__AVX__)
constexpr int kWidth = 8, kHeld = 4;
#else
constexpr int kWidth = 4, kHeld = 8;
#endif
typedef float Register __attribute__((vector_size(4 * kWidth)));

template <class V>
inline V load(const float* from) {
    V value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

template <class V>
inline void store(float* to, const V& value) {
    std::memcpy(to, &value, sizeof value);
}

class Buffer {
public:
    explicit Buffer(int64_t size)
        : data_(static_cast<float*>(::operator new(size * sizeof(float), std::align_val_t(64)))) {
        prefer_large_pages(data_, size * static_cast<int64_t>(sizeof(float)));
    }
    ~Buffer() { ::operator delete(data_, std::align_val_t(64)); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    float* get() const { return data_; }

private:
    float* data_;
};

// ---------------------------------------------------------------------------------------------------------------------
// Transforms along one axis, for the points 0, ±a, ±b and infinity. With 5/8 and 3/2 all of A and B is exact in float,
// and errors come out a quarter as large as with 1 and 2 (2.2e-6 of the largest result, not 8.4e-6).
// ---------------------------------------------------------------------------------------------------------------------

struct Dense {  // F(4x4, 3x3): tiles from 6x6 inputs, a quarter of the products
    static constexpr int kSide = 6, kPoints = 36;  // inputs of a tile along an axis; its products
    static constexpr int kPanel = kRows;           // output channels whose products are taken before any is transformed
    static constexpr int kernel_of(int place) { return place; }

    static constexpr float a1 = 0.625f, a2 = a1 * a1, a3 = a2 * a1;
    static constexpr float b1 = 1.5f, b2 = b1 * b1, b3 = b2 * b1;
    static constexpr float g0 = 1 / (a2 * b2), ga = 1 / (2 * a2 * (a2 - b2)), gb = 1 / (2 * b2 * (b2 - a2));

    template <class V>
    static inline void input(const V* d, int s, V* t, int q) {  // Bᵀ d: 6 to 6
        const V even_a = d[4 * s] - b2 * d[2 * s], odd_a = a1 * d[3 * s] - (a1 * b2) * d[s];
        const V even_b = d[4 * s] - a2 * d[2 * s], odd_b = b1 * d[3 * s] - (b1 * a2) * d[s];
        t[0] = (a2 * b2) * d[0] - (a2 + b2) * d[2 * s] + d[4 * s];
        t[q] = even_a + odd_a;
        t[2 * q] = even_a - odd_a;
        t[3 * q] = even_b + odd_b;
        t[4 * q] = even_b - odd_b;
        t[5 * q] = (a2 * b2) * d[s] - (a2 + b2) * d[3 * s] + d[5 * s];
    }

    template <class V>
    static inline void output(const V* m, int s, V* y, int q) {  // Aᵀ m: 6 to 4
        const V even_a = m[s] + m[2 * s], odd_a = m[s] - m[2 * s];
        const V even_b = m[3 * s] + m[4 * s], odd_b = m[3 * s] - m[4 * s];
        y[0] = m[0] + even_a + even_b;
        y[q] = a1 * odd_a + b1 * odd_b;
        y[2 * q] = a2 * even_a + b2 * even_b;
        y[3 * q] = a3 * odd_a + b3 * odd_b + m[5 * s];
    }

    template <class V>
    static inline void gradient(const V* y, int s, V* z, int q) {  // A y: 4 to 6
        const V even_a = y[0] + a2 * y[2 * s], odd_a = a1 * y[s] + a3 * y[3 * s];
        const V even_b = y[0] + b2 * y[2 * s], odd_b = b1 * y[s] + b3 * y[3 * s];
        z[0] = y[0];
        z[q] = even_a + odd_a;
        z[2 * q] = even_a - odd_a;
        z[3 * q] = even_b + odd_b;
        z[4 * q] = even_b - odd_b;
        z[5 * q] = y[3 * s];
    }

    template <class V>
    static inline void kernel(const V* g, int s, V* u, int q) {  // G g: 3 to 6
        const V even_a = ga * (g[0] + a2 * g[2 * s]), odd_a = (ga * a1) * g[s];
        const V even_b = gb * (g[0] + b2 * g[2 * s]), odd_b = (gb * b1) * g[s];
        u[0] = g0 * g[0];
        u[q] = even_a + odd_a;
        u[2 * q] = even_a - odd_a;
        u[3 * q] = even_b + odd_b;
        u[4 * q] = even_b - odd_b;
        u[5 * q] = g[2 * s];
    }

    template <class V>
    static inline void kernel_transposed(const V* u, int s, V* g, int q) {  // Gᵀ u: 6 to 3
        const V even_a = ga * (u[s] + u[2 * s]), even_b = gb * (u[3 * s] + u[4 * s]);
        g[0] = g0 * u[0] + even_a + even_b;
        g[q] = (ga * a1) * (u[s] - u[2 * s]) + (gb * b1) * (u[3 * s] - u[4 * s]);
        g[2 * q] = a2 * even_a + b2 * even_b + u[5 * s];
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// Between rows of pixels and vectors of tiles
// ---------------------------------------------------------------------------------------------------------------------

#define SG2_MIX(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)

// Rows of 4 pixels of each of 16 tiles: to the first two pixels, or all four, as vectors.
template <int PIXELS>
inline void split(const float* row, Vector* d) {
    const Vector a = load<Vector>(row), b = load<Vector>(row + 16);
    const Vector c = load<Vector>(row + 32), e = load<Vector>(row + 48);
    for (int half = 0; half < PIXELS / 2; ++half) {
        const Vector ab = half ? SG2_MIX(a, b, 2, 6, 10, 14, 18, 22, 26, 30, 3, 7, 11, 15, 19, 23, 27, 31)
                               : SG2_MIX(a, b, 0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
        const Vector ce = half ? SG2_MIX(c, e, 2, 6, 10, 14, 18, 22, 26, 30, 3, 7, 11, 15, 19, 23, 27, 31)
                               : SG2_MIX(c, e, 0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
        d[2 * half] = SG2_MIX(ab, ce, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
        d[2 * half + 1] = SG2_MIX(ab, ce, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    }
}

inline void join(const Vector* d, float* row) {
    for (int half = 0; half < 2; ++half) {
        const Vector ab = half ? SG2_MIX(d[0], d[1], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
                               : SG2_MIX(d[0], d[1], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        const Vector ce = half ? SG2_MIX(d[2], d[3], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
                               : SG2_MIX(d[2], d[3], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        store(row + 32 * half, SG2_MIX(ab, ce, 0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23));
        store(row + 32 * half + 16, SG2_MIX(ab, ce, 8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31));
    }
}

// Row i and row i + 8 take turns; four times over, rows of a 16x16 matrix become its columns.
inline void shuffle_rows(const Vector* from, Vector* to) {
    for (int i = 0; i < 8; ++i) {
        to[2 * i] = SG2_MIX(from[i], from[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        to[2 * i + 1] = SG2_MIX(from[i], from[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }
}

inline void transpose(Vector* d) {
    Vector t[kLanes];
    shuffle_rows(d, t);
    shuffle_rows(t, d);
    shuffle_rows(d, t);
    shuffle_rows(t, d);
}

#undef SG2_MIX

// Sizes of a call: x [batch, in, height, width], padded by `pad`; y [batch, out, out_height, out_width].
struct Shape {
    int64_t batch, in, out, height, width, pad, stride = 1;
    int64_t out_height() const { return (height + 2 * pad - 3) / stride + 1; }
    int64_t out_width() const { return (width + 2 * pad - 3) / stride + 1; }
    int64_t rows() const { return (out_height() + 3) / 4; }  // of tiles, in an image
    int64_t columns() const { return (out_width() + 3) / 4; }
    int64_t tiles() const { return batch * rows() * columns(); }
    int64_t groups() const { return (tiles() + kTiles - 1) / kTiles; }
};

// Neighbouring tiles of one row of tiles, within a group of 32.
struct Strip {
    int64_t image, row, column, lane, length;
};

inline int find_strips(const Shape& s, int64_t group, Strip* strips) {
    int count = 0;
    int64_t tile = group * kTiles;
    const int64_t end = std::min(tile + kTiles, s.tiles());
    while (tile < end) {
        const int64_t column = tile % s.columns(), row = tile / s.columns();
        const int64_t length = std::min(s.columns() - column, end - tile);
        strips[count++] = {row / s.rows(), row % s.rows(), column, tile - group * kTiles, length};
        tile += length;
    }
    return count;
}

// Pixels from..from + count of a row, times a factor; 0 outside of it. Rows are short: a call of memmove would show.
inline void copy_pixels(float* to, const float* row, int64_t width, int64_t from, int64_t count, float factor = 1.f) {
    const int64_t begin = std::min(count, std::max<int64_t>(0, -from));
    const int64_t end = std::max(begin, std::min(count, width - from));
    for (int64_t i = 0; i < begin; ++i) to[i] = 0.f;
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) store(to + i, factor * load<Vector>(row + from + i));
    for (; i < end; ++i) to[i] = factor * row[from + i];
    for (; i < count; ++i) to[i] = 0.f;
}

// The lanes of tiles that a group has.
inline int64_t lanes_of(const Strip* strips, int count) {
    return count ? strips[count - 1].lane + strips[count - 1].length : 0;
}

// Asks for the pixels of a channel that transform_input will read: channels lie too far apart to be foreseen.
inline void prefetch_input(const Shape& s, const float* x, int64_t channel, const Strip* strips, int count) {
    constexpr int64_t kCacheLine = 16;
    for (int i = 0; i < count; ++i) {
        const int64_t step = 4 * s.stride, beyond = 3 - s.stride;  // a tile's inputs: step + beyond
        const int64_t top = std::max<int64_t>(0, step * strips[i].row - s.pad);
        const int64_t bottom = std::min(s.height, step * (strips[i].row + 1) - s.pad + beyond);
        const int64_t left = std::max<int64_t>(0, step * strips[i].column - s.pad);
        const int64_t right = std::min(s.width, step * (strips[i].column + strips[i].length) - s.pad + beyond);
        const float* const plane = x + (strips[i].image * s.in + channel) * s.height * s.width;
        for (int64_t y = top; y < bottom; ++y) {
            for (int64_t at = left; at < right; at += kCacheLine) __builtin_prefetch(plane + y * s.width + at);
        }
    }
}

// Along both axes, from kSide·kSide inputs d of 16 tiles; changes d.
template <class A>
inline void transform_and_store_input(Vector* d, float* out, int64_t stride) {
    Vector t[A::kPoints];
    for (int i = 0; i < A::kSide; ++i) A::input(d + i, A::kSide, t + i, A::kSide);
    for (int i = 0; i < A::kSide; ++i) A::input(t + A::kSide * i, 1, d + A::kSide * i, 1);
    for (int k = 0; k < A::kPoints; ++k) store(out + k * stride, d[k]);
}

// One channel's neighbourhoods of a group of tiles, transformed: point k of tile t to out[k · stride + t].
template <class A>
void transform_input(const Shape& s, const float* x, int64_t channel, const Strip* strips, int count, float* out,
                     int64_t stride);

// `factors`: of every channel of every image [batch, in]; null for none.
inline void transform_scaled_input(const Shape& s, const float* x, const float* factors, int64_t channel,
                                   const Strip* strips, int count, float* out, int64_t stride) {
    alignas(64) float near[6][4 * kTiles], far[6][4 * kTiles];  // pixels 0..3 and 4..7 of each tile
    const int64_t unused = 4 * lanes_of(strips, count);
    for (int line = 0; line < 6; ++line) {
        std::fill(near[line] + unused, near[line] + 4 * kTiles, 0.f);
        std::fill(far[line] + unused, far[line] + 4 * kTiles, 0.f);
    }
    for (int i = 0; i < count; ++i) {
        const Strip& strip = strips[i];
        const int64_t plane = strip.image * s.in + channel, left = 4 * strip.column - s.pad;
        const float factor = factors ? factors[plane] : 1.f;
        for (int line = 0; line < 6; ++line) {
            const int64_t y = 4 * strip.row + line - s.pad;
            const bool outside = y < 0 || y >= s.height;
            const float* row = outside ? x : x + (plane * s.height + y) * s.width;
            const int64_t width = outside ? 0 : s.width;
            copy_pixels(near[line] + 4 * strip.lane, row, width, left, 4 * strip.length, factor);
            copy_pixels(far[line] + 4 * strip.lane, row, width, left + 4, 4 * strip.length, factor);
        }
    }
    for (int v = 0; v < kTiles / kLanes; ++v) {
        Vector d[Dense::kPoints];
        for (int line = 0; line < 6; ++line) {
            split<4>(near[line] + 64 * v, d + 6 * line);
            split<2>(far[line] + 64 * v, d + 6 * line + 4);
        }
        transform_and_store_input<Dense>(d, out + v * kLanes, stride);
    }
}

template <>
inline void transform_input<Dense>(const Shape& s, const float* x, int64_t channel, const Strip* strips, int count,
                                   float* out, int64_t stride) {
    transform_scaled_input(s, x, nullptr, channel, strips, count, out, stride);
}

inline void write_tiles(const Shape& s, const float (*rows)[4 * kTiles], int64_t channel, const Strip* strips,
                        int count, float* y) {
    for (int i = 0; i < count; ++i) {
        const Strip& strip = strips[i];
        const int64_t left = 4 * strip.column, pixels = std::min(4 * strip.length, s.out_width() - left);
        for (int64_t line = 0; line < std::min<int64_t>(4, s.out_height() - 4 * strip.row); ++line) {
            const int64_t row = (strip.image * s.out + channel) * s.out_height() + 4 * strip.row + line;
            const float* const from = rows[line] + 4 * strip.lane;
            std::copy(from, from + pixels, y + row * s.out_width() + left);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Convolution; and for stride 1 the gradient by the image, which is the convolution with the kernels turned and swapped
// ---------------------------------------------------------------------------------------------------------------------

inline int64_t kernel_size(const Shape& s) { return (s.out + kRows - 1) / kRows * kKernelPoints * s.in * kRows; }

// Which value of a kernel takes part in a product of a tile; along an axis `A::kernel_of` says so.
template <class A>
constexpr int kernel_point(int point) {
    return kKernelSide * A::kernel_of(point / A::kSide) + A::kernel_of(point % A::kSide);
}

// Kernels w [out, in, 3, 3] as u [out / 8, 36, in, 8]; `swapped`: w is [in, out, 3, 3]; `turned`: by half a turn.
template <class A>
void transform_kernels(const Shape& s, const float* w, bool swapped, bool turned, int64_t block, float* u) {
    typedef float Row __attribute__((vector_size(4 * kRows)));
    for (int64_t in = 0; in < s.in; ++in) {
        Row g[9] = {}, t[3 * kKernelSide], r[kKernelPoints];
        for (int lane = 0; lane < kRows && block * kRows + lane < s.out; ++lane) {
            const int64_t out = block * kRows + lane;
            const float* taps = w + 9 * (swapped ? in * s.out + out : out * s.in + in);
            for (int i = 0; i < 9; ++i) g[i][lane] = taps[turned ? 8 - i : i];
        }
        for (int i = 0; i < 3; ++i) A::kernel(g + i, 3, t + i, 3);
        for (int i = 0; i < kKernelSide; ++i) A::kernel(t + 3 * i, 1, r + kKernelSide * i, 1);
        for (int k = 0; k < kKernelPoints; ++k) store(u + ((block * kKernelPoints + k) * s.in + in) * kRows, r[k]);
    }
}

// [8, in] × [in, 32] for one point.
inline void multiply(const float* u, const float* v, int64_t in, float* m, int64_t stride) {
    for (int from = 0; from < kTiles; from += 2 * kWidth) {
        for (int row = 0; row < kRows; row += kHeld) {
            Register sum[kHeld][2] = {};
            for (int64_t c = 0; c < in; ++c) {
                const Register p = load<Register>(v + c * kTiles + from);
                const Register q = load<Register>(v + c * kTiles + from + kWidth);
#pragma GCC unroll 8
                for (int i = 0; i < kHeld; ++i) {
                    const float factor = u[c * kRows + row + i];
                    sum[i][0] += factor * p;
                    sum[i][1] += factor * q;
                }
            }
            for (int i = 0; i < kHeld; ++i) {
                store(m + (row + i) * stride + from, sum[i][0]);
                store(m + (row + i) * stride + from + kWidth, sum[i][1]);
            }
        }
    }
}

// Between the points of a group of transformed tiles. Not a power of two: streams that fall into one set of the cache
// would evict each other.
inline int64_t point_stride(const Shape& s) { return s.in * kTiles + kLanes; }

// Products of a transformed group of tiles with `rows` output channels from `first` on: m [rows, kPoints, 32].
template <class A>
void multiply_points(const Shape& s, const float* u, const float* v, int64_t first, int64_t rows, float* m) {
    for (int k = 0; k < A::kPoints; ++k) {
        for (int64_t row = 0; row < rows; row += kRows) {
            const float* const kernels = u + ((first + row) * kKernelPoints + kernel_point<A>(k) * kRows) * s.in;
            multiply(kernels, v + k * point_stride(s), s.in, m + (row * A::kPoints + k) * kTiles,
                     A::kPoints * kTiles);
        }
    }
}

// One output channel's pixels, as four lines of 32 tiles, from its products [kPoints, 32].
template <class A>
void transform_output(const float* m, float (*lines)[4 * kTiles]) {
    for (int part = 0; part < kTiles / kLanes; ++part) {
        Vector d[A::kPoints], t[4 * A::kSide], r[16];
        for (int k = 0; k < A::kPoints; ++k) d[k] = load<Vector>(m + k * kTiles + part * kLanes);
        for (int i = 0; i < A::kSide; ++i) A::output(d + i, A::kSide, t + i, A::kSide);
        for (int i = 0; i < 4; ++i) A::output(t + A::kSide * i, 1, r + 4 * i, 1);
        for (int i = 0; i < 4; ++i) join(r + 4 * i, lines[i] + 64 * part);
    }
}

// Working memory of `convolve`: transformed inputs of a group, products of a panel of output channels.
template <class A>
int64_t scratch_size(const Shape& s) {
    return A::kPoints * (point_stride(s) + A::kPanel * kTiles);
}

// Groups begin..end of tiles; u of transform_kernels.
template <class A>
void convolve(const Shape& s, const float* x, const float* u, float* scratch, float* y, int64_t begin, int64_t end) {
    alignas(64) float lines[4][4 * kTiles];
    float* const m = scratch + A::kPoints * point_stride(s);
    Strip strips[kTiles];
    for (int64_t group = begin; group < end; ++group) {
        const int count = find_strips(s, group, strips);
        for (int64_t c = 0; c < s.in; ++c) {
            if (c + 1 < s.in) prefetch_input(s, x, c + 1, strips, count);
            transform_input<A>(s, x, c, strips, count, scratch + c * kTiles, point_stride(s));
        }
        for (int64_t first = 0; first < s.out; first += A::kPanel) {
            const int64_t rows = std::min<int64_t>(A::kPanel, s.out - first);
            multiply_points<A>(s, u, scratch, first, rows, m);
            for (int64_t row = 0; row < rows; ++row) {
                transform_output<A>(m + row * A::kPoints * kTiles, lines);
                write_tiles(s, lines, first + row, strips, count, y);
            }
        }
    }
}

}  // namespace winograd
}  // namespace sg2
#pragma GCC diagnostic pop
#endif
