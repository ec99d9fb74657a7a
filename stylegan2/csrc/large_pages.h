// Memory of large results on the CPU.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sg2 {

// A large result usually lies in memory that the system has yet to provide, page by page on first touch: that takes
// longer than the computation. Asks for pages of 2 MiB; where the system has none, nothing changes.
inline void prefer_large_pages(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t kPage = uintptr_t(1) << 21;
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory);
    const uintptr_t begin = (address + kPage - 1) / kPage * kPage, end = (address + bytes) / kPage * kPage;
    if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

}  // namespace sg2
