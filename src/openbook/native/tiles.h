// Products of bf16 tiles with fp32 accumulation, and the packing of matrices into tiles.
//
// A tile is 1024 bytes: 16 rows of 64 bytes. Two kinds of rows make a product C[16,16] += A[16,32] B[32,16]:
//   left   (A): row i holds 32 consecutive bf16 of row i
//   right  (B): row p holds 16 pairs, pair j being (B[2p][j], B[2p+1][j])
// AMX (TDPBF16PS) multiplies one pair of tiles in one instruction; AVX-512 BF16 (VDPBF16PS) does the same row by row.
// Both add products in an order that depends on the sizes of the matrices alone.

#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>

#include "amx.h"

namespace openbook {

constexpr int64_t TILE = 1024;

inline int64_t tiles_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Tiles of a matrix: `outer` bytes from one to the next along rows of C (left) or columns of C (right), `inner` bytes
// along what is summed over, `row` bytes from row to row of a tile.
struct Tiles {
    char* data;
    int64_t outer, inner, row = 64;
    char* at(int64_t i, int64_t j) const { return data + i * outer + j * inner; }
    Tiles from(int64_t i) const { return {at(i, 0), outer, inner, row}; }
};

// ---------------------------------------------------------------------------------------------- AMX

#ifdef OPENBOOK_AMX

// C tiles are 0 (0,0), 1 (0,1), 2 (1,0), 3 (1,1); A tiles 4, 5; B tiles 6, 7.
template <int M, int N>
inline void amx_block(float* c, int64_t ldc, Tiles a, Tiles b, int64_t k, bool add) {
    const int64_t stride = ldc * 4;
    if (add) {
        TILE_LOAD(0, c, stride);
        if (N > 1) TILE_LOAD(1, c + 16, stride);
        if (M > 1) TILE_LOAD(2, c + 16 * ldc, stride);
        if (M > 1 && N > 1) TILE_LOAD(3, c + 16 * ldc + 16, stride);
    } else {
        TILE_ZERO(0);
        if (N > 1) TILE_ZERO(1);
        if (M > 1) TILE_ZERO(2);
        if (M > 1 && N > 1) TILE_ZERO(3);
    }
    for (int64_t s = 0; s < k; s++) {
        TILE_LOAD(6, b.at(0, s), 64);
        TILE_LOAD(4, a.at(0, s), a.row);
        TILE_MULTIPLY(0, 4, 6);
        if (N > 1) TILE_LOAD(7, b.at(1, s), 64);
        if (N > 1) TILE_MULTIPLY(1, 4, 7);
        if (M > 1) TILE_LOAD(5, a.at(1, s), a.row);
        if (M > 1) TILE_MULTIPLY(2, 5, 6);
        if (M > 1 && N > 1) TILE_MULTIPLY(3, 5, 7);
    }
    TILE_STORE(0, c, stride);
    if (N > 1) TILE_STORE(1, c + 16, stride);
    if (M > 1) TILE_STORE(2, c + 16 * ldc, stride);
    if (M > 1 && N > 1) TILE_STORE(3, c + 16 * ldc + 16, stride);
}

#endif

// ---------------------------------------------------------------------------------------------- AVX-512 BF16

template <int N>
inline void avx_rows(float* c, int64_t ldc, Tiles a, Tiles b, int64_t k, bool add) {
    __m512 sum[8][N];
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < N; j++) sum[i][j] = add ? _mm512_loadu_ps(c + i * ldc + 16 * j) : _mm512_setzero_ps();
    for (int64_t s = 0; s < k; s++) {
        const char* left = a.at(0, s);
        for (int p = 0; p < 16; p++) {
            __m512bh right[N];
            for (int j = 0; j < N; j++) right[j] = (__m512bh)_mm512_loadu_si512(b.at(j, s) + 64 * p);
            for (int i = 0; i < 8; i++) {
                int32_t pair;
                memcpy(&pair, left + a.row * i + 4 * p, 4);
                const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
                for (int j = 0; j < N; j++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], both, right[j]);
            }
        }
    }
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < N; j++) _mm512_storeu_ps(c + i * ldc + 16 * j, sum[i][j]);
}

template <int M, int N>
inline void avx_block(float* c, int64_t ldc, Tiles a, Tiles b, int64_t k, bool add) {
    for (int half = 0; half < 2 * M; half++)
        avx_rows<N>(c + 8 * half * ldc, ldc, {a.at(half / 2, 0) + 8 * a.row * (half % 2), 0, a.inner, a.row}, b, k,
                    add);
}

// ---------------------------------------------------------------------------------------------- product

enum Unit { AVX512 = 1, AMX = 2 };

template <Unit unit, int M, int N>
inline void block(float* c, int64_t ldc, Tiles a, Tiles b, int64_t k, bool add) {
#ifdef OPENBOOK_AMX
    if (unit == AMX) return amx_block<M, N>(c, ldc, a, b, k, add);
#endif
    avx_block<M, N>(c, ldc, a, b, k, add);
}

template <Unit unit, int M>
inline void stripe(float* c, int64_t ldc, Tiles a, Tiles b, int64_t n, int64_t k, bool add) {
    int64_t j = 0;
    for (; j + 2 <= n; j += 2) block<unit, M, 2>(c + 16 * j, ldc, a, b.from(j), k, add);
    if (j < n) block<unit, M, 1>(c + 16 * j, ldc, a, b.from(j), k, add);
}

// C [16 m, 16 n] = or += A [16 m, 32 k] B [32 k, 16 n]; C has `ldc` floats from row to row.
template <Unit unit>
inline void multiply(float* c, int64_t ldc, Tiles a, Tiles b, int64_t m, int64_t n, int64_t k, bool add) {
    int64_t i = 0;
    for (; i + 2 <= m; i += 2) stripe<unit, 2>(c + 16 * i * ldc, ldc, a.from(i), b, n, k, add);
    if (i < m) stripe<unit, 1>(c + 16 * i * ldc, ldc, a.from(i), b, n, k, add);
}

// ---------------------------------------------------------------------------------------------- packing

// 16 x 16 numbers of 32 bits (Eklundh's scheme: exchange within 2, 4, 8 and 16).
inline void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

// Rows of bf16 in memory: `rows` of `dim` numbers, `stride` numbers from one to the next.
struct Matrix {
    uint16_t* data;
    int64_t rows, dim, stride;
};

inline __mmask32 first_of_32(int64_t count) { return count >= 32 ? ~0u : (1u << count) - 1; }

// Copy the 32 rows from `row` on to `to`, `chunks` pieces of 64 bytes each, zero beyond the matrix. Rows of one head
// lie far apart: copying them in one plain loop lets the processor see the stride and fetch ahead.
inline void fetch(Matrix x, int64_t row, int64_t chunks, char* to) {
    const int64_t present = std::clamp<int64_t>(x.rows - row, 0, 32);
    const uint16_t* from = x.data + row * x.stride;
    for (int64_t i = 0; i < present; i++, from += x.stride, to += 64 * chunks)
        for (int64_t c = 0; c < chunks; c++)
            _mm512_storeu_si512(to + 64 * c, _mm512_maskz_loadu_epi16(first_of_32(x.dim - 32 * c), from + 32 * c));
    memset(to, 0, (32 - present) * 64 * chunks);
}

// The opposite: write 32 fetched rows.
inline void put(const char* from, int64_t chunks, Matrix x, int64_t row) {
    const int64_t present = std::clamp<int64_t>(x.rows - row, 0, 32);
    uint16_t* to = x.data + row * x.stride;
    for (int64_t i = 0; i < present; i++, to += x.stride, from += 64 * chunks)
        for (int64_t c = 0; c < chunks; c++)
            _mm512_mask_storeu_epi16(to + 32 * c, first_of_32(x.dim - 32 * c), _mm512_loadu_si512(from + 64 * c));
}

// Ask for rows that will be fetched or (`own`) put soon.
template <bool own>
inline void expect(Matrix x, int64_t row, int64_t count) {
    for (int64_t i = row; i < std::min(row + count, x.rows); i++)
        for (int64_t line = 0; line < 2 * x.dim; line += 64) {
            const char* place = (const char*)(x.data + i * x.stride) + line;
            if (own) asm volatile("prefetchw %0" ::"m"(*place));
            else _mm_prefetch(place, _MM_HINT_T1);
        }
}

// Rows to ask for a few at a time, while tiles are multiplied.
struct Errands {
    Matrix reads[5], writes[3];
    int read_count = 0, write_count = 0;
    int64_t row = 0, pace = 1;
    void read(Matrix x) { reads[read_count++] = x; }
    void write(Matrix x) { writes[write_count++] = x; }
    void run() {
        for (int i = 0; i < read_count; i++) expect<false>(reads[i], row, pace);
        for (int i = 0; i < write_count; i++) expect<true>(writes[i], row, pace);
        row += pace;
    }
};

inline void store(char* tile, const __m512i r[16]) {
    for (int i = 0; i < 16; i++) _mm512_storeu_si512(tile + 64 * i, r[i]);
}

// 32 fetched rows as columns of right tiles, `[2][chunks]`.
inline void pack_right(const char* rows, int64_t chunks, char* to) {
    __m512i r[16];
    for (int64_t half = 0; half < 2; half++)
        for (int64_t c = 0; c < chunks; c++, to += TILE) {
            for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(rows + (16 * half + i) * 64 * chunks + 64 * c);
            transpose(r);
            store(to, r);
        }
}

// 32 fetched rows, pairs side by side: `count` right tiles of 16 columns each, `step` bytes apart; `flip`: left tiles
// of the transposed matrix.
template <bool flip>
inline void pack_pairs(const char* rows, int64_t chunks, int64_t count, char* to, int64_t step) {
    alignas(64) static const uint16_t first[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                   8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i low = _mm512_load_si512(first), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    __m512i r[2][16];
    for (int64_t c = 0; c < chunks; c++, to += 2 * step) {
        for (int p = 0; p < 16; p++) {
            const __m512i even = _mm512_loadu_si512(rows + 2 * p * 64 * chunks + 64 * c);
            const __m512i odd = _mm512_loadu_si512(rows + (2 * p + 1) * 64 * chunks + 64 * c);
            r[0][p] = _mm512_permutex2var_epi16(even, low, odd);
            r[1][p] = _mm512_permutex2var_epi16(even, high, odd);
        }
        for (int half = 0; half < 2 && 2 * c + half < count; half++) {
            if (flip) transpose(r[half]);
            store(to + half * step, r[half]);
        }
    }
}

}  // namespace openbook
