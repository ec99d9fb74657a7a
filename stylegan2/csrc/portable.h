// What differs between a C++ compiler for the CPU and nvcc: qualifiers, loops over vector lanes, number types.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define SG2_HD __host__ __device__ __forceinline__
#define SG2_PASS __host__ __device__ __forceinline__
#define SG2_INLINE_LAMBDA
#define SG2_SIMD
#elif defined(_MSC_VER)
#define SG2_HD __forceinline
#define SG2_PASS __declspec(noinline)
#define SG2_INLINE_LAMBDA
#define SG2_SIMD __pragma(loop(ivdep))
#else
#define SG2_HD inline __attribute__((always_inline))
#define SG2_PASS __attribute__((noinline))  // a loop over a line: compiled once for all that call it
#define SG2_INLINE_LAMBDA __attribute__((always_inline))
#if defined(_OPENMP)
#define SG2_SIMD _Pragma("omp simd")
#elif defined(__clang__)
#define SG2_SIMD _Pragma("clang loop vectorize(assume_safety)")
#else
#define SG2_SIMD _Pragma("GCC ivdep")
#endif
#endif

namespace sg2 {

// ---------------------------------------------------------------------------------------------------------
// Types of 16 bits
// ---------------------------------------------------------------------------------------------------------

#if defined(__CUDACC__)

using Half = __half;
using BFloat16 = __nv_bfloat16;

SG2_HD float widen(Half value) { return __half2float(value); }
SG2_HD float widen(BFloat16 value) { return __bfloat162float(value); }
SG2_HD void narrow(float value, Half& to) { to = __float2half_rn(value); }
SG2_HD void narrow(float value, BFloat16& to) { to = __float2bfloat16_rn(value); }

#else

struct Half {
    uint16_t bits;
};
struct BFloat16 {
    uint16_t bits;
};

SG2_HD float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

SG2_HD uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// float16: 5 bits of exponent (bias 15), 10 of fraction; float: 8 (bias 127) and 23. No branches, so that the
// compiler converts a vector at a time. Sub-normal halves are fractions of 2⁻²⁴, the last place of 0.5f.
SG2_HD float widen(Half value) {
    const uint32_t magnitude = value.bits & 0x7fffu;
    const uint32_t sign = (value.bits & 0x8000u) << 16;
    const uint32_t rebias = magnitude >= 0x7c00u ? 224u << 23 : 112u << 23;  // infinity and NaN: to 255
    const uint32_t normal = (magnitude << 13) + rebias;
    const uint32_t tiny = bits_of(float_of(0x3f000000u | magnitude) - 0.5f);
    return float_of(sign | (magnitude < 0x0400u ? tiny : normal));
}

SG2_HD void narrow(float value, Half& to) {
    const uint32_t bits = bits_of(value);
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t to_even = 0xfffu + ((magnitude >> 13) & 1u);
    const uint32_t normal = (magnitude + to_even - (112u << 23)) >> 13;
    const uint32_t tiny = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
    const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const uint32_t finite = magnitude < 0x38800000u ? tiny : normal;
    const uint32_t half = magnitude >= 0x47800000u ? special : finite;
    to.bits = static_cast<uint16_t>(half | ((bits >> 16) & 0x8000u));
}

// bfloat16 is the upper half of a float.
SG2_HD float widen(BFloat16 value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }

SG2_HD void narrow(float value, BFloat16& to) {
    const uint32_t bits = bits_of(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const uint32_t nan = (bits >> 16) | 0x40u;
    to.bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

#endif

SG2_HD float widen(float value) { return value; }
SG2_HD double widen(double value) { return value; }
SG2_HD void narrow(float value, float& to) { to = value; }
SG2_HD void narrow(double value, double& to) { to = value; }

// The type in which sums run.
template <class T>
struct Accumulator {
    using Type = float;
};
template <>
struct Accumulator<double> {
    using Type = double;
};

template <class A, class B>
constexpr bool kSame = false;
template <class A>
constexpr bool kSame<A, A> = true;

// ---------------------------------------------------------------------------------------------------------
// exp and its relatives. In float on the CPU: without a branch or a call, so that loops over them vectorise
// ---------------------------------------------------------------------------------------------------------

SG2_HD double exponential(double x) { return ::exp(x); }
SG2_HD double exponential_minus_one(double x) { return ::expm1(x); }
SG2_HD double log_one_plus(double x) { return ::log1p(x); }

#if defined(__CUDACC__)

SG2_HD float exponential(float x) { return ::expf(x); }
SG2_HD float exponential_minus_one(float x) { return ::expm1f(x); }
SG2_HD float log_one_plus(float x) { return ::log1pf(x); }

#else

// eˣ = 2ⁿ·eʳ with n = round(x / ln 2), |r| ≤ ln 2 / 2. Gives 2ⁿ⁻¹ (half of it: 2¹²⁸ is no float) and eʳ − 1, by
// the Taylor series up to r⁷/7!, whose remainder is below 2⁻²⁷ of the sum.
struct ReducedExponential {
    float half_power;
    float rest;  // eʳ − 1
};

SG2_HD ReducedExponential reduce_exponential(float x) {
    x = x > 89.0f ? 89.0f : x;  // e⁸⁹ is infinite already, e⁻⁸⁷ about the smallest normal number
    x = x < -87.0f ? -87.0f : x;
    const float shift = 12582912.0f;  // 1.5·2²³: its last place is 1, so adding it rounds
    const float rounded = x * 1.44269504f + shift;
    const float n = rounded - shift;
    const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // ln 2 in two parts, n·first is exact
    float series = 1.0f / 5040.0f;
    series = series * r + 1.0f / 720.0f;
    series = series * r + 1.0f / 120.0f;
    series = series * r + 1.0f / 24.0f;
    series = series * r + 1.0f / 6.0f;
    series = series * r + 0.5f;
    const uint32_t exponent = bits_of(rounded) - bits_of(shift) + 126u;
    return {float_of(exponent << 23), series * r * r + r};
}

SG2_HD float exponential(float x) {
    const ReducedExponential e = reduce_exponential(x);
    return (e.rest * e.half_power + e.half_power) * 2.0f;
}

SG2_HD float exponential_minus_one(float x) {
    const ReducedExponential e = reduce_exponential(x);
    return (e.rest * e.half_power + (e.half_power - 0.5f)) * 2.0f;
}

// For 0 ≤ x ≤ 1: ln(1 + x) = 2·artanh(s), s = x / (2 + x) ≤ 1/3, as a series in s².
SG2_HD float log_one_plus(float x) {
    const float s = x / (2.0f + x);
    const float t = s * s;
    float series = 1.0f / 15.0f;
    series = series * t + 1.0f / 13.0f;
    series = series * t + 1.0f / 11.0f;
    series = series * t + 1.0f / 9.0f;
    series = series * t + 1.0f / 7.0f;
    series = series * t + 1.0f / 5.0f;
    series = series * t + 1.0f / 3.0f;
    return 2.0f * (series * t * s + s);
}

#endif

}  // namespace sg2
