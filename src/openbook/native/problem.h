// What attention works on: its arguments, their sizes in tiles, and the vectors and memory that both passes share.

#pragma once

#include <stdlib.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include "tiles.h"
#include "visible.h"

namespace openbook {

struct Strided {  // [B, tokens, heads, dim] of bf16, the last dimension dense; strides in numbers
    uint16_t* data;
    int64_t batch, token, head;
    Matrix matrix(int64_t b, int64_t h, int64_t tokens, int64_t dim) const {
        return {data + b * batch + h * head, tokens, dim, token};
    }
};

struct Problem {  // mirrored in attention.py
    int64_t rows, queries, keys, heads, kv_heads, key_dim, value_dim;  // B T S H G K V
    int64_t causal, window, threads, unit;                             // window 0: none
    double scale;
    const int64_t* segments;  // [B,T], or null
    int64_t segments_stride;
    Strided q, k, v, out;
    float* lse;  // [B,H,T]
    Strided grad, dq, dk, dv;
};

constexpr float LOG2E = 1.44269504088896340736f, LN2 = 0.69314718055994530942f;
constexpr float LEAST = -1e30f;  // below every score; finite, so that differences are

// ---------------------------------------------------------------------------------------------- vectors

// 2^x: 2^floor(x) times a minimax polynomial on [0,1) (fitted in relative error, 1.3 ulp).
inline __m512 exp2(__m512 x) {
    const __m512 f = _mm512_reduce_ps(x, 0x09);  // x - floor(x)
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(0.0018775766948f), f, _mm512_set1_ps(0.0089893406257f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.0558263175189f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.2401536107063f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.6931530833244f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.9999999403954f));
    return _mm512_scalef_ps(p, x);
}

// log2(x) for positive x: a first guess within 0.09, then Newton's rule y += (x / 2^y - 1) / ln 2, whose error squares.
inline __m512 log2(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 part = _mm512_getmant_ps(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
    __m512 y = _mm512_add_ps(_mm512_getexp_ps(x), _mm512_sub_ps(part, one));
    for (int i = 0; i < 3; i++) {
        const __m512 ratio = _mm512_mul_ps(x, exp2(_mm512_sub_ps(_mm512_setzero_ps(), y)));
        y = _mm512_fmadd_ps(_mm512_sub_ps(ratio, one), _mm512_set1_ps(LOG2E), y);
    }
    return y;
}

// 32 bf16: the numbers of `low`, then those of `high`.
inline __m512i narrow(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

inline __mmask16 first_lanes(int64_t count) {
    return count >= 16 ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1);
}

// Sums of 16 features [16 of 32 columns] times `factor`, turned, as bf16 rows of `chunks` pieces.
template <typename Place>
inline void turn(const float* from, __m512 factor, char* rows, int64_t chunks, Place place) {
    __m512i r[16];
    for (int i = 0; i < 16; i++) r[i] = (__m512i)_mm512_mul_ps(_mm512_loadu_ps(from + 32 * i), factor);
    transpose(r);
    for (int i = 0; i < 16; i++)
        _mm256_storeu_si256((__m256i*)(rows + place(i) * 64 * chunks), (__m256i)_mm512_cvtneps_pbh((__m512)r[i]));
}

// ---------------------------------------------------------------------------------------------- memory of a thread

// One block of memory per thread, kept for the next call and given back when the thread ends.
struct Arena {
    char* base = nullptr;
    int64_t size = 0, used = 0;
    ~Arena() { free(base); }
    template <typename T>
    void take(T*& place, int64_t count) {
        place = (T*)(base + used);
        used += tiles_of(count * sizeof(T), 64) * 64;
    }
    // Run `takes`, which takes what is needed: once to count, once for good. False if there is no memory.
    template <typename Takes>
    bool lend(Takes takes) {
        used = 0;
        takes();
        if (!grow(used)) return false;
        used = 0;
        takes();
        return true;
    }
    bool grow(int64_t need) {
        if (need <= size) return true;
        free(base);
        const int64_t page = 2 << 20;  // large pages: the packed matrices of a head fit in one or two
        size = tiles_of(need, page) * page;
        base = (char*)aligned_alloc(page, size);
#ifdef __linux__
        if (base) madvise(base, size, MADV_HUGEPAGE);
#endif
        if (!base) size = 0;
        return base != nullptr;
    }
};
inline thread_local Arena arena;

struct Shape {  // in blocks and tiles
    int64_t queries, keys;             // blocks of 32
    int64_t key_chunks, value_chunks;  // of 32 features
    int64_t key_tiles, value_tiles;    // of 16 features
    explicit Shape(const Problem& p)
        : queries(tiles_of(p.queries, BLOCK)), keys(tiles_of(p.keys, BLOCK)), key_chunks(tiles_of(p.key_dim, 32)),
          value_chunks(tiles_of(p.value_dim, 32)), key_tiles(tiles_of(p.key_dim, 16)),
          value_tiles(tiles_of(p.value_dim, 16)) {}
};

// Left tiles of fetched rows, from a block on.
inline Tiles left_rows(char* rows, int64_t block, int64_t chunks) {
    return {rows + block * BLOCK * 64 * chunks, 16 * 64 * chunks, 64, 64 * chunks};
}

// Segments of a batch row as 32-bit numbers, with each block's least and most; beyond the row they repeat its last.
struct Segments {
    int32_t *ids, *least, *most;
    void take(const Shape& s) {
        arena.take(ids, s.keys * BLOCK);
        arena.take(least, s.keys);
        arena.take(most, s.keys);
    }
    void fill(const Problem& p, const Shape& s, int64_t b) {
        if (!p.segments) return;
        const int64_t* from = p.segments + b * p.segments_stride;
        for (int64_t i = 0; i < s.keys * BLOCK; i++) ids[i] = (int32_t)from[std::min(i, p.keys - 1)];
        for (int64_t i = 0; i < s.keys; i++) {
            least[i] = *std::min_element(ids + i * BLOCK, ids + (i + 1) * BLOCK);
            most[i] = *std::max_element(ids + i * BLOCK, ids + (i + 1) * BLOCK);
        }
    }
    Visible visible(const Problem& p) const {
        return {p.queries, p.keys, p.window, p.causal != 0, p.segments ? ids : nullptr, least, most};
    }
    __m512i of(const Problem& p, int64_t q) const {
        return p.segments ? _mm512_loadu_si512(ids + q) : _mm512_setzero_si512();
    }
};

}  // namespace openbook
