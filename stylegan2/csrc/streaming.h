// Stores that go past the caches, on the CPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__) || defined(_M_X64)
#include <immintrin.h>
#define SG2_STREAMS
#endif

namespace sg2 {

// From so many bytes on a result is streamed. A usual store first reads the line that it writes to; but what fits into
// the caches is there for whoever reads it next. Tests set another threshold.
#if !defined(SG2_STREAMED_BYTES)
#define SG2_STREAMED_BYTES (24 << 20)
#endif

inline bool is_streamed(int64_t bytes) {
#if defined(SG2_STREAMS)
    return bytes >= SG2_STREAMED_BYTES;
#else
    (void)bytes;
    return false;
#endif
}

#if defined(SG2_STREAMS)
#if defined(__AVX512F__)
constexpr int64_t kStreamedAtOnce = 64;
inline void stream_once(const char* from, char* to) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
}
#elif defined(__AVX__)
constexpr int64_t kStreamedAtOnce = 32;
inline void stream_once(const char* from, char* to) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
#else
constexpr int64_t kStreamedAtOnce = 16;
inline void stream_once(const char* from, char* to) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(to), _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
#endif
#endif

// Copies; whole lines of 64 bytes are streamed, what is left at both ends is not.
inline void stream(const void* source, void* target, int64_t bytes) {
    const char* from = static_cast<const char*>(source);
    char* to = static_cast<char*>(target);
#if defined(SG2_STREAMS)
    const int64_t past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) % 64);
    const int64_t head = std::min((64 - past) % 64, bytes);
    const int64_t lines = (bytes - head) / 64 * 64;
    std::memcpy(to, from, head);
    for (int64_t i = head; i < head + lines; i += kStreamedAtOnce) stream_once(from + i, to + i);
    from += head + lines;
    to += head + lines;
    bytes -= head + lines;
#endif
    std::memcpy(to, from, bytes);
}

// Lets other threads see what this one has streamed.
inline void finish_streaming() {
#if defined(SG2_STREAMS)
    _mm_sfence();
#endif
}

}  // namespace sg2
