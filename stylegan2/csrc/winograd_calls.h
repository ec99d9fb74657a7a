// The convolutions of winograd.h and styled_convolution.h over cores.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "interface.h"
#include "large_pages.h"
#include "styled_convolution.h"
#include "threads.h"
#include "winograd.h"
#include "winograd_kernel_gradient.h"
#include "winograd_strided.h"

#if defined(SG2_WINOGRAD)
namespace sg2 {
namespace {

winograd::Shape shape_of(const Sg2Winograd& args) {
    return {args.batch, args.in, args.out, args.height, args.width, args.pad, args.stride};
}

int64_t blocks(int64_t channels) { return (channels + winograd::kRows - 1) / winograd::kRows; }

// Kernels w of y = w * x, or where they are turned and swapped the gradient by an image.
template <class A>
void winograd_convolution(const winograd::Shape& s, bool gradient, int32_t threads, const float* x, const float* w,
                          float* y) {
    const winograd::Buffer kernels(winograd::kernel_size(s));
    const int parts = threads_for(s.tiles() * s.in * s.out, threads);
    in_parts(blocks(s.out), parts, [&](int, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            winograd::transform_kernels<A>(s, w, gradient, gradient, i, kernels.get());
        }
    });
    const int64_t each = winograd::scratch_size<A>(s);
    const winograd::Buffer scratch(each * parts);  // here: a thread that finds no memory could not say so
    in_parts(s.groups(), parts, [&](int part, int64_t begin, int64_t end) {
        winograd::convolve<A>(s, x, kernels.get(), scratch.get() + part * each, y, begin, end);
    });
}

// Calls run(part, i, begin, end) for all i of `size`, and for channels begin..end in blocks of `block`, all in all once
// for every pair. The thread with most to do gets as little as can be; among equals few share an i, because what i needs
// for all channels each of them does for itself.
template <class Run>
void in_parts_of_both(int64_t size, int64_t channels, int64_t block, int parts, const Run& run) {
    const int64_t all = (channels + block - 1) / block;
    int rows = 1, columns = 1;
    int64_t longest = size * all;
    for (int r = static_cast<int>(std::min<int64_t>(size, parts)); r >= 1; --r) {
        const int c = static_cast<int>(std::min<int64_t>(all, parts / r));
        const int64_t work = ((size + r - 1) / r) * ((all + c - 1) / c);
        if (work < longest) rows = r, columns = c, longest = work;
    }
    in_parts(rows * columns, rows * columns, [&](int part, int64_t, int64_t) {
        const int row = part / columns, column = part % columns;
        const int64_t begin = all * column / columns * block, end = all * (column + 1) / columns * block;
        for (int64_t i = size * row / rows; i < size * (row + 1) / rows; ++i) {
            run(part, i, begin, std::min(channels, end));
        }
    });
}

// The gradient by x of a convolution of stride 2.
void winograd_strided_gradient(const winograd::Shape& s, int32_t threads, const float* y, const float* w, float* x) {
    const winograd::Shape swapped = winograd::swap_channels(s);
    const winograd::Buffer kernels(winograd::kernel_size(swapped));
    const int parts = threads_for(s.tiles() * s.in * s.out, threads);
    in_parts(blocks(s.in), parts, [&](int, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            winograd::transform_kernels<winograd::Strided>(swapped, w, true, false, i, kernels.get());
        }
    });
    const int64_t each = winograd::spread_scratch(s), together = winograd::images_together(s);
    const winograd::Buffer scratch(each * parts);
    const int64_t sets = (s.batch + together - 1) / together;
    in_parts_of_both(sets, s.in, winograd::kRows, parts, [&](int part, int64_t set, int64_t begin, int64_t end) {
        winograd::Shape some = s;
        const int64_t first = set * together;
        some.batch = std::min(together, s.batch - first);
        winograd::spread(some, y + first * s.out * s.out_height() * s.out_width(), kernels.get(), begin, end,
                         scratch.get() + part * each, x + first * s.in * s.height * s.width);
    });
}

template <class A>
void winograd_kernel_gradient(const winograd::Shape& s, int32_t threads, const float* x, const float* g, float* w) {
    const winograd::KernelGradient<A> sizes(s);
    const int parts = threads_for(s.tiles() * s.in * s.out, threads);
    const winograd::Buffer sums(sizes.sums * sizes.slabs), scratch(sizes.scratch() * parts);
    in_parts_of_both(sizes.slabs, sizes.out, winograd::kChunk, parts,
                     [&](int part, int64_t slab, int64_t begin, int64_t end) {
                         winograd::sum_slab(sizes, x, g, slab, begin, end, scratch.get() + part * sizes.scratch(),
                                            sums.get() + slab * sizes.sums);
                     });
    in_parts(s.out, parts, [&](int, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) winograd::finish_kernels(sizes, sums.get(), i, w);
    });
}

void winograd_by(const Sg2Winograd& args, const float* first, const float* second, float* out) {
    using winograd::Dense;
    using winograd::Strided;
    const winograd::Shape s = shape_of(args);
    const bool strided = args.stride == 2;
    if (args.what == 2) {
        const auto run = strided ? winograd_kernel_gradient<Strided> : winograd_kernel_gradient<Dense>;
        run(s, args.threads, first, second, out);
    } else if (args.what == 1 && strided) {
        winograd_strided_gradient(s, args.threads, first, second, out);
    } else if (args.what == 1) {  // the gradient by x is a convolution that pads y by 2 − pad
        const winograd::Shape turned{s.batch, s.out, s.in, s.out_height(), s.out_width(), 2 - s.pad};
        winograd_convolution<Dense>(turned, true, args.threads, first, second, out);
    } else {
        const auto run = strided ? winograd_convolution<Strided> : winograd_convolution<Dense>;
        run(s, false, args.threads, first, second, out);
    }
}

winograd::Shape shape_of(const Sg2Styled& args) {
    return {args.batch, args.in, args.up * args.up * args.out, args.height, args.width, 1};
}

void styled_kernels(const Sg2Styled& args, const float* w, float* kernels) {
    const winograd::Shape s = shape_of(args);
    const int parts = threads_for(winograd::kernel_size(s), args.threads);
    in_parts(blocks(s.out), parts, [&](int, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            winograd::transform_kernels<winograd::Dense>(s, w, false, false, i, kernels);
        }
    });
}

void styled_convolution(const Sg2Styled& args, const float* x, const float* kernels, const float* styles,
                        const float* scale, const float* noise, const float* bias, float* y) {
    const winograd::Shape s = shape_of(args);
    const int64_t pixels = args.up * args.up * args.height * args.width;
    prefer_large_pages(y, args.batch * args.out * pixels * static_cast<int64_t>(sizeof(float)));
    const float limit = args.clamp < 0 ? std::numeric_limits<float>::infinity() : static_cast<float>(args.clamp);
    const winograd::Finish finish{args.out, scale, noise, bias, args.noise_per_image ? pixels : 0,
                                  static_cast<float>(args.slope), static_cast<float>(args.gain), limit};
    const auto run = args.up == 2 ? winograd::convolve_and_finish<2> : winograd::convolve_and_finish<1>;
    const int parts = threads_for(s.tiles() * s.in * s.out, args.threads);
    const int64_t each = winograd::Dense::kPoints * winograd::point_stride(s);
    const winograd::Buffer scratch(each * parts);
    in_parts(s.groups(), parts, [&](int part, int64_t begin, int64_t end) {
        run(s, finish, x, styles, kernels, scratch.get() + part * each, y, begin, end);
    });
}

}  // namespace
}  // namespace sg2
#endif
