// Sixteen numbers at a time on any processor: gcc's vectors, as wide as the machine has them.
//
// What is computed does not depend on the width, and multiply-add is fused where it is said (`fma`) and nowhere else
// (-ffp-contract=off): every copy of a loop that the compiler makes gives the same numbers.

#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace openbook {

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif
constexpr int PARTS = 16 / WIDTH;

typedef float FloatPart __attribute__((vector_size(4 * WIDTH)));
typedef int32_t IntPart __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t HalfPart __attribute__((vector_size(2 * WIDTH)));

struct Floats {
    FloatPart part[PARTS];
};
struct Ints {
    IntPart part[PARTS];
};

#define OPENBOOK_EACH for (int i = 0; i < PARTS; i++)

inline Floats all(float x) {
    Floats out;
    OPENBOOK_EACH out.part[i] = FloatPart{} + x;
    return out;
}
inline Floats load(const void* from) {
    Floats out;
    memcpy(&out, from, 64);
    return out;
}
inline void store(void* to, Floats x) { memcpy(to, &x, 64); }

inline Floats operator+(Floats a, Floats b) {
    OPENBOOK_EACH a.part[i] += b.part[i];
    return a;
}
inline Floats operator-(Floats a, Floats b) {
    OPENBOOK_EACH a.part[i] -= b.part[i];
    return a;
}
inline Floats operator*(Floats a, Floats b) {
    OPENBOOK_EACH a.part[i] *= b.part[i];
    return a;
}
inline Floats operator/(Floats a, Floats b) {
    OPENBOOK_EACH a.part[i] /= b.part[i];
    return a;
}
inline FloatPart fma(FloatPart a, FloatPart b, FloatPart c) {
#if defined(__AVX512F__)
    return (FloatPart)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (FloatPart)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}
inline Floats fma(Floats a, Floats b, Floats c) {
    OPENBOOK_EACH c.part[i] = fma(a.part[i], b.part[i], c.part[i]);
    return c;
}
// The greater of each; b where one is no number.
inline Floats greater(Floats a, Floats b) {
    OPENBOOK_EACH b.part[i] = a.part[i] > b.part[i] ? a.part[i] : b.part[i];
    return b;
}
// a in the lanes from..to-1, b elsewhere.
inline Floats within(int64_t from, int64_t to, Floats a, Floats b) {
    static const int32_t numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    Ints lane;
    memcpy(&lane, numbers, 64);
    const int32_t least = (int32_t)from, most = (int32_t)to;
    OPENBOOK_EACH b.part[i] = ((lane.part[i] >= least) & (lane.part[i] < most)) ? a.part[i] : b.part[i];
    return b;
}

inline float greatest(Floats x) {
    float lanes[16];
    store(lanes, x);
    for (int step = 8; step; step /= 2)
        for (int i = 0; i < step; i++) lanes[i] = lanes[i] > lanes[i + step] ? lanes[i] : lanes[i + step];
    return lanes[0];
}
inline float sum(Floats x) {
    float lanes[16];
    store(lanes, x);
    for (int step = 8; step; step /= 2)
        for (int i = 0; i < step; i++) lanes[i] += lanes[i + step];
    return lanes[0];
}

// 2^x for x <= 0: 2^round(x) times a polynomial on [-1/2, 1/2] (fitted in relative error, below 1 ulp; 1 at 0). Below
// 2^-126 it is 0; what is no number stays none.
constexpr float EXP1 = 0.6931472028563576f, EXP2 = 0.24022647913462392f, EXP3 = 0.05550332468780403f;
constexpr float EXP4 = 0.009618437368096061f, EXP5 = 0.001339887524837182f, EXP6 = 0.00015353360992633944f;

inline FloatPart exp2(FloatPart x) {
    const FloatPart zero = {}, least = zero - 126.0f, shift = zero + 12582912.0f;  // 1.5 * 2^23: rounds when added
    const FloatPart low = x < least ? least : x;
    const FloatPart moved = low + shift, f = low - (moved - shift);
    FloatPart p = zero + EXP6;
    p = fma(p, f, zero + EXP5);
    p = fma(p, f, zero + EXP4);
    p = fma(p, f, zero + EXP3);
    p = fma(p, f, zero + EXP2);
    p = fma(p, f, zero + EXP1);
    p = fma(p, f, zero + 1.0f);
    const IntPart exponent = ((IntPart)moved - (0x4b400000 - 127)) << 23;
    return x < least ? zero : p * (FloatPart)exponent;
}
inline Floats exp2(Floats x) {
    OPENBOOK_EACH x.part[i] = exp2(x.part[i]);
    return x;
}

constexpr float LOG2E = 1.44269504088896340736f;

// tanh(x) = (1 - e) / (1 + e), e = exp(-2|x|); near 0, where that cancels, its series.
inline Floats tanh(Floats x) {
    OPENBOOK_EACH {
        const FloatPart zero = {}, one = zero + 1.0f, v = x.part[i], size = v < zero ? -v : v;
        const FloatPart e = exp2(size * (-2.0f * LOG2E)), far = (one - e) / (one + e), s = v * v;
        FloatPart p = zero + 0.0218694885361552f;
        p = fma(p, s, zero - 0.0539682539682540f);
        p = fma(p, s, zero + 0.1333333333333333f);
        p = fma(p, s, zero - 0.3333333333333333f);
        p = fma(p * s, v, v);
        x.part[i] = size < 0.25f ? p : v < zero ? -far : far;
    }
    return x;
}

// ---------------------------------------------------------------------------------------------- bf16

inline float widen(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}
inline uint16_t narrow(float x) {  // to nearest, ties to even
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline void store_narrow(uint16_t* to, Floats x) {
#if defined(__AVX512BF16__)
    _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh((__m512)x.part[0]));
#else
    OPENBOOK_EACH {
        const IntPart bits = (IntPart)x.part[i];
        const IntPart whole = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        const HalfPart half = __builtin_convertvector(x.part[i] == x.part[i] ? whole : (whole | 0x7fc0), HalfPart);
        memcpy(to + WIDTH * i, &half, sizeof half);
    }
#endif
}

// ---------------------------------------------------------------------------------------------- products

// What a word of 4 bytes holds and how it is multiplied: sum += left * right for 16 words on the right, one on the left.
struct Single {
    static constexpr int numbers = 1;  // in a word
    static Floats dot(Floats sum, int32_t left, Floats right) {
        float x;
        memcpy(&x, &left, 4);
        return fma(all(x), right, sum);
    }
    static Floats first(Floats right) { return right; }
};
struct Pair {  // of bf16
    static constexpr int numbers = 2;
    static Floats dot(Floats sum, int32_t left, Floats right) {
#if defined(__AVX512BF16__)
        sum.part[0] = (FloatPart)_mm512_dpbf16_ps((__m512)sum.part[0], (__m512bh)_mm512_set1_epi32(left),
                                                  (__m512bh)(__m512)right.part[0]);
        return sum;
#else
        const float even = widen((uint16_t)left), odd = widen((uint16_t)((uint32_t)left >> 16));
        OPENBOOK_EACH {
            const FloatPart zero = {};
            const IntPart bits = (IntPart)right.part[i];
            sum.part[i] = fma(zero + even, (FloatPart)(bits << 16), sum.part[i]);
            sum.part[i] = fma(zero + odd, (FloatPart)(bits & (int32_t)0xffff0000), sum.part[i]);
        }
        return sum;
#endif
    }
    static Floats first(Floats right) {  // of each pair, the other one 0
        OPENBOOK_EACH right.part[i] = (FloatPart)((IntPart)right.part[i] & 0xffff);
        return right;
    }
};

}  // namespace openbook
