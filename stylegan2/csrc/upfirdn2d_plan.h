// On the host, once per call: the filter as a sum of outer products, each sorted into phases.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "interface.h"
#include "upfirdn2d.h"

namespace sg2 {

// taps = Σ_r columns[r] ⊗ rows[r]: by elimination with the largest remaining element as pivot where few terms give every
// tap to some last places of A, else line by line, which is exact. A filter made as an outer product needs one term.
template <class A>
struct OuterProducts {
    std::vector<std::vector<double>> columns, rows;

    OuterProducts(const double* taps, int height, int width) {
        const std::vector<double> all(taps, taps + static_cast<size_t>(height) * width);
        std::vector<double> rest(all);
        const int most = std::min(height, width);
        do {
            const auto pivot = std::max_element(rest.begin(), rest.end(), smaller) - rest.begin();
            eliminate(rest, width, static_cast<int>(pivot / width), static_cast<int>(pivot % width));
            if (is_accurate(all)) return;
        } while (static_cast<int>(rows.size()) < most && has_rest(rest));
        take_lines(all, height, width);
    }

private:
    static bool smaller(double a, double b) { return std::abs(a) < std::abs(b); }
    static bool has_rest(const std::vector<double>& rest) {
        return std::any_of(rest.begin(), rest.end(), [](double value) { return value != 0; });
    }

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

    // Whether each tap comes out of the rounded terms, which do not cancel much: small ones as exactly as large ones.
    bool is_accurate(const std::vector<double>& taps) const {
        constexpr double kAllowed = 2 * static_cast<double>(std::numeric_limits<A>::epsilon()), kLargest = 2;
        const size_t width = rows[0].size();
        for (size_t i = 0; i < taps.size(); ++i) {
            double sum = 0, size = 0;
            for (size_t term = 0; term < rows.size(); ++term) {
                const double part = static_cast<double>(static_cast<A>(columns[term][i / width])) *
                                    static_cast<double>(static_cast<A>(rows[term][i % width]));
                sum += part;
                size += std::abs(part);
            }
            const double tap = std::abs(taps[i]);
            if (std::abs(sum - taps[i]) > kAllowed * tap || size > kLargest * tap) return false;
        }
        return true;
    }

    // One term for each row, or column where those are fewer: taps as they are.
    void take_lines(const std::vector<double>& taps, int height, int width) {
        const bool by_rows = height <= width;
        const int count = by_rows ? height : width, length = by_rows ? width : height;
        columns.clear();
        rows.clear();
        for (int line = 0; line < count; ++line) {
            std::vector<double> unit(count, 0.), values(length);
            unit[line] = 1;
            for (int i = 0; i < length; ++i) values[i] = taps[by_rows ? line * width + i : i * width + line];
            columns.push_back(by_rows ? unit : values);
            rows.push_back(by_rows ? values : unit);
        }
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
        const OuterProducts<A> filter(taps, a.taps_y, a.taps_x);
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
