// The forward pass: out and lse from q, k and v. See attention.cpp for the formulas.

#pragma once

#include "problem.h"

namespace openbook {

constexpr int64_t RUN = 4;  // blocks of keys taken at a time

struct Forward {
    const Problem& p;
    const Shape& s;
    Segments ids;
    Visible visible;
    float c;                // scores times this are exponents of 2
    char *keys, *values;    // K, and V' as left tiles [16 features][key block]
    char *rows, *query;     // 32 rows on their way; right tiles [2][key chunk]
    float *scores, *mixed;  // [32 RUN keys, 32 queries], [features, 32 queries]
    char* weights;          // right tiles [RUN][2]
    __mmask16* seen;        // [32 RUN][2]
    __m512 top[2], sum[2];  // of each query: greatest score, sum of weights

    Forward(const Problem& problem, const Shape& shape)
        : p(problem), s(shape), c((float)(problem.scale * LOG2E)) {}
    void take() {
        ids.take(s);
        arena.take(keys, 2 * s.keys * s.key_chunks * TILE);
        arena.take(values, s.value_tiles * s.keys * TILE);
        arena.take(rows, BLOCK * 64 * std::max(s.key_chunks, s.value_chunks));
        arena.take(query, 2 * s.key_chunks * TILE);
        arena.take(scores, RUN * BLOCK * 32);
        arena.take(mixed, s.value_tiles * 16 * 32);
        arena.take(weights, RUN * 2 * TILE);
        arena.take(seen, RUN * BLOCK * 2);
    }
};

template <bool masked>
inline void find_top(const float* scores, const __mmask16* seen, __m512 top[2]) {
    __m512 a[2] = {top[0], top[1]}, b[2] = {top[0], top[1]};
    for (int k = 0; k < BLOCK; k += 2)
        for (int g = 0; g < 2; g++) {
            const __m512 even = _mm512_loadu_ps(scores + k * 32 + 16 * g);
            const __m512 odd = _mm512_loadu_ps(scores + k * 32 + 32 + 16 * g);
            a[g] = masked ? _mm512_mask_max_ps(a[g], seen[2 * k + g], even, a[g]) : _mm512_max_ps(even, a[g]);
            b[g] = masked ? _mm512_mask_max_ps(b[g], seen[2 * k + 2 + g], odd, b[g]) : _mm512_max_ps(odd, b[g]);
        }
    for (int g = 0; g < 2; g++) top[g] = _mm512_max_ps(a[g], b[g]);
}

// Weights of one block as right tiles, their sum added to `sum`.
template <bool masked>
inline void weigh(const float* scores, const __mmask16* seen, __m512 c, const __m512 shift[2], char* weights,
                  __m512 sum[2]) {
    alignas(64) static const uint16_t pairs[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                   8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i order = _mm512_load_si512(pairs);
    for (int k = 0; k < BLOCK; k += 2)
        for (int g = 0; g < 2; g++) {
            __m512 even = exp2(_mm512_fmsub_ps(_mm512_loadu_ps(scores + k * 32 + 16 * g), c, shift[g]));
            __m512 odd = exp2(_mm512_fmsub_ps(_mm512_loadu_ps(scores + k * 32 + 32 + 16 * g), c, shift[g]));
            if (masked) {
                even = _mm512_maskz_mov_ps(seen[2 * k + g], even);
                odd = _mm512_maskz_mov_ps(seen[2 * k + 2 + g], odd);
            }
            sum[g] = _mm512_add_ps(sum[g], _mm512_add_ps(even, odd));
            _mm512_storeu_si512(weights + g * TILE + 32 * k, _mm512_permutexvar_epi16(order, narrow(even, odd)));
        }
}

// What was mixed so far was weighed with a lower top.
inline void rescale(Forward& f, const __m512 before[2]) {
    const __m512 c = _mm512_set1_ps(f.c);
    __m512 factor[2];
    for (int g = 0; g < 2; g++) {
        factor[g] = exp2(_mm512_mul_ps(_mm512_sub_ps(before[g], f.top[g]), c));
        f.sum[g] = _mm512_mul_ps(f.sum[g], factor[g]);
    }
    for (int64_t i = 0; i < f.s.value_tiles * 16; i++)
        for (int g = 0; g < 2; g++) {
            float* here = f.mixed + 32 * i + 16 * g;
            _mm512_storeu_ps(here, _mm512_mul_ps(_mm512_loadu_ps(here), factor[g]));
        }
}

// The greatest score of each query, over `count` blocks of keys from `first` on; notes who sees what on the way.
inline void raise(Forward& f, int64_t q0, int64_t first, int64_t count, const Sight* sight, const __m512i segments[2]) {
    for (int64_t i = 0; i < count; i++) {
        __mmask16* seen = f.seen + 2 * BLOCK * i;
        const float* scores = f.scores + BLOCK * 32 * i;
        if (sight[i] == ALL) {
            find_top<false>(scores, seen, f.top);
            continue;
        }
        for (int64_t k = 0; k < BLOCK; k++)
            for (int g = 0; g < 2; g++)
                seen[2 * k + g] = f.visible.who(q0 + 16 * g, (first + i) * BLOCK + k, segments[g]);
        find_top<true>(scores, seen, f.top);
    }
}

// Take in `count` blocks of keys from block `first` on; `fresh`: nothing was taken in before.
template <Unit unit>
void take_keys(Forward& f, int64_t q0, int64_t first, int64_t count, const Sight* sight, const __m512i segments[2],
               bool fresh) {
    const Shape& s = f.s;
    const Tiles query{f.query, s.key_chunks * TILE, TILE}, values{f.values + first * TILE, s.keys * TILE, TILE};
    multiply<unit>(f.scores, 32, left_rows(f.keys, first, s.key_chunks), query, 2 * count, 2, s.key_chunks, false);
    const __m512 before[2] = {f.top[0], f.top[1]};
    raise(f, q0, first, count, sight, segments);
    bool higher = false;
    for (int g = 0; g < 2; g++) higher |= _mm512_cmp_ps_mask(before[g], f.top[g], _CMP_NEQ_UQ) != 0;
    if (!fresh && higher) rescale(f, before);
    const __m512 c = _mm512_set1_ps(f.c);
    const __m512 shift[2] = {_mm512_mul_ps(f.top[0], c), _mm512_mul_ps(f.top[1], c)};
    for (int64_t i = 0; i < count; i++) {
        const auto pass = sight[i] == ALL ? weigh<false> : weigh<true>;
        pass(f.scores + BLOCK * 32 * i, f.seen + 2 * BLOCK * i, c, shift, f.weights + 2 * TILE * i, f.sum);
    }
    multiply<unit>(f.mixed, 32, values, {f.weights, TILE, 2 * TILE}, s.value_tiles, 2, count, !fresh);
}

// Divide by the sums, turn, narrow and write.
inline void finish_block(const Forward& f, int64_t b, int64_t h, int64_t q0) {
    const Problem& p = f.p;
    float* lse = p.lse + (b * p.heads + h) * p.queries;
    for (int g = 0; g < 2; g++) {
        const int64_t q = q0 + 16 * g;
        const __mmask16 any = _mm512_cmp_ps_mask(f.sum[g], _mm512_setzero_ps(), _CMP_NEQ_UQ);
        const __m512 share = _mm512_maskz_div_ps(any, _mm512_set1_ps(1.0f), f.sum[g]);
        const __m512 log = _mm512_fmadd_ps(f.top[g], _mm512_set1_ps(f.c), log2(f.sum[g]));
        // A query that sees nothing: an lse that makes all its weights vanish.
        const __m512 kept = _mm512_mask_mul_ps(_mm512_set1_ps(-LEAST), any, log, _mm512_set1_ps(LN2));
        _mm512_mask_storeu_ps(lse + q, first_lanes(p.queries - q), kept);
        for (int64_t t = 0; t < f.s.value_tiles; t++)
            turn(f.mixed + 16 * t * 32 + 16 * g, share, f.rows + 32 * t, f.s.value_chunks,
                 [g](int i) { return 16 * g + i; });
    }
    put(f.rows, f.s.value_chunks, p.out.matrix(b, h, p.queries, p.value_dim), q0);
}

template <Unit unit>
void forward_block(Forward& f, Matrix q, int64_t b, int64_t h, int64_t q0) {
    fetch(q, q0, f.s.key_chunks, f.rows);
    pack_right(f.rows, f.s.key_chunks, f.query);
    for (int g = 0; g < 2; g++) {
        f.top[g] = _mm512_set1_ps(LEAST);
        f.sum[g] = _mm512_setzero_ps();
    }
    const __m512i segments[2] = {f.ids.of(f.p, q0), f.ids.of(f.p, q0 + 16)};
    const int64_t end = tiles_of(f.visible.end(q0), BLOCK);
    bool fresh = true;
    for (int64_t at = f.visible.begin(q0) / BLOCK; at < end;) {
        Sight sight[RUN];
        int64_t count = 0;
        for (; count < RUN && at + count < end; count++)
            if ((sight[count] = f.visible.look(q0, (at + count) * BLOCK)) == NONE) break;
        if (count) {
            take_keys<unit>(f, q0, at, count, sight, segments, fresh);
            fresh = false;
        }
        at += std::max<int64_t>(count, 1);
    }
    if (fresh) memset(f.mixed, 0, f.s.value_tiles * 16 * 32 * 4);
    finish_block(f, b, h, q0);
}

// Query blocks [first, last) of all heads of one pair of row and kv head.
template <Unit unit>
bool forward_task(const Problem& p, const Shape& s, int64_t pair, int64_t first, int64_t last) {
    const int64_t b = pair / p.kv_heads, g = pair % p.kv_heads, group = p.heads / p.kv_heads;
    Forward f(p, s);
    if (!arena.lend([&] { f.take(); })) return false;
    f.ids.fill(p, s, b);
    f.visible = f.ids.visible(p);
    const Matrix k = p.k.matrix(b, g, p.keys, p.key_dim), v = p.v.matrix(b, g, p.keys, p.value_dim);
    int64_t packed = f.visible.begin(first * BLOCK) / BLOCK;  // keys are packed when the first query needs them
    for (int64_t h = g * group; h < (g + 1) * group; h++) {
        const Matrix q = p.q.matrix(b, h, p.queries, p.key_dim);
        for (int64_t i = first; i < last; i++) {
            for (const int64_t end = tiles_of(f.visible.end(i * BLOCK), BLOCK); packed < end; packed++) {
                fetch(k, packed * BLOCK, s.key_chunks, f.keys + packed * BLOCK * 64 * s.key_chunks);
                fetch(v, packed * BLOCK, s.value_chunks, f.rows);
                pack_pairs<true>(f.rows, s.value_chunks, s.value_tiles, f.values + packed * TILE, s.keys * TILE);
            }
            expect<false>(k, packed * BLOCK, BLOCK), expect<false>(v, packed * BLOCK, BLOCK);
            expect<false>(q, (i + 1) * BLOCK, BLOCK);
            expect<true>(p.out.matrix(b, h, p.queries, p.value_dim), i * BLOCK, BLOCK);
            forward_block<unit>(f, q, b, h, i * BLOCK);
        }
    }
    return true;
}

}  // namespace openbook
