// Up-sampling, FIR and down-sampling of one line of the result; for CPU and CUDA.
//
// Along an axis, output m lies at q = m·down − pad of the zero-stuffed image. Of the taps that it meets, only those
// at pixels count: tap t0 + k·up at pixel n0 + k, where n0 = ⌈q / up⌉ and t0 = n0·up − q, its phase. So the sum
// has ⌈taps / up⌉ terms (Crochiere & Rabiner 1983, Multirate Digital Signal Processing, chapter 2: polyphase).
//
// The filter comes as a sum of `terms` outer products. One output row takes, for each of them, a weighted sum of
// input rows into `line`, which has zeros where the image ends, and a weighted sum of pixels of that line.
//
// Pixels are vectors of `lanes` channels, which lie side by side in `line`: with channels-last images as in
// memory, with one lane for images that are planes.
#pragma once

#include "portable.h"

namespace sg2 {

template <class Index>
struct Axis {
    Index in, out;
    Index in_stride, out_stride;
    int32_t up, down, pad;
    int32_t count;  // taps per phase
};

template <class A, class Index>
struct Fir {
    Axis<Index> x, y;
    Index channel_in_stride, channel_out_stride;
    int32_t terms;
    // [term, phase, count], 0 behind the last tap
    const A* weights_x;
    const A* weights_y;
};

// Where output m starts to read: pixel and phase.
template <class Index>
struct Start {
    Index pixel;
    int32_t phase;

    SG2_HD Start(const Axis<Index>& axis, Index m) {
        const Index q = m * static_cast<Index>(axis.down) - static_cast<Index>(axis.pad);
        const Index up = static_cast<Index>(axis.up);
        pixel = q / up;
        pixel += pixel * up < q ? 1 : 0;  // division rounds towards 0
        phase = static_cast<int32_t>(pixel * up - q);
    }
};

// The outputs [begin, end) of one row, and the pixels that they read: [first, stop), which may lie outside.
// begin is a multiple of the up-sampling factor.
template <class Index>
struct Segment {
    Index begin, end;
    Start<Index> even, odd;  // of its first two outputs
    Index first, stop;

    SG2_HD Segment(const Axis<Index>& x, Index from, Index to)
        : begin(from), end(to), even(x, from), odd(x, from + 1), first(even.pixel) {
        stop = Start<Index>(x, to - 1).pixel + x.count;
    }
};

// The taps of one phase; COUNT of them, or as many as the program finds out (0).
template <class A, int COUNT>
struct Taps {
    A weight[COUNT];

    SG2_HD Taps(const A* from, int32_t) {
        for (int k = 0; k < COUNT; ++k) weight[k] = from[k];
    }
    template <class T, class Index>
    SG2_HD A sum(const T* at, Index step) const {
        A total = weight[0] * widen(at[0]);
        for (int k = 1; k < COUNT; ++k) total += weight[k] * widen(at[k * step]);
        return total;
    }
};

template <class A>
struct Taps<A, 0> {
    const A* weight;
    int32_t count;

    SG2_HD Taps(const A* from, int32_t number) : weight(from), count(number) {}
    template <class T, class Index>
    SG2_HD A sum(const T* at, Index step) const {
        A total = A(0);
        for (int32_t k = 0; k < count; ++k) total += weight[k] * widen(at[k * step]);
        return total;
    }
};

// A Team is who works on a line: team.each<PLANAR>(n, lanes, f) calls f(pixel, lane) for all of them, in any order,
// team.sync() waits until all have come so far. PLANAR: there is one lane.

// line[pixel, lane] (+)= Σ_k weights[k] · rows[k, pixel, lane]
template <bool PLANAR, bool UNIT, bool ADD, int COUNT, class Team, class T, class A, class Index>
SG2_HD void sum_rows(const Team& team, const T* rows, Index row_stride, Index pixel_stride, Index lane_stride,
                     const A* weights, Index pixels, int lanes, A* line) {
    const Taps<A, COUNT> taps(weights, COUNT);
    team.template each<PLANAR>(pixels, lanes, [=](Index pixel, int lane) SG2_INLINE_LAMBDA {
        const Index at = PLANAR ? (UNIT ? pixel : pixel * pixel_stride)
                                : pixel * pixel_stride + (UNIT ? lane : lane * lane_stride);
        const Index to = PLANAR ? pixel : pixel * lanes + lane;
        const A total = taps.sum(rows + at, row_stride);
        line[to] = ADD ? line[to] + total : total;
    });
}

// The pixels [first, stop) of the weighted sum of the input rows from `start` on.
template <bool PLANAR, bool UNIT, class Team, class T, class A, class Index>
SG2_PASS void fill_line(const Team& team, const Fir<A, Index>& fir, const T* x, const Start<Index>& start, int32_t term,
                      const Segment<Index>& s, int lanes, A* line) {
    Index skip = start.pixel < 0 ? -start.pixel : 0;
    const Index beyond = start.pixel + fir.y.count - fir.y.in;
    Index count = fir.y.count - skip - (beyond > 0 ? beyond : 0);
    const A* const column = fir.weights_y + (term * fir.y.up + start.phase) * fir.y.count;
    if (fir.terms > 1) {  // a filter taken row by row has a single one in each term
        for (; count > 0 && column[skip] == A(0); --count) ++skip;
        while (count > 0 && column[skip + count - 1] == A(0)) --count;
    }
    const Index left = s.first < 0 ? 0 : (s.first < fir.x.in ? s.first : fir.x.in);
    const Index right = s.stop < left ? left : (s.stop < fir.x.in ? s.stop : fir.x.in);
    const Index pixels = count > 0 ? right - left : 0;

    // What lies outside the image: all, or the ends
    const Index before = pixels > 0 ? left - s.first : s.stop - s.first;
    const Index behind = pixels > 0 ? s.stop - right : 0;
    A* const tail = line + (s.stop - s.first - behind) * lanes;
    const auto clear = [](A* to, Index i) SG2_INLINE_LAMBDA { to[i] = A(0); };
    team.template each<true>(before * lanes, 1, [=](Index i, int) SG2_INLINE_LAMBDA { clear(line, i); });
    team.template each<true>(behind * lanes, 1, [=](Index i, int) SG2_INLINE_LAMBDA { clear(tail, i); });
    if (pixels <= 0) return;

    const A* weights = column + skip;
    const T* rows = x + (start.pixel + skip) * fir.y.in_stride + left * fir.x.in_stride;
    A* const to = line + before * lanes;
    const Index pixel_stride = fir.x.in_stride, lane_stride = fir.channel_in_stride;
#define SG2_SUM_ROWS(ADD, COUNT)                                                                                \
    sum_rows<PLANAR, UNIT, ADD, COUNT>(team, rows, fir.y.in_stride, pixel_stride, lane_stride, weights, pixels, \
                                       lanes, to)
    // Several rows at a time; not on the CPU where their numbers are apart, which is rare and slow anyway
    constexpr bool kSeveral = UNIT || Team::kSeveralRows;
    for (bool add = false; count > 0; add = true) {
        const Index step = kSeveral && count >= 4 ? 4 : (kSeveral && count >= 2 && !add ? 2 : 1);
        if (step == 1 && add) {
            SG2_SUM_ROWS(true, 1);
        } else if (step == 1) {
            SG2_SUM_ROWS(false, 1);
        } else if constexpr (kSeveral) {
            if (step == 2) {
                SG2_SUM_ROWS(false, 2);
            } else if (add) {
                SG2_SUM_ROWS(true, 4);
            } else {
                SG2_SUM_ROWS(false, 4);
            }
        }
        weights += step;
        rows += step * fir.y.in_stride;
        count -= step;
    }
#undef SG2_SUM_ROWS
}

// One phase: the outputs phase, phase + up, … of the segment.
template <bool PLANAR, bool ADD, int DOWN, int COUNT, class Team, class Out, class A, class Index>
SG2_HD void sum_phase(const Team& team, const Fir<A, Index>& fir, const A* line, const A* weights, Index first,
                      Index outputs, int lanes, Out* to, Index pixel_stride, Index lane_stride) {
    const Index down = DOWN ? DOWN : fir.x.down;
    const Taps<A, COUNT> taps(weights, fir.x.count);
    team.template each<PLANAR>(outputs, lanes, [=](Index j, int lane) SG2_INLINE_LAMBDA {
        const Index from = (first + j * down) * lanes + lane;
        const A total = taps.sum(line + from, static_cast<Index>(lanes));
        Out& out = to[j * pixel_stride + lane * lane_stride];
        if constexpr (ADD) {
            out += total;
        } else {
            narrow(total, out);
        }
    });
}

// The weighted sums of pixels of `line`, to `to`: stored, or (ADD) added to what is there.
// UNIT: the outputs of planar images, or the lanes of others, lie side by side.
template <bool PLANAR, bool UNIT, bool ADD, int UP, int DOWN, int COUNT, class Team, class Out, class A,
          class Index>
SG2_PASS void sum_pixels(const Team& team, const Fir<A, Index>& fir, const A* line, int32_t term,
                       const Segment<Index>& s, int lanes, Out* to, Index pixel_stride, Index lane_stride) {
    if (UNIT && PLANAR) pixel_stride = 1;
    if (UNIT && !PLANAR) lane_stride = 1;
    if (PLANAR) lane_stride = 0;
    const int32_t up = UP ? UP : fir.x.up;
    const Index outputs = s.end - s.begin;
    const A* const weights = fir.weights_x + term * fir.x.up * fir.x.count;
    if constexpr (PLANAR && UP == 2) {
        // Both phases at once, so that neighbours are stored together
        const Start<Index>&even = s.even, &odd = s.odd;
        const Taps<A, COUNT> even_taps(weights + even.phase * fir.x.count, fir.x.count);
        const Taps<A, COUNT> odd_taps(weights + odd.phase * fir.x.count, fir.x.count);
        const A* const even_line = line + (even.pixel - s.first);
        const A* const odd_line = line + (odd.pixel - s.first);
        const Index down = DOWN ? DOWN : fir.x.down;
        team.template each<true>(outputs / 2, 1, [=](Index j, int) SG2_INLINE_LAMBDA {
            const A total_even = even_taps.sum(even_line + j * down, Index(1));
            const A total_odd = odd_taps.sum(odd_line + j * down, Index(1));
            Out* const out = to + 2 * j * pixel_stride;
            if constexpr (ADD) {
                out[0] += total_even;
                out[pixel_stride] += total_odd;
            } else {
                narrow(total_even, out[0]);
                narrow(total_odd, out[pixel_stride]);
            }
        });
        if (outputs % 2) {
            const Index last = outputs - 1;
            sum_phase<true, ADD, DOWN, COUNT>(team, fir, even_line + last / 2 * down,
                                              weights + even.phase * fir.x.count, Index(0), Index(1), 1,
                                              to + last * pixel_stride, Index(1), lane_stride);
        }
    } else {
        for (int32_t i = 0; i < up && i < outputs; ++i) {
            const Start<Index> start = i == 0 ? s.even : (i == 1 ? s.odd : Start<Index>(fir.x, s.begin + i));
            sum_phase<PLANAR, ADD, DOWN, COUNT>(team, fir, line, weights + start.phase * fir.x.count,
                                                start.pixel - s.first, UP == 1 ? outputs : (outputs - i + up - 1) / up,
                                                PLANAR ? 1 : lanes, to + i * pixel_stride, up * pixel_stride,
                                                lane_stride);
        }
    }
}

// The finished line `sums` to the image.
template <bool PLANAR, bool UNIT, class Team, class T, class A, class Index>
SG2_PASS void store_line(const Team& team, const Fir<A, Index>& fir, const A* sums, Index outputs, int lanes, T* to) {
    const Index pixel_stride = fir.x.out_stride, lane_stride = fir.channel_out_stride;
    team.template each<PLANAR>(outputs, lanes, [=](Index pixel, int lane) SG2_INLINE_LAMBDA {
        const Index at = PLANAR ? (UNIT ? pixel : pixel * pixel_stride)
                                : pixel * pixel_stride + (UNIT ? lane : lane * lane_stride);
        narrow(sums[PLANAR ? pixel : pixel * lanes + lane], to[at]);
    });
}

// One row of the result, or a segment of it; `row` is where it starts. x: first row and channel of the input image;
// y: that row of the output image, same channel. line: (stop − first)·lanes numbers. sums: (end − begin)·lanes
// numbers, needed unless `direct`, which stores sums as soon as they are known: only for filters of one term.
// Passes: the functions above, as compiled for the case at hand.
template <class Team, class Passes, class T, class A, class Index>
SG2_HD void upfirdn2d_line(const Team& team, const Passes& passes, const Fir<A, Index>& fir, const T* x, T* y,
                           const Start<Index>& row, const Segment<Index>& s, int lanes, bool direct, A* line, A* sums) {
    y += s.begin * fir.x.out_stride;
    const Index stride = static_cast<Index>(lanes);
    for (int32_t term = 0; term < fir.terms; ++term) {
        passes.fill(team, fir, x, row, term, s, lanes, line);
        team.sync();
        if (direct) {
            passes.sum(team, fir, line, term, s, lanes, y, fir.x.out_stride, fir.channel_out_stride);
        } else if (term == 0) {
            passes.sum(team, fir, line, term, s, lanes, sums, stride, Index(1));
        } else {
            passes.add(team, fir, line, term, s, lanes, sums, stride, Index(1));
        }
        team.sync();
    }
    if (direct) return;
    passes.store(team, fir, sums, s.end - s.begin, lanes, y);
    team.sync();
}

// How the along-x part is compiled; 0 stands for "any".
template <int UP_, int DOWN_, int COUNT_>
struct Case {
    static constexpr int UP = UP_, DOWN = DOWN_, COUNT = COUNT_;
};

}  // namespace sg2
