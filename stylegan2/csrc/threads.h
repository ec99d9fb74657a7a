// Work on several cores, by OpenMP where the compiler has it. Which thread computes what follows from the sizes alone.
#pragma once

#include <algorithm>
#include <cstdint>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace sg2 {

constexpr int64_t kWorkPerThread = 1 << 15;  // elements; with less, starting a thread costs more than it saves

inline int threads_for(int64_t work, int32_t at_most) {
#if defined(_OPENMP)
    const int64_t available = at_most > 0 ? at_most : omp_get_max_threads();
    return static_cast<int>(std::max<int64_t>(1, std::min(available, work / kWorkPerThread)));
#else
    (void)work, (void)at_most;
    return 1;
#endif
}

// Calls run(part, begin, end) for the parts of [0, size), each on a thread of its own.
template <class Run>
void in_parts(int64_t size, int parts, const Run& run) {
#if defined(_OPENMP)
#pragma omp parallel for num_threads(parts) schedule(static) if (parts > 1)
#endif
    for (int part = 0; part < parts; ++part) run(part, size * part / parts, size * (part + 1) / parts);
}

}  // namespace sg2
