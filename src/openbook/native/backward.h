// The backward pass: dq, dk and dv from q, k, v, out, lse and dO. See attention.cpp for the formulas.

#pragma once

#include "problem.h"

namespace openbook {

constexpr int64_t DOWN = 4, ACROSS = 8;  // blocks of keys and of queries taken at a time

struct Backward {
    const Problem& p;
    const Shape& s;
    Segments ids;
    Visible visible;
    float c;
    char *keys, *values, *turned;                   // K, V, and K' as left tiles [16 features][key block]
    char *rows, *more;                              // rows on their way
    char *query, *query_pairs, *grad, *grad_pairs;  // right tiles of Q', Q, dO', dO
    float *lse, *delta;                             // [T]: lse in powers of 2; rowsum(dO O)
    float *dk, *dv, *dq;                            // sums: [S,K], [S,V], [T/32][K][32]
    float *scores, *back;                           // one block of S' and of dP'
    char *weights, *slopes, *slope_pairs;           // P' and dS' as left tiles, dS' as right tiles
    Errands errands;

    Backward(const Problem& problem, const Shape& shape)
        : p(problem), s(shape), c((float)(problem.scale * LOG2E)) {}
    void take() {
        const int64_t T = s.queries * BLOCK, S = s.keys * BLOCK, square = DOWN * ACROSS * 2 * TILE;
        const int64_t k64 = 64 * s.key_chunks, v64 = 64 * s.value_chunks;  // bytes of a row
        ids.take(s);
        arena.take(keys, S * k64), arena.take(values, S * v64), arena.take(turned, S * 32 * s.key_tiles);
        arena.take(rows, BLOCK * std::max(k64, v64)), arena.take(more, BLOCK * std::max(k64, v64));
        arena.take(query, T * k64), arena.take(query_pairs, T * 32 * s.key_tiles);
        arena.take(grad, T * v64), arena.take(grad_pairs, T * 32 * s.value_tiles);
        arena.take(lse, T), arena.take(delta, T);
        arena.take(dk, S * 16 * s.key_tiles), arena.take(dv, S * 16 * s.value_tiles);
        arena.take(dq, T * 16 * s.key_tiles);
        arena.take(scores, BLOCK * 32), arena.take(back, BLOCK * 32);
        arena.take(weights, square), arena.take(slopes, square), arena.take(slope_pairs, square);
    }
};

// A square of up to DOWN x ACROSS blocks, keys from block `down`, queries from block `across`, and which of its blocks
// are seen: row i from left[i] to right[i], column j from top[j] to bottom[j].
struct Square {
    int64_t down, across, high, wide;
    Sight sight[DOWN][ACROSS];
    int64_t left[DOWN], right[DOWN], top[ACROSS], bottom[ACROSS];

    Square(const Backward& f, int64_t down, int64_t across)
        : down(down), across(across), high(std::min(DOWN, f.s.keys - down)),
          wide(std::min(ACROSS, f.s.queries - across)) {
        std::fill(left, left + DOWN, ACROSS), std::fill(right, right + DOWN, 0);
        std::fill(top, top + ACROSS, DOWN), std::fill(bottom, bottom + ACROSS, 0);
        for (int64_t i = 0; i < high; i++)
            for (int64_t j = 0; j < wide; j++) {
                sight[i][j] = f.visible.look((across + j) * BLOCK, (down + i) * BLOCK);
                if (sight[i][j] == NONE) continue;
                left[i] = std::min(left[i], j), right[i] = j + 1;
                top[j] = std::min(top[j], i), bottom[j] = i + 1;
            }
    }
    // A block that is not seen may lie between others that are summed over in one go.
    bool between(int64_t i, int64_t j) const { return (j > left[i] && j < right[i]) || (i > top[j] && i < bottom[j]); }
};

constexpr int64_t STRIPE = ACROSS * TILE;  // bytes from 16 keys to the next, in the left tiles of a square

// Where block (i, j) of a square begins: left tiles [2 DOWN][ACROSS], right tiles [ACROSS][DOWN][2].
inline int64_t left_place(int64_t i, int64_t j) { return 2 * i * STRIPE + j * TILE; }
inline int64_t right_place(int64_t i, int64_t j) { return (i + j * DOWN) * 2 * TILE; }

// P' and dS' of block (i, j) from its scores. Pairs of keys are interleaved within 128 bits, so the queries of
// `slope_pairs` are in the order of `query_of`.
template <bool masked>
inline void slope(const Backward& f, const Square& at, int64_t i, int64_t j) {
    const int64_t q0 = (at.across + j) * BLOCK, k0 = (at.down + i) * BLOCK;
    const __m512i segments[2] = {f.ids.of(f.p, q0), f.ids.of(f.p, q0 + 16)};
    const __m512 c = _mm512_set1_ps(f.c);
    const __m512 lse[2] = {_mm512_loadu_ps(f.lse + q0), _mm512_loadu_ps(f.lse + q0 + 16)};
    const __m512 delta[2] = {_mm512_loadu_ps(f.delta + q0), _mm512_loadu_ps(f.delta + q0 + 16)};
    char *weights = f.weights + left_place(i, j), *slopes = f.slopes + left_place(i, j);
    char* pairs = f.slope_pairs + right_place(i, j);
    const float *scores = f.scores, *back = f.back;
    for (int k = 0; k < BLOCK; k += 2) {
        __m512i row[2];
        for (int odd = 0; odd < 2; odd++) {
            const int own = k + odd;
            __m512 w[2], d[2];
            for (int g = 0; g < 2; g++) {
                w[g] = exp2(_mm512_fmsub_ps(_mm512_loadu_ps(scores + own * 32 + 16 * g), c, lse[g]));
                if (masked) w[g] = _mm512_maskz_mov_ps(f.visible.who(q0 + 16 * g, k0 + own, segments[g]), w[g]);
                d[g] = _mm512_mul_ps(w[g], _mm512_sub_ps(_mm512_loadu_ps(back + own * 32 + 16 * g), delta[g]));
            }
            row[odd] = narrow(d[0], d[1]);
            const int64_t place = (own / 16) * STRIPE + (own % 16) * 64;
            _mm512_storeu_si512(weights + place, narrow(w[0], w[1]));
            _mm512_storeu_si512(slopes + place, row[odd]);
        }
        _mm512_storeu_si512(pairs + 32 * k, _mm512_unpacklo_epi16(row[0], row[1]));
        _mm512_storeu_si512(pairs + TILE + 32 * k, _mm512_unpackhi_epi16(row[0], row[1]));
    }
}

inline int64_t query_of(int64_t half, int64_t lane) { return 8 * (lane / 4) + 4 * half + lane % 4; }

inline void clear(const Backward& f, int64_t i, int64_t j) {
    for (int half = 0; half < 2; half++) {
        memset(f.weights + left_place(i, j) + half * STRIPE, 0, TILE);
        memset(f.slopes + left_place(i, j) + half * STRIPE, 0, TILE);
        memset(f.slope_pairs + right_place(i, j) + half * TILE, 0, TILE);
    }
}

// P' and dS' of all blocks of a square.
template <Unit unit>
void find_slopes(Backward& f, const Square& at) {
    const Shape& s = f.s;
    const int64_t key_row = s.key_chunks * TILE, value_row = s.value_chunks * TILE;
    for (int64_t j = 0; j < at.wide; j++)
        for (int64_t i = 0; i < at.high; i++) {
            if (at.sight[i][j] == NONE) {
                if (at.between(i, j)) clear(f, i, j);
                continue;
            }
            const Tiles query{f.query + 2 * (at.across + j) * key_row, key_row, TILE};
            const Tiles grad{f.grad + 2 * (at.across + j) * value_row, value_row, TILE};
            const Tiles keys = left_rows(f.keys, at.down + i, s.key_chunks);
            const Tiles values = left_rows(f.values, at.down + i, s.value_chunks);
            multiply<unit>(f.scores, 32, keys, query, 2, 2, s.key_chunks, false);
            multiply<unit>(f.back, 32, values, grad, 2, 2, s.value_chunks, false);
            f.errands.run();
            at.sight[i][j] == ALL ? slope<false>(f, at, i, j) : slope<true>(f, at, i, j);
        }
}

// Add what a square gives to dV, dK and dQ.
template <Unit unit>
void add_square(const Backward& f, const Square& at) {
    const Shape& s = f.s;
    const int64_t key_dim = s.key_tiles * 16, value_dim = s.value_tiles * 16;
    for (int64_t i = 0; i < at.high; i++) {
        const int64_t from = at.left[i], count = at.right[i] - from, q = at.across + from, k = (at.down + i) * BLOCK;
        if (count <= 0) continue;
        const Tiles weights{f.weights + left_place(i, from), STRIPE, TILE};
        const Tiles slopes{f.slopes + left_place(i, from), STRIPE, TILE};
        const Tiles grad{f.grad_pairs + q * s.value_tiles * TILE, TILE, s.value_tiles * TILE};
        const Tiles query{f.query_pairs + q * s.key_tiles * TILE, TILE, s.key_tiles * TILE};
        multiply<unit>(f.dv + k * value_dim, value_dim, weights, grad, 2, s.value_tiles, count, true);
        multiply<unit>(f.dk + k * key_dim, key_dim, slopes, query, 2, s.key_tiles, count, true);
    }
    for (int64_t j = 0; j < at.wide; j++) {
        const int64_t from = at.top[j], count = at.bottom[j] - from;
        if (count <= 0) continue;
        const Tiles keys{f.turned + (at.down + from) * TILE, s.keys * TILE, TILE};
        const Tiles pairs{f.slope_pairs + right_place(from, j), TILE, 2 * TILE};
        multiply<unit>(f.dq + (at.across + j) * key_dim * 32, 32, keys, pairs, s.key_tiles, 2, count, true);
    }
}

// Q, dO, lse and delta of one head.
inline void open_head(const Backward& f, int64_t b, int64_t h) {
    const Problem& p = f.p;
    const Shape& s = f.s;
    const Matrix q = p.q.matrix(b, h, p.queries, p.key_dim), grad = p.grad.matrix(b, h, p.queries, p.value_dim);
    const Matrix out = p.out.matrix(b, h, p.queries, p.value_dim);
    const float* lse = p.lse + (b * p.heads + h) * p.queries;
    for (int64_t i = 0; i < s.queries; i++) {
        fetch(q, i * BLOCK, s.key_chunks, f.rows);
        pack_right(f.rows, s.key_chunks, f.query + 2 * i * s.key_chunks * TILE);
        pack_pairs<false>(f.rows, s.key_chunks, s.key_tiles, f.query_pairs + i * s.key_tiles * TILE, TILE);
        fetch(grad, i * BLOCK, s.value_chunks, f.rows);
        pack_right(f.rows, s.value_chunks, f.grad + 2 * i * s.value_chunks * TILE);
        pack_pairs<false>(f.rows, s.value_chunks, s.value_tiles, f.grad_pairs + i * s.value_tiles * TILE, TILE);
        fetch(out, i * BLOCK, s.value_chunks, f.more);
        for (int64_t t = 0; t < BLOCK; t++) {
            __m512 sum = _mm512_setzero_ps();
            for (int64_t c = 64 * s.value_chunks * t; c < 64 * s.value_chunks * (t + 1); c += 64) {
                const __m512i mixed = _mm512_loadu_si512(f.more + c), back = _mm512_loadu_si512(f.rows + c);
                sum = _mm512_dpbf16_ps(sum, (__m512bh)mixed, (__m512bh)back);
            }
            const int64_t at = i * BLOCK + t;
            f.delta[at] = _mm512_reduce_add_ps(sum);
            f.lse[at] = at < p.queries ? lse[at] * LOG2E : -LEAST;
        }
    }
    memset(f.dq, 0, s.queries * s.key_tiles * 16 * 32 * 4);
}

// Turn, scale and write dQ of one head.
inline void close_head(const Backward& f, int64_t b, int64_t h) {
    const Matrix dq = f.p.dq.matrix(b, h, f.p.queries, f.p.key_dim);
    const __m512 scale = _mm512_set1_ps((float)f.p.scale);
    for (int64_t i = 0; i < f.s.queries; i++) {
        for (int64_t t = 0; t < f.s.key_tiles; t++)
            for (int64_t half = 0; half < 2; half++)
                turn(f.dq + (i * f.s.key_tiles + t) * 16 * 32 + 16 * half, scale, f.rows + 32 * t, f.s.key_chunks,
                     [half](int lane) { return query_of(half, lane); });
        put(f.rows, f.s.key_chunks, dq, i * BLOCK);
    }
}

// Scale and write sums [S, 16 tiles].
inline void write_sums(const Backward& f, const float* from, int64_t tiles, float factor, Matrix to) {
    const __m512 scale = _mm512_set1_ps(factor);
    const int64_t chunks = tiles_of(tiles, 2);
    for (int64_t i = 0; i < f.s.keys; i++) {
        for (int64_t k = 0; k < BLOCK; k++)
            for (int64_t t = 0; t < tiles; t++, from += 16)
                _mm256_storeu_si256((__m256i*)(f.rows + k * 64 * chunks + 32 * t),
                                    (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(_mm512_loadu_ps(from), scale)));
        put(f.rows, chunks, to, i * BLOCK);
    }
}

// What is needed next: where gradients are written, and the next head, here or in the pair of row and kv head `next`.
inline Errands backward_errands(const Problem& p, const Shape& s, int64_t b, int64_t h, int64_t next) {
    const int64_t group = p.heads / p.kv_heads, g = h / group;
    Errands errands;
    errands.pace = tiles_of(2 * BLOCK, s.queries + 1);  // all within half a square of blocks
    errands.write(p.dq.matrix(b, h, p.queries, p.key_dim));
    int64_t row = b, head = h + 1;
    if (head == (g + 1) * group) {
        errands.write(p.dk.matrix(b, g, p.keys, p.key_dim));
        errands.write(p.dv.matrix(b, g, p.keys, p.value_dim));
        row = next / p.kv_heads, head = next % p.kv_heads * group;
        if (row < p.rows) {
            errands.read(p.k.matrix(row, next % p.kv_heads, p.keys, p.key_dim));
            errands.read(p.v.matrix(row, next % p.kv_heads, p.keys, p.value_dim));
        }
    }
    if (row < p.rows) {
        errands.read(p.q.matrix(row, head, p.queries, p.key_dim));
        errands.read(p.grad.matrix(row, head, p.queries, p.value_dim));
        errands.read(p.out.matrix(row, head, p.queries, p.value_dim));
    }
    return errands;
}

// All heads of one pair of row and kv head; `next` is probably this thread's next pair.
template <Unit unit>
bool backward_task(const Problem& p, const Shape& s, int64_t pair, int64_t next) {
    const int64_t b = pair / p.kv_heads, g = pair % p.kv_heads, group = p.heads / p.kv_heads;
    Backward f(p, s);
    if (!arena.lend([&] { f.take(); })) return false;
    f.ids.fill(p, s, b);
    f.visible = f.ids.visible(p);
    const Matrix k = p.k.matrix(b, g, p.keys, p.key_dim), v = p.v.matrix(b, g, p.keys, p.value_dim);
    for (int64_t i = 0; i < s.keys; i++) {
        char* rows = f.keys + i * BLOCK * 64 * s.key_chunks;
        fetch(k, i * BLOCK, s.key_chunks, rows);
        fetch(v, i * BLOCK, s.value_chunks, f.values + i * BLOCK * 64 * s.value_chunks);
        pack_pairs<true>(rows, s.key_chunks, s.key_tiles, f.turned + i * TILE, s.keys * TILE);
    }
    memset(f.dk, 0, s.keys * BLOCK * s.key_tiles * 16 * 4);
    memset(f.dv, 0, s.keys * BLOCK * s.value_tiles * 16 * 4);
    for (int64_t h = g * group; h < (g + 1) * group; h++) {
        open_head(f, b, h);
        f.errands = backward_errands(p, s, b, h, next);
        for (int64_t down = 0; down < s.keys; down += DOWN)
            for (int64_t across = 0; across < s.queries; across += ACROSS) {
                const Square at(f, down, across);
                find_slopes<unit>(f, at);
                add_square<unit>(f, at);
            }
        close_head(f, b, h);
    }
    write_sums(f, f.dk, s.key_tiles, (float)p.scale, p.dk.matrix(b, g, p.keys, p.key_dim));
    write_sums(f, f.dv, s.value_tiles, 1.0f, p.dv.matrix(b, g, p.keys, p.value_dim));
    return true;
}

}  // namespace openbook
