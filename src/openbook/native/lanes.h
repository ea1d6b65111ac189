// Sixteen fp32 numbers at once, and the functions of them that the row operators need.
//
// The compiler's own vectors: one register with AVX-512, two with AVX2, four elsewhere. Every element is treated by the
// same operations wherever it stands (a tail is a whole vector with zeros behind), and nothing is contracted: what a
// row gives depends on the row alone. Functions are within two units in the last place of the exact value.

#pragma once

#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <cmath>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace openbook {

constexpr int64_t LANES = 16;
typedef float Lanes __attribute__((vector_size(64)));
typedef int32_t Whole __attribute__((vector_size(64)));
typedef int8_t Bytes __attribute__((vector_size(16)));

inline Lanes all(float x) { return Lanes{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
inline Whole bits(Lanes x) { return (Whole)x; }

// a · b + c, rounded once where the machine can.
inline Lanes fma(Lanes a, Lanes b, Lanes c) {
#if defined(__AVX512F__)
    return (Lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    union {
        Lanes whole;
        __m256 half[2];
    } x = {a}, y = {b}, z = {c};
    for (int i = 0; i < 2; i++) z.half[i] = _mm256_fmadd_ps(x.half[i], y.half[i], z.half[i]);
    return z.whole;
#else
    return a * b + c;
#endif
}

inline Lanes load(const float* from) {
    Lanes x;
    memcpy(&x, from, sizeof x);
    return x;
}
inline void store(float* to, Lanes x) { memcpy(to, &x, sizeof x); }
inline Lanes load(const float* from, int64_t count) {  // zeros behind `count`
    if (count >= LANES) return load(from);
#if defined(__AVX512F__)
    return (Lanes)_mm512_maskz_loadu_ps((1u << count) - 1, from);
#else
    Lanes x = {};
    memcpy(&x, from, 4 * count);
    return x;
#endif
}
inline void store(float* to, Lanes x, int64_t count) {
    if (count >= LANES) return store(to, x);
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(to, (1u << count) - 1, (__m512)x);
#else
    memcpy(to, &x, 4 * count);
#endif
}

inline Lanes load_all(float x, int64_t count) {  // x, and zeros behind `count`
    static const Whole place = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return place < (int32_t)count ? all(x) : Lanes{};
}

template <class Vector>
inline auto total(Vector x) {  // always in the same order: halves
#if defined(__AVX512F__)
    if constexpr (std::is_same<Vector, Lanes>::value) return _mm512_reduce_add_ps((__m512)x);
#endif
    using Element = typename std::remove_reference<decltype(x[0])>::type;
    Element part[LANES];
    memcpy(part, &x, sizeof part);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) part[i] += part[i + width];
    return part[0];
}

template <class F>
inline void each(int64_t n, F f) {  // f(first, how many)
    for (int64_t i = 0; i < n; i += LANES) f(i, std::min(LANES, n - i));
}

template <int N>
inline Lanes polynomial(Lanes x, const float (&c)[N]) {  // highest power first
    Lanes y = all(c[0]);
    for (int i = 1; i < N; i++) y = fma(y, x, all(c[i]));
    return y;
}

inline Lanes swapped(Lanes x) {  // neighbours: 1 0 3 2 …
#if defined(__clang__)
    return __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#else
    return __builtin_shuffle(x, Whole{1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14});
#endif
}

inline Lanes magnitude(Lanes x) { return (Lanes)(bits(x) & 0x7fffffff); }
inline Lanes signed_as(Lanes size, Lanes sign) { return (Lanes)(bits(size) | (bits(sign) & (int32_t)0x80000000)); }
inline Lanes nearest(Lanes x) { return x + 12582912.0f - 12582912.0f; }  // |x| < 2^22, ties to even

inline Lanes exp(Lanes x) {
    x = x > 89.0f ? all(89.0f) : x;
    x = x < -105.0f ? all(-105.0f) : x;
    const Lanes n = nearest(x * 1.44269504088896341f);
    const Lanes r = fma(n, all(-1.428606765330187e-6f), fma(n, all(-0.693145751953125f), x));
    static const float P[] = {1.395060215e-03f, 8.368953131e-03f, 4.166620597e-02f, 1.666651815e-01f, 0.5f};
    const Lanes y = fma(r * r, polynomial(r, P), r) + 1.0f;
    const Whole whole = __builtin_convertvector(n, Whole), half = whole >> 1;  // in two steps: 2^n may be subnormal
    return y * (Lanes)((half + 127) << 23) * (Lanes)((whole - half + 127) << 23);
}

inline Lanes sigmoid(Lanes x) { return 1.0f / (1.0f + exp(-x)); }

inline Lanes tanh(Lanes x) {
    const Lanes size = magnitude(x), z = x * x;
    static const float P[] = {1.901802956e-03f, -7.892187685e-03f, 2.157584205e-02f,
                              -5.392212421e-02f, 1.333299577e-01f, -3.333332539e-01f};
    const Lanes small = fma(z * x, polynomial(z, P), x);
    const Lanes large = signed_as(1.0f - 2.0f / (exp(size + size) + 1.0f), x);
    return x != x ? x : size < 0.7f ? small : large;
}

inline Lanes erf(Lanes x) {
    const Lanes size = magnitude(x), s = x * x;
    static const float P[] = {7.889122935e-05f, -8.020842215e-04f, 5.189535674e-03f, -2.685444430e-02f,
                              1.128360033e-01f, -3.761262596e-01f, 1.283791661e-01f};
    const Lanes small = fma(x, polynomial(s, P), x);
    static const float Q[] = {5.150918241e-06f, -4.820267714e-05f, -3.606255996e-05f, 2.892294899e-03f,
                              -2.261200175e-02f, 1.052029058e-01f, 6.356565356e-01f, 1.128544927e+00f};
    const Lanes t = size > 4.2f ? all(4.2f) : size;  // beyond it erf is 1
    const Lanes large = signed_as(1.0f - exp(-t * polynomial(t, Q)), x);
    return x != x ? x : size < 0.95f ? small : large;
}

inline Lanes softplus(Lanes x) {  // log(1 + eˣ) = max(x, 0) + 2 artanh(y / (2 + y)), y = e^-|x|; x itself beyond 20
    const Lanes y = exp(-magnitude(x)), z = y / (2.0f + y), s = z * z;
    static const float P[] = {1.215046719e-01f, 1.071382910e-01f, 1.430844218e-01f, 1.999943852e-01f,
                              3.333333731e-01f};
    const Lanes tail = 2.0f * fma(z * s, polynomial(s, P), z);
    return x != x ? x : x > 20.0f ? x : (x > 0.0f ? x : all(0.0f)) + tail;
}

enum Function { SILU, GELU, GELU_TANH, QUICK_GELU, RELU, SQUARED_RELU, TANH, SIGMOID, SOFTPLUS, EXP };

inline Lanes relu(Lanes x) { return x < 0.0f ? all(0.0f) : x; }

inline Lanes activate(int64_t function, Lanes x) {
    switch (function) {
        case SILU: return x / (1.0f + exp(-x));
        case GELU: return 0.5f * x * (1.0f + erf(x * 0.70710678118654752f));
        case GELU_TANH: return 0.5f * x * (1.0f + tanh(0.79788456080286536f * (x + 0.044715f * x * x * x)));
        case QUICK_GELU: return x * sigmoid(1.702f * x);
        case RELU: return relu(x);
        case SQUARED_RELU: return relu(x) * relu(x);
        case TANH: return tanh(x);
        case SIGMOID: return sigmoid(x);
        case SOFTPLUS: return softplus(x);
        default: return exp(x);
    }
}

// kind 0: rms, 1: layer, -1: none. `bias` may be null. Everything fp32.
struct Norm {
    const float *weight, *bias;
    int64_t kind;
    float eps, offset;
};

template <class F>
inline float sum(int64_t n, F term) {  // Σ over lanes first; term(first, how many) is zero behind
    Lanes acc = {};
    each(n, [&](int64_t i, int64_t count) { acc += term(i, count); });
    return total(acc);
}

inline void normalise(const Norm& norm, const float* x, int64_t n, float* out) {
    if (norm.kind < 0) {
        if (out != x) memcpy(out, x, 4 * n);
        return;
    }
    const float mean = norm.kind ? sum(n, [&](int64_t i, int64_t c) { return load(x + i, c); }) / n : 0.0f;
    const float square = sum(n, [&](int64_t i, int64_t c) {
        const Lanes d = load(x + i, c) - load_all(mean, c);
        return d * d;
    });
    const float scale = 1.0f / std::sqrt(square / n + norm.eps);
    each(n, [&](int64_t i, int64_t c) {
        Lanes y = (load(x + i, c) - mean) * scale;
        if (norm.weight) y *= load(norm.weight + i, c) + norm.offset;
        if (norm.bias) y += load(norm.bias + i, c);
        store(out + i, y, c);
    });
}

}  // namespace openbook
