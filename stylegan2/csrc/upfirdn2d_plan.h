// On the host, once per call: the filter as a sum of outer products, each sorted into phases.
#pragma once

#include <algorithm>
#include <vector>

#include "interface.h"
#include "upfirdn2d.h"

namespace sg2 {

// taps = Σ_r columns[r] ⊗ rows[r], by elimination with the largest remaining element as pivot. A filter made as an
// outer product needs one term; no filter needs more than its smaller side. `tolerance` is relative to the
// largest tap.
struct OuterProducts {
    std::vector<std::vector<double>> columns, rows;

    OuterProducts(const double* taps, int height, int width, double tolerance) {
        std::vector<double> rest(taps, taps + static_cast<size_t>(height) * width);
        const auto larger = [](double a, double b) { return std::abs(a) < std::abs(b); };
        const double enough = tolerance * std::abs(*std::max_element(rest.begin(), rest.end(), larger));
        for (int term = 0; term < std::min(height, width); ++term) {
            const auto pivot = std::max_element(rest.begin(), rest.end(), larger) - rest.begin();
            if (term > 0 && std::abs(rest[pivot]) <= enough) break;
            eliminate(rest, width, static_cast<int>(pivot / width), static_cast<int>(pivot % width));
        }
    }

private:
    void eliminate(std::vector<double>& rest, int width, int pivot_y, int pivot_x) {
        const int height = static_cast<int>(rest.size()) / width;
        const double pivot = rest[pivot_y * width + pivot_x];
        std::vector<double> column(height), row(width);
        for (int y = 0; y < height; ++y) column[y] = rest[y * width + pivot_x];
        for (int x = 0; x < width; ++x) row[x] = pivot == 0 ? 0 : rest[pivot_y * width + x] / pivot;
        for (int y = 0; y < height; ++y) {
            for (int x = 0; x < width; ++x) {
                const bool done = y == pivot_y || x == pivot_x;  // 0 but for rounding
                rest[y * width + x] = done ? 0 : rest[y * width + x] - column[y] * row[x];
            }
        }
        columns.push_back(column);
        rows.push_back(row);
    }
};

// [term, phase, count]: tap t of a term goes to phase t % up, place t / up.
template <class A>
std::vector<A> sort_into_phases(const std::vector<std::vector<double>>& terms, int up, int count) {
    std::vector<A> sorted(terms.size() * up * count, A(0));
    for (size_t term = 0; term < terms.size(); ++term) {
        for (size_t t = 0; t < terms[term].size(); ++t) {
            sorted[(term * up + t % up) * count + t / up] = static_cast<A>(terms[term][t]);
        }
    }
    return sorted;
}

template <class A>
struct Plan {
    std::vector<A> weights_x, weights_y;
    Fir<A, int64_t> fir;

    Plan(const Sg2Upfirdn2d& a, const double* taps) {
        // Terms below the last place of the sum's type change nothing
        const OuterProducts filter(taps, a.taps_y, a.taps_x, std::numeric_limits<A>::epsilon() / 4);
        fir.x = axis(a.in_width, a.out_width, a.in_stride[3], a.out_stride[3], a.up_x, a.down_x, a.pad_x, a.taps_x);
        fir.y = axis(a.in_height, a.out_height, a.in_stride[2], a.out_stride[2], a.up_y, a.down_y, a.pad_y, a.taps_y);
        fir.channel_in_stride = a.in_stride[1];
        fir.channel_out_stride = a.out_stride[1];
        fir.terms = static_cast<int32_t>(filter.rows.size());
        weights_x = sort_into_phases<A>(filter.rows, a.up_x, fir.x.count);
        weights_y = sort_into_phases<A>(filter.columns, a.up_y, fir.y.count);
        fir.weights_x = weights_x.data();
        fir.weights_y = weights_y.data();
    }

private:
    static Axis<int64_t> axis(int64_t in, int64_t out, int64_t in_stride, int64_t out_stride, int up, int down,
                              int pad, int taps) {
        return {in, out, in_stride, out_stride, up, down, pad, (taps + up - 1) / up};
    }
};

// Calls run(Case) with the specialisation of the along-x part that fits.
template <class Run>
auto with_case(int up, int down, int count, const Run& run) {
    if (up == 1 && down == 1 && count == 1) return run(Case<1, 1, 1>());
    if (up == 1 && down == 1 && count == 4) return run(Case<1, 1, 4>());
    if (up == 1 && down == 1 && count == 12) return run(Case<1, 1, 12>());
    if (up == 2 && down == 1 && count == 2) return run(Case<2, 1, 2>());
    if (up == 2 && down == 1 && count == 6) return run(Case<2, 1, 6>());
    if (up == 1 && down == 2 && count == 4) return run(Case<1, 2, 4>());
    if (up == 1 && down == 2 && count == 12) return run(Case<1, 2, 12>());
    return run(Case<0, 0, 0>());
}

}  // namespace sg2
