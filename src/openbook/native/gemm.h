// Products of rows with a matrix, y[r] = W x[r] + b, in which the result of a row depends on that row alone.
//
// A matrix is fp32 [out,in] as it lies, or packed in tiles of 1024 bytes, 16 outputs by 64 bytes of inputs, zero padded:
//   bf16   [out/16][in/32][16 (in/2)][16 out][2 in]
//   int8   [out/16][in/64][16 (in/4)][16 out][4 in], stored as w + 128 (VPDPBUSD wants its first operand unsigned), one
//          scale for each output; a row of activations is quantised with one scale of its own, and 128 · (its sum) is
//          taken off again: exact whatever the order
// fp32 sums run over 16 lanes, bf16 sums over one chain of pairs, in the same order for any number of rows.

#pragma once

#include "amx.h"
#include "lanes.h"

namespace openbook {

enum Kind { FLOAT, BF16, INT8 };
enum Machine { PLAIN, WIDE, TILES };  // what multiplies: vectors the compiler knows, AVX-512, AMX
constexpr int64_t TILE_BYTES = 1024;
constexpr int64_t PANEL = 1 << 19;  // bytes of a matrix that stay in the second cache while all rows pass
constexpr int64_t AHEAD = 4096;     // bytes: the processor's own prefetching stops at the end of a page

struct Matrix {
    const char* data;
    const float *scale, *smooth, *bias;  // each may be null; smooth [in] multiplies the rows first
    int64_t kind, in, out;
    int64_t elements() const { return kind == INT8 ? 64 : 32; }  // inputs of a tile
    int64_t tiles() const { return (in + elements() - 1) / elements(); }
    int64_t block() const { return kind == FLOAT ? 64 * in : tiles() * TILE_BYTES; }  // bytes of 16 outputs
    int64_t blocks() const { return (out + 15) / 16; }
};

// Rows as a kind of matrix wants them: fp32, bf16 or int8 with a scale and a sum each; `stride` in bytes.
struct Rows {
    char* data;
    int64_t stride;
    float* scale;
    int32_t* sum;
    const char* at(int64_t row) const { return data + row * stride; }
};

// Where results go: y, or residual + factor · y.
struct Output {
    float* y;
    int64_t stride;
    const float* residual = nullptr;
    float factor = 1.0f;
    void put(const Matrix& w, int64_t row, int64_t first, Lanes value) const {
        const int64_t count = w.out - first, place = row * stride + first;
        if (w.bias) value += load(w.bias + first, count);
        if (residual) value = load(residual + place, count) + value * factor;
        store(y + place, value, count);
    }
};

inline int64_t padded(const Matrix& w) { return w.kind == FLOAT ? 4 * w.in : 64 * w.tiles(); }  // bytes of a row

// ---------------------------------------------------------------------------------------------- preparing rows

inline Lanes smoothed(const float* x, const float* smooth, int64_t i, int64_t count) {
    const Lanes value = load(x + i, count);
    return smooth ? value * load(smooth + i, count) : value;
}

inline void quantise(const float* x, const float* smooth, int64_t in, int64_t bytes, int8_t* q, float* scale,
                     int32_t* sum) {
    Whole most = {};
    each(in, [&](int64_t i, int64_t count) {
        const Whole size = bits(magnitude(smoothed(x, smooth, i, count)));
        most = size > most ? size : most;  // as whole numbers: NaN is larger than infinity, and that than any other
    });
    int32_t largest = 0;
    for (int i = 0; i < LANES; i++) largest = std::max(largest, most[i]);
    float range;
    memcpy(&range, &largest, 4);
    const bool finite = largest < 0x7f800000;
    const float step = range / 127.0f;
    *scale = finite ? step : NAN;
    *sum = 0;
    if (!finite || step == 0.0f) {
        memset(q, 0, bytes);
        return;
    }
    Whole added = {};
    each(bytes, [&](int64_t i, int64_t) {
        Bytes small = {};
        if (i < in) {
            Lanes y = nearest(smoothed(x, smooth, i, in - i) / step);
            y = y > 127.0f ? all(127.0f) : y < -127.0f ? all(-127.0f) : y;
            const Whole whole = __builtin_convertvector(y, Whole);
            added += whole;
            small = __builtin_convertvector(whole, Bytes);
        }
        memcpy(q + i, &small, sizeof small);
    });
    *sum = total(added);
}

typedef uint16_t Halves __attribute__((vector_size(32)));

inline Halves narrow(Lanes x) {  // to bf16, to nearest, ties to even; NaN stays NaN
    const Whole b = bits(x);
    const Whole up = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
    return __builtin_convertvector((b & 0x7fffffff) > 0x7f800000 ? up * 0 + 0x7fc0 : up, Halves);
}

inline void round_row(const float* x, const float* smooth, int64_t in, int64_t bytes, uint16_t* to) {
    each(bytes / 2, [&](int64_t i, int64_t) {
        const Halves value = i < in ? narrow(smoothed(x, smooth, i, in - i)) : Halves{};
        memcpy(to + i, &value, sizeof value);
    });
}

inline void prepare(const Matrix& w, const float* x, int64_t row, const Rows& to) {
    char* place = to.data + row * to.stride;
    if (w.kind == INT8) quantise(x, w.smooth, w.in, padded(w), (int8_t*)place, to.scale + row, to.sum + row);
    if (w.kind == BF16) round_row(x, w.smooth, w.in, padded(w), (uint16_t*)place);
}

// ---------------------------------------------------------------------------------------------- kernels

// Σ over inputs of M rows times N blocks of 16 outputs. `w` one block, the next `block` bytes on; `a` the first row.

template <int M, int N>
inline void float_sums(const float* w, int64_t in, const char* a, int64_t stride, float (&sums)[M][N]) {
    Lanes acc[M][N] = {};
    const auto step = [&](int64_t i, auto get) __attribute__((always_inline)) {
        Lanes right[N];
        for (int n = 0; n < N; n++) right[n] = get(w + n * in + i);
        for (int m = 0; m < M; m++) {
            const Lanes left = get((const float*)(a + m * stride) + i);
            for (int n = 0; n < N; n++) acc[m][n] = fma(right[n], left, acc[m][n]);
        }
    };
    int64_t i = 0;
    for (; i + LANES <= in; i += LANES) {
        const int64_t ahead = AHEAD / 4 + (i + AHEAD / 4 < in ? 0 : (N - 1) * in);  // the rows after these N
        for (int n = 0; n < N; n++) __builtin_prefetch(w + n * in + i + ahead);
        step(i, [](const float* from) { return load(from); });
    }
    if (i < in) step(i, [&](const float* from) { return load(from, in - i); });
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) sums[m][n] = total(acc[m][n]);
}

inline Lanes pairs(const char* w, const char* a, Lanes sum) {  // 16 outputs, one pair of inputs
#if defined(__AVX512BF16__)
    int32_t both;
    memcpy(&both, a, 4);
    return (Lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_loadu_si512(w), (__m512bh)_mm512_set1_epi32(both));
#else
    Whole right;
    uint32_t left;
    memcpy(&right, w, 64);
    memcpy(&left, a, 4);
    const uint32_t low = left << 16, high = left & 0xffff0000u;
    float first, second;
    memcpy(&first, &low, 4);
    memcpy(&second, &high, 4);
    sum = fma((Lanes)(right << 16), all(first), sum);
    return fma((Lanes)(right & (int32_t)0xffff0000), all(second), sum);
#endif
}

inline Whole quads(const char* w, const char* a, Whole sum) {  // 16 outputs, four inputs each: unsigned times signed
    int32_t four;
    memcpy(&four, a, 4);
#if defined(__AVX512VNNI__)
    return (Whole)_mm512_dpbusd_epi32((__m512i)sum, _mm512_loadu_si512(w), _mm512_set1_epi32(four));
#elif defined(__AVX2__)
    union {
        Whole whole;
        __m256i half[2];
    } acc = {sum};
    const __m256i left = _mm256_set1_epi32(four);
#if defined(__AVXVNNI__)
    for (int i = 0; i < 2; i++)
        acc.half[i] = _mm256_dpbusd_avx_epi32(acc.half[i], _mm256_loadu_si256((const __m256i*)w + i), left);
#else
    // Bytes 0 and 2, then 1 and 3, as numbers of 16 bits.
    const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(left, 8), 8), odd = _mm256_srai_epi16(left, 8);
    for (int i = 0; i < 2; i++) {
        const __m256i right = _mm256_loadu_si256((const __m256i*)w + i);
        const __m256i low = _mm256_and_si256(right, _mm256_set1_epi16(255)), high = _mm256_srli_epi16(right, 8);
        acc.half[i] = _mm256_add_epi32(acc.half[i], _mm256_madd_epi16(low, even));
        acc.half[i] = _mm256_add_epi32(acc.half[i], _mm256_madd_epi16(high, odd));
    }
#endif
    return acc.whole;
#else
    Whole right;
    memcpy(&right, w, 64);
    for (int i = 0; i < 4; i++) sum += ((right >> (8 * i)) & 255) * (int32_t)(int8_t)(four >> (8 * i));
    return sum;
#endif
}

// What to ask the memory for while blocks are multiplied. The first rows ask for the same blocks further on; the others
// (`parts` of them, this is number `part`) find them in the cache and ask for their part of the blocks that follow.
struct Ask {
    int64_t part = 0, parts = 0;
};

// Walk the 64-byte lines of N blocks side by side: f(line of the first block, its place in a row, its number below U).
template <int N, int U, class F>
inline void walk(const char* w, int64_t block, Ask ask, F f) {
    if (ask.parts) {
        const char* next = w + N * block + ask.part * (N * block / ask.parts);
        const int64_t pace = 64 * N / ask.parts;  // bytes for each line
        for (int64_t place = 0; place < block; place += 64 * U)
            for (int u = 0; u < U; u++, next += pace) {
                __builtin_prefetch(next, 0, 2);
                for (int64_t some = 64; some < pace; some += 64) __builtin_prefetch(next + some, 0, 2);
                f(w + place + 64 * u, place / 16 + 4 * u, u);
            }
        return;
    }
    const auto lines = [&](int64_t first, int64_t last, int64_t ahead) __attribute__((always_inline)) {
        for (int64_t place = first; place < last; place += 64 * U) {
            for (int n = 0; n < N; n++)
                for (int u = 0; u < U; u++) __builtin_prefetch(w + n * block + place + 64 * u + ahead);
            for (int u = 0; u < U; u++) f(w + place + 64 * u, place / 16 + 4 * u, u);
        }
    };
    const int64_t turn = std::max<int64_t>(0, block - AHEAD);
    lines(0, turn, AHEAD);
    lines(turn, block, AHEAD + (N - 1) * block);  // towards the end: the N blocks that follow
}

template <int M, int N>
inline void pair_sums(const char* w, int64_t block, Ask ask, const char* a, int64_t stride, Lanes (&acc)[M][N]) {
    walk<N, 1>(w, block, ask, [&](const char* line, int64_t place, int) __attribute__((always_inline)) {
        for (int m = 0; m < M; m++)
            for (int n = 0; n < N; n++) acc[m][n] = pairs(line + n * block, a + m * stride + place, acc[m][n]);
    });
}

template <int M, int N>
inline void quad_sums(const char* w, int64_t block, Ask ask, const char* a, int64_t stride, Whole (&acc)[M][N]) {
    constexpr int U = M * N >= 8 ? 1 : M * N >= 4 ? 2 : 4;  // enough chains to hide an instruction's latency
    Whole part[U][M][N] = {};
    walk<N, U>(w, block, ask, [&](const char* line, int64_t place, int u) __attribute__((always_inline)) {
        for (int m = 0; m < M; m++)
            for (int n = 0; n < N; n++) part[u][m][n] = quads(line + n * block, a + m * stride + place, part[u][m][n]);
    });
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) {
            acc[m][n] = part[0][m][n];
            for (int u = 1; u < U; u++) acc[m][n] += part[u][m][n];
        }
}

inline void put_whole(const Matrix& w, const Rows& a, int64_t row, int64_t first, Whole acc, const Output& out) {
    const Lanes value = __builtin_convertvector(acc - 128 * a.sum[row], Lanes);
    out.put(w, row, first, value * (a.scale[row] * load(w.scale + first, w.out - first)));
}

template <int M, int N>
void some_blocks(const Matrix& w, const Rows& a, int64_t row, int64_t number, Ask ask, const Output& out) {
    const char* from = w.data + number * w.block();
    if (w.kind == INT8) {
        Whole acc[M][N];
        quad_sums<M, N>(from, w.block(), ask, a.at(row), a.stride, acc);
        for (int m = 0; m < M; m++)
            for (int n = 0; n < N; n++) put_whole(w, a, row + m, 16 * (number + n), acc[m][n], out);
    } else {
        Lanes acc[M][N] = {};
        pair_sums<M, N>(from, w.block(), ask, a.at(row), a.stride, acc);
        for (int m = 0; m < M; m++)
            for (int n = 0; n < N; n++) out.put(w, row + m, 16 * (number + n), acc[m][n]);
    }
}

template <int M>
void float_block(const Matrix& w, const Rows& a, int64_t row, int64_t number, const Output& out) {
    constexpr int N = M > 6 ? 2 : 4;
    const float* from = (const float*)w.data + 16 * number * w.in;
    const int64_t present = std::min<int64_t>(16, w.out - 16 * number);
    Lanes y[M] = {};
    int64_t n = 0;
    for (; n + N <= present; n += N) {
        float sums[M][N];
        float_sums<M, N>(from + n * w.in, w.in, a.at(row), a.stride, sums);
        for (int m = 0; m < M; m++)
            for (int i = 0; i < N; i++) y[m][n + i] = sums[m][i];
    }
    for (; n < present; n++) {
        float sums[M][1];
        float_sums<M, 1>(from + n * w.in, w.in, a.at(row), a.stride, sums);
        for (int m = 0; m < M; m++) y[m][n] = sums[m][0];
    }
    for (int m = 0; m < M; m++) out.put(w, row + m, 16 * number, y[m]);
}

// ---------------------------------------------------------------------------------------------- AMX

#ifdef OPENBOOK_AMX
// 32 rows (those from `last` on are not written) times up to two blocks; C tiles are 0 (0,0), 1 (0,1), 2 (1,0), 3 (1,1).
template <int N, bool bytes>
void tile_blocks(const Matrix& w, const Rows& a, int64_t row, int64_t last, int64_t number, const Output& out) {
    const char *from = w.data + number * w.block(), *left = a.at(row);
    const int64_t block = w.block(), tiles = w.tiles();
    const bool two = last - row > 16;
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
#define OPENBOOK_PRODUCT(c, x, y)                     \
    do {                                              \
        if (bytes) TILE_MULTIPLY_BYTES(c, x, y);      \
        else TILE_MULTIPLY(c, x, y);                  \
    } while (0)
    for (int64_t s = 0; s < tiles; s++, from += TILE_BYTES, left += 64) {
        for (int n = 0; n < N; n++)
            for (int line = 0; line < TILE_BYTES; line += 64) __builtin_prefetch(from + n * block + AHEAD + line);
        TILE_LOAD(6, from, 64);
        TILE_LOAD(4, left, a.stride);
        OPENBOOK_PRODUCT(0, 4, 6);
        if (N > 1) {
            TILE_LOAD(7, from + block, 64);
            OPENBOOK_PRODUCT(1, 4, 7);
        }
        if (two) {
            TILE_LOAD(5, left + 16 * a.stride, a.stride);
            OPENBOOK_PRODUCT(2, 5, 6);
            if (N > 1) OPENBOOK_PRODUCT(3, 5, 7);
        }
    }
#undef OPENBOOK_PRODUCT
    alignas(64) float c[4][16][16];
    TILE_STORE(0, c[0], 64);
    TILE_STORE(1, c[1], 64);
    TILE_STORE(2, c[2], 64);
    TILE_STORE(3, c[3], 64);
    for (int64_t r = row; r < std::min(row + 32, last); r++)
        for (int n = 0; n < N; n++) {
            const Lanes value = load(c[2 * ((r - row) / 16) + n][(r - row) % 16]);
            if (bytes) put_whole(w, a, r, 16 * (number + n), bits(value), out);
            else out.put(w, r, 16 * (number + n), value);
        }
}
#endif

}  // namespace openbook
