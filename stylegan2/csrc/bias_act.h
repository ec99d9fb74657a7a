// Bias, activation, gain and clamp of one element, with first and second derivative; for CPU and CUDA.
#pragma once

#include "interface.h"
#include "portable.h"

namespace sg2 {

template <class A>
struct BiasActScalars {
    A alpha;
    A gain;
    A inverse_gain;
    A limit;  // NaN for none: every comparison with it is false
};

// Klambauer et al. 2017 (1706.02515), equation 14
constexpr double kSeluScale = 1.0507009873554804934193349852946;
constexpr double kSeluAlpha = 1.6732632423543772848170429916717;

template <class A>
SG2_HD A sigmoid(A z) {
    return A(1) / (A(1) + exponential(-z));
}

// act(z)
template <int ACTIVATION, class A>
SG2_HD A activate(A z, A alpha) {
    if constexpr (ACTIVATION == SG2_RELU) return z < A(0) ? A(0) : z;
    if constexpr (ACTIVATION == SG2_LRELU) return z < A(0) ? z * alpha : z;
    if constexpr (ACTIVATION == SG2_TANH) {
        // tanh|z| = (1 − e)/(1 + e) with e = exp(−2|z|); through e − 1, which is exact near 0
        const A below = exponential_minus_one(A(-2) * (z < A(0) ? -z : z));
        const A magnitude = -below / (A(2) + below);
        return z < A(0) ? -magnitude : magnitude;
    }
    if constexpr (ACTIVATION == SG2_SIGMOID) return sigmoid(z);
    if constexpr (ACTIVATION == SG2_ELU) {
        const A below = exponential_minus_one(z > A(0) ? A(0) : z);
        return z > A(0) ? z : below;
    }
    if constexpr (ACTIVATION == SG2_SELU) {
        const A below = A(kSeluScale * kSeluAlpha) * exponential_minus_one(z > A(0) ? A(0) : z);
        return z > A(0) ? A(kSeluScale) * z : below;
    }
    if constexpr (ACTIVATION == SG2_SOFTPLUS) {
        // ln(1 + eᶻ) = max(z, 0) + ln(1 + exp(−|z|)): no overflow
        return (z < A(0) ? A(0) : z) + log_one_plus(exponential(z < A(0) ? z : -z));
    }
    if constexpr (ACTIVATION == SG2_SWISH) return z * sigmoid(z);
    return z;
}

// act'(z), from u = act(z); for swish u is z itself. At a kink: the derivative from below, as act'(0) of torch. At NaN:
// as torch, except that for elu and selu torch gives 1 or NaN, by where in the tensor it is.
template <int ACTIVATION, class A>
SG2_HD A slope(A u, A alpha) {
    if constexpr (ACTIVATION == SG2_RELU) return u <= A(0) ? A(0) : A(1);
    if constexpr (ACTIVATION == SG2_LRELU) return u > A(0) ? A(1) : alpha;
    if constexpr (ACTIVATION == SG2_TANH) return A(1) - u * u;
    if constexpr (ACTIVATION == SG2_SIGMOID) return u * (A(1) - u);
    if constexpr (ACTIVATION == SG2_ELU) return u > A(0) ? A(1) : u + A(1);
    if constexpr (ACTIVATION == SG2_SELU) {
        return u > A(0) ? A(kSeluScale) : u + A(kSeluScale * kSeluAlpha);
    }
    if constexpr (ACTIVATION == SG2_SOFTPLUS) return -exponential_minus_one(-u);
    if constexpr (ACTIVATION == SG2_SWISH) {
        const A s = sigmoid(u);
        return s * (A(1) + u * (A(1) - s));
    }
    return A(1);
}

// act''(z), from u as above
template <int ACTIVATION, class A>
SG2_HD A curvature(A u) {
    if constexpr (ACTIVATION == SG2_TANH) return A(-2) * u * (A(1) - u * u);
    if constexpr (ACTIVATION == SG2_SIGMOID) return u * (A(1) - u) * (A(1) - A(2) * u);
    if constexpr (ACTIVATION == SG2_ELU) return u > A(0) ? A(0) : u + A(1);
    if constexpr (ACTIVATION == SG2_SELU) return u > A(0) ? A(0) : u + A(kSeluScale * kSeluAlpha);
    if constexpr (ACTIVATION == SG2_SOFTPLUS) {
        const A s = -exponential_minus_one(-u);  // 1 − e⁻ᵘ, the sigmoid of z
        return s * (A(1) - s);
    }
    if constexpr (ACTIVATION == SG2_SWISH) {
        const A s = sigmoid(u);
        return s * (A(1) - s) * (A(2) + u * (A(1) - A(2) * s));
    }
    return A(0);
}

// One element of sg2_bias_act; what an order does not read may hold anything.
template <int ACTIVATION, int ORDER, class A>
SG2_HD A bias_act_element(A first, A second, A bias, A reference, const BiasActScalars<A>& s) {
    if constexpr (ORDER == 0) {
        A y = s.gain * activate<ACTIVATION>(first + bias, s.alpha);
        y = y > s.limit ? s.limit : y;
        return y < -s.limit ? -s.limit : y;
    } else {
        constexpr bool kFromInput = ACTIVATION == SG2_SWISH;
        const A y = kFromInput ? s.gain * activate<ACTIVATION>(reference, s.alpha) : reference;
        const A u = kFromInput ? reference : y * s.inverse_gain;
        const A derivative =
            ORDER == 1 ? slope<ACTIVATION>(u, s.alpha) : second * curvature<ACTIVATION>(u);
        const bool inside = (y < A(0) ? -y : y) < s.limit || s.limit != s.limit;
        return (inside ? first : A(0)) * s.gain * derivative;  // one after the other, as autograd does: 0 · NaN is NaN
    }
}

// Rounds the limit as y was rounded, so that a clamped y is recognised.
template <class T, class A>
BiasActScalars<A> bias_act_scalars(const Sg2BiasAct& args) {
    A limit = std::numeric_limits<A>::quiet_NaN();
    if (args.clamp >= 0) {
        T rounded;
        narrow(static_cast<A>(args.clamp), rounded);
        limit = widen(rounded);
    }
    const A inverse = args.gain == 0 ? A(0) : static_cast<A>(1 / args.gain);
    return {static_cast<A>(args.alpha), static_cast<A>(args.gain), inverse, limit};
}

}  // namespace sg2
