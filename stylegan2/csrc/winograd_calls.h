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

#if defined(SG2_WINOGRAD)
namespace sg2 {
namespace {

void winograd_convolution(const Sg2Winograd& args, const float* x, const float* w, float* y) {
    const bool turned = args.what == 1;  // the gradient by x pads y by 2 − pad
    const winograd::Shape s = turned ? winograd::Shape{args.batch, args.out, args.in, args.height + 2 * args.pad - 2,
                                                       args.width + 2 * args.pad - 2, 2 - args.pad}
                                     : winograd::Shape{args.batch, args.in, args.out, args.height, args.width, args.pad};
    const winograd::Buffer kernels(winograd::kernel_size(s));
    const int64_t work = s.tiles() * s.in * s.out;
    const int parts = threads_for(work, args.threads);
    in_parts((s.out + winograd::kRows - 1) / winograd::kRows, parts, [&](int, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) winograd::transform_kernels(s, w, turned, i, kernels.get());
    });
    const int64_t each = winograd::kPoints * winograd::point_stride(s);
    const winograd::Buffer scratch(each * parts);  // here: a thread that finds no memory could not say so
    in_parts(s.groups(), parts, [&](int part, int64_t begin, int64_t end) {
        winograd::convolve(s, x, kernels.get(), scratch.get() + part * each, y, begin, end);
    });
}

void winograd_kernel_gradient(const Sg2Winograd& args, const float* x, const float* g, float* w) {
    const winograd::Shape s{args.batch, args.in, args.out, args.height, args.width, args.pad};
    const winograd::Workspace space(s);
    const int parts = threads_for(s.tiles() * s.in * s.out, args.threads);
    for (int64_t first = 0; first < s.groups(); first += space.groups) {
        in_parts(s.in + s.out, parts, [&](int, int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) winograd::transform_channel(s, space, x, g, i, first);
        });
        in_parts(winograd::kPoints, parts, [&](int, int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) winograd::add_products(s, space, static_cast<int>(i));
        });
    }
    in_parts(winograd::fours(s.out), parts, [&](int, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) winograd::finish_kernels(s, space, i, w);
    });
}

winograd::Shape shape_of(const Sg2Styled& args) {
    return {args.batch, args.in, args.up * args.up * args.out, args.height, args.width, 1};
}

void styled_kernels(const Sg2Styled& args, const float* w, float* kernels) {
    const winograd::Shape s = shape_of(args);
    in_parts((s.out + winograd::kRows - 1) / winograd::kRows, threads_for(winograd::kernel_size(s), args.threads),
             [&](int, int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) winograd::transform_kernels(s, w, false, i, kernels);
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
    const int64_t each = winograd::kPoints * winograd::point_stride(s);
    const winograd::Buffer scratch(each * parts);
    in_parts(s.groups(), parts, [&](int part, int64_t begin, int64_t end) {
        run(s, finish, x, styles, kernels, scratch.get() + part * each, y, begin, end);
    });
}

}  // namespace
}  // namespace sg2
#endif
