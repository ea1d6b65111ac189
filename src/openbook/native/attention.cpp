// Attention over bf16 with fp32 accumulation, forward and backward, without the matrix of scores in memory.
//
// Dao et al. 2022 (FlashAttention, algorithms 1 and 4) laid out for CPUs: blocks of 32 queries x 32 keys, as tiles of
// tiles.h. All score blocks are held transposed, keys down and queries across, so that the softmax runs lane by lane
// with no sums across a register. The forward pass keeps lse = log sum exp of each row; the backward pass makes the
// weights again from it.
//
//   S' = K Q'   P' = exp(S' scale - lse)   O' = V' P'                      (' is transposed)
//   dV = P' dO   dP' = V dO'   dS' = P' (dP' - rowsum(dO O))   dK = scale dS' Q   dQ' = scale K' dS'
//
// A task is one batch row and one key/value head with the queries that share it. What a row gets depends on nothing but
// itself: not on the other rows, nor on the number of threads.

#include <math.h>
#include <stdlib.h>
#ifdef OPENBOOK_AMX
#include <sys/syscall.h>
#include <unistd.h>
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
constexpr int64_t RUN = 4;       // forward: blocks of keys taken at a time
constexpr int64_t DOWN = 4, ACROSS = 8;  // backward: blocks of keys and of queries taken at a time

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

// ---------------------------------------------------------------------------------------------- memory of a thread

// One block of memory per thread, kept for the next call and given back when the thread ends.
struct Arena {
    char* base = nullptr;
    int64_t size = 0, used = 0;
    ~Arena() { free(base); }
    bool open(int64_t need) {
        used = 0;
        if (need <= size) return true;
        free(base);
        size = tiles_of(need, 4096) * 4096;
        base = (char*)aligned_alloc(4096, size);
        if (!base) size = 0;
        return base != nullptr;
    }
    template <typename T>
    T* take(int64_t count) {
        T* here = (T*)(base + used);
        used += tiles_of(count * sizeof(T), 64) * 64;
        return here;
    }
};
thread_local Arena arena;

struct Shape {  // in blocks and tiles
    int64_t queries, keys;               // blocks of 32
    int64_t key_chunks, value_chunks;    // of 32 features
    int64_t key_tiles, value_tiles;      // of 16 features
    explicit Shape(const Problem& p)
        : queries(tiles_of(p.queries, BLOCK)), keys(tiles_of(p.keys, BLOCK)), key_chunks(tiles_of(p.key_dim, 32)),
          value_chunks(tiles_of(p.value_dim, 32)), key_tiles(tiles_of(p.key_dim, 16)),
          value_tiles(tiles_of(p.value_dim, 16)) {}
};

// Segments of batch row b as 32-bit numbers, with each block's least and most; beyond the row they repeat its last.
struct Segments {
    int32_t *ids, *least, *most;
    static int64_t bytes(const Shape& s) { return s.keys * (BLOCK + 2) * 4 + 3 * 64; }
    Segments(const Problem& p, const Shape& s, int64_t b) {
        ids = arena.take<int32_t>(s.keys * BLOCK);
        least = arena.take<int32_t>(s.keys);
        most = arena.take<int32_t>(s.keys);
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

// ---------------------------------------------------------------------------------------------- forward

struct Forward {
    const Problem& p;
    const Shape& s;
    Visible visible;
    float c;                       // scores times this are exponents of 2
    char *keys, *values;           // left tiles [16-key group][key chunk] and, of V', [16 features][key block]
    char* query;                   // right tiles [2][key chunk]
    float *scores, *mixed;         // [32 RUN keys, 32 queries], [features, 32 queries]
    char* weights;                 // right tiles [RUN][2]
    __mmask16* seen;               // [32 RUN][2]
    __m512 top[2], sum[2];         // of each query: greatest score, sum of weights
};

template <bool masked>
inline void find_top(const float* scores, const __mmask16* seen, __m512 top[2]) {
    __m512 a[2] = {top[0], top[1]}, b[2] = {top[0], top[1]};
    for (int k = 0; k < BLOCK; k += 2)
        for (int g = 0; g < 2; g++) {
            const __m512 even = _mm512_loadu_ps(scores + k * 32 + 16 * g), odd = _mm512_loadu_ps(scores + k * 32 + 32 + 16 * g);
            a[g] = masked ? _mm512_mask_max_ps(a[g], seen[2 * k + g], even, a[g]) : _mm512_max_ps(even, a[g]);
            b[g] = masked ? _mm512_mask_max_ps(b[g], seen[2 * k + 2 + g], odd, b[g]) : _mm512_max_ps(odd, b[g]);
        }
    for (int g = 0; g < 2; g++) top[g] = _mm512_max_ps(a[g], b[g]);
}

// Weights of one block as right tiles, their sum added to `sum`.
template <bool masked>
inline void weigh(const float* scores, const __mmask16* seen, __m512 c, const __m512 shift[2], char* weights, __m512 sum[2]) {
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

// Take in `count` blocks of keys from block `first` on.
template <Unit unit>
void take_keys(Forward& f, int64_t q0, int64_t first, int64_t count, const Sight* sight, const __m512i segments[2], bool fresh) {
    const Shape& s = f.s;
    const int64_t row = s.key_chunks * TILE;
    multiply<unit>(f.scores, 32, {f.keys + 2 * first * row, row, TILE}, {f.query, row, TILE}, 2 * count, 2, s.key_chunks, false);
    const __m512 before[2] = {f.top[0], f.top[1]};
    for (int64_t i = 0; i < count; i++) {
        __mmask16* seen = f.seen + 2 * BLOCK * i;
        const float* scores = f.scores + BLOCK * 32 * i;
        if (sight[i] == ALL) {
            find_top<false>(scores, seen, f.top);
            continue;
        }
        for (int64_t k = 0; k < BLOCK; k++)
            for (int g = 0; g < 2; g++) seen[2 * k + g] = f.visible.who(q0 + 16 * g, (first + i) * BLOCK + k, segments[g]);
        find_top<true>(scores, seen, f.top);
    }
    const bool higher = _mm512_cmp_ps_mask(before[0], f.top[0], _CMP_NEQ_UQ) | _mm512_cmp_ps_mask(before[1], f.top[1], _CMP_NEQ_UQ);
    if (!fresh && higher) rescale(f, before);
    const __m512 c = _mm512_set1_ps(f.c);
    const __m512 shift[2] = {_mm512_mul_ps(f.top[0], c), _mm512_mul_ps(f.top[1], c)};
    for (int64_t i = 0; i < count; i++) {
        const auto pass = sight[i] == ALL ? weigh<false> : weigh<true>;
        pass(f.scores + BLOCK * 32 * i, f.seen + 2 * BLOCK * i, c, shift, f.weights + 2 * TILE * i, f.sum);
    }
    multiply<unit>(f.mixed, 32, {f.values + first * TILE, s.keys * TILE, TILE}, {f.weights, TILE, 2 * TILE}, s.value_tiles, 2, count, !fresh);
}

// Divide by the sums, turn, narrow and write.
void finish_block(const Forward& f, int64_t b, int64_t h, int64_t q0) {
    const Problem& p = f.p;
    uint16_t* out = p.out.data + b * p.out.batch + h * p.out.head;
    float* lse = p.lse + (b * p.heads + h) * p.queries;
    for (int g = 0; g < 2; g++) {
        const int64_t q = q0 + 16 * g;
        const __m512 zero = _mm512_setzero_ps();
        const __mmask16 any = _mm512_cmp_ps_mask(f.sum[g], zero, _CMP_NEQ_UQ);
        const __m512 share = _mm512_maskz_div_ps(any, _mm512_set1_ps(1.0f), f.sum[g]);
        const __m512 log = _mm512_fmadd_ps(f.top[g], _mm512_set1_ps(f.c), log2(f.sum[g]));
        // A query that sees nothing: an lse that makes all its weights vanish.
        const __m512 kept = _mm512_mask_mul_ps(_mm512_set1_ps(-LEAST), any, log, _mm512_set1_ps(LN2));
        _mm512_mask_storeu_ps(lse + q, first_lanes(p.queries - q), kept);
        for (int64_t t = 0; t < f.s.value_tiles; t++) {
            __m512i r[16];
            for (int i = 0; i < 16; i++)
                r[i] = (__m512i)_mm512_maskz_mul_ps(any, _mm512_loadu_ps(f.mixed + (16 * t + i) * 32 + 16 * g), share);
            transpose(r);
            const __mmask16 here = first_lanes(p.value_dim - 16 * t);
            for (int64_t i = 0; i < 16 && q + i < p.queries; i++)
                _mm256_mask_storeu_epi16(out + (q + i) * p.out.token + 16 * t, here, (__m256i)_mm512_cvtneps_pbh((__m512)r[i]));
        }
    }
}

template <Unit unit>
void forward_block(Forward& f, const Segments& ids, int64_t b, int64_t h, int64_t q0) {
    const Problem& p = f.p;
    const Matrix q = p.q.matrix(b, h, p.queries, p.key_dim);
    for (int g = 0; g < 2; g++) {
        pack_right(q, q0 + 16 * g, f.s.key_chunks, f.query + g * f.s.key_chunks * TILE, TILE);
        f.top[g] = _mm512_set1_ps(LEAST);
        f.sum[g] = _mm512_setzero_ps();
    }
    const __m512i segments[2] = {ids.of(p, q0), ids.of(p, q0 + 16)};
    const int64_t end = tiles_of(f.visible.end(q0), BLOCK);
    bool fresh = true;
    for (int64_t at = f.visible.begin(q0) / BLOCK; at < end;) {
        Sight sight[RUN];
        int64_t count = 0;
        while (count < RUN && at + count < end && (sight[count] = f.visible.look(q0, (at + count) * BLOCK)) != NONE) count++;
        if (count) {
            take_keys<unit>(f, q0, at, count, sight, segments, fresh);
            fresh = false;
        }
        at += std::max<int64_t>(count, 1);
    }
    if (fresh) memset(f.mixed, 0, f.s.value_tiles * 16 * 32 * 4);
    finish_block(f, b, h, q0);
}

// Query blocks [first, last) of all heads that share key/value head g.
template <Unit unit>
bool forward_task(const Problem& p, const Shape& s, int64_t b, int64_t g, int64_t first, int64_t last) {
    const int64_t features = s.value_tiles * 16;
    const int64_t key_bytes = 2 * s.keys * s.key_chunks * TILE, value_bytes = s.value_tiles * s.keys * TILE;
    const int64_t rest = 2 * s.key_chunks * TILE + RUN * (BLOCK * 32 * 4 + 2 * TILE + 4 * BLOCK) + features * 32 * 4;
    if (!arena.open(key_bytes + value_bytes + rest + Segments::bytes(s) + 8 * 64)) return false;
    const Segments ids(p, s, b);
    Forward f{p, s, ids.visible(p), (float)(p.scale * LOG2E), arena.take<char>(key_bytes), arena.take<char>(value_bytes),
              arena.take<char>(2 * s.key_chunks * TILE), arena.take<float>(RUN * BLOCK * 32), arena.take<float>(features * 32),
              arena.take<char>(RUN * 2 * TILE), arena.take<__mmask16>(RUN * BLOCK * 2), {}, {}};
    const Matrix k = p.k.matrix(b, g, p.keys, p.key_dim), v = p.v.matrix(b, g, p.keys, p.value_dim);
    const int64_t low = f.visible.begin(first * BLOCK) / BLOCK, high = tiles_of(f.visible.end((last - 1) * BLOCK), BLOCK);
    for (int64_t i = low; i < high; i++) {
        for (int64_t half = 2 * i; half < 2 * i + 2; half++)
            pack_left(k, 16 * half, s.key_chunks, f.keys + half * s.key_chunks * TILE, TILE);
        pack_pairs<true>(v, i * BLOCK, s.value_tiles, f.values + i * TILE, s.keys * TILE);
    }
    const int64_t group = p.heads / p.kv_heads;
    for (int64_t h = g * group; h < (g + 1) * group; h++)
        for (int64_t i = first; i < last; i++) forward_block<unit>(f, ids, b, h, i * BLOCK);
    return true;
}

// ---------------------------------------------------------------------------------------------- backward

struct Backward {
    const Problem& p;
    const Shape& s;
    Visible visible;
    float c;
    char *keys, *values, *turned;                          // left tiles of K, V and K'
    char *query, *query_pairs, *grad, *grad_pairs;         // right tiles of Q', Q, dO', dO
    float *lse, *delta;                                    // [T]: lse in powers of 2; rowsum(dO O)
    float *dk, *dv, *dq;                                   // sums: [S,K], [S,V], [T/32][K][32]
    float *scores, *back;                                  // one block of S' and of dP'
    char *weights, *slopes, *slope_pairs;                  // P' and dS' as left tiles, dS' as right tiles
};

// P' and dS' of one block. Pairs of keys are interleaved within 128 bits, so the queries of `pairs` are in the order of
// `query_of`.
template <bool masked>
inline void slope(const Backward& f, const __m512i segments[2], int64_t q0, int64_t k0, char* weights, char* slopes, char* pairs, int64_t group) {
    const __m512 c = _mm512_set1_ps(f.c);
    const __m512 lse[2] = {_mm512_loadu_ps(f.lse + q0), _mm512_loadu_ps(f.lse + q0 + 16)};
    const __m512 delta[2] = {_mm512_loadu_ps(f.delta + q0), _mm512_loadu_ps(f.delta + q0 + 16)};
    for (int k = 0; k < BLOCK; k += 2) {
        __m512i row[2];
        for (int odd = 0; odd < 2; odd++) {
            const int at = k + odd;
            __m512 w[2], d[2];
            for (int g = 0; g < 2; g++) {
                w[g] = exp2(_mm512_fmsub_ps(_mm512_loadu_ps(f.scores + at * 32 + 16 * g), c, lse[g]));
                if (masked) w[g] = _mm512_maskz_mov_ps(f.visible.who(q0 + 16 * g, k0 + at, segments[g]), w[g]);
                d[g] = _mm512_mul_ps(w[g], _mm512_sub_ps(_mm512_loadu_ps(f.back + at * 32 + 16 * g), delta[g]));
            }
            row[odd] = narrow(d[0], d[1]);
            const int64_t place = (at / 16) * group + (at % 16) * 64;
            _mm512_storeu_si512(weights + place, narrow(w[0], w[1]));
            _mm512_storeu_si512(slopes + place, row[odd]);
        }
        _mm512_storeu_si512(pairs + 32 * k, _mm512_unpacklo_epi16(row[0], row[1]));
        _mm512_storeu_si512(pairs + TILE + 32 * k, _mm512_unpackhi_epi16(row[0], row[1]));
    }
}

inline int64_t query_of(int64_t half, int64_t lane) { return 8 * (lane / 4) + 4 * half + lane % 4; }

// A square of up to DOWN x ACROSS blocks: keys from block `down`, queries from block `across`.
template <Unit unit>
void take_square(const Backward& f, const Segments& ids, int64_t down, int64_t across) {
    const Shape& s = f.s;
    const int64_t high = std::min(DOWN, s.keys - down), wide = std::min(ACROSS, s.queries - across);
    const int64_t key_row = s.key_chunks * TILE, value_row = s.value_chunks * TILE, group = ACROSS * TILE;
    int64_t left[DOWN], right[DOWN], top[ACROSS], bottom[ACROSS];
    std::fill(left, left + DOWN, ACROSS), std::fill(right, right + DOWN, 0);
    std::fill(top, top + ACROSS, DOWN), std::fill(bottom, bottom + ACROSS, 0);
    Sight sight[DOWN][ACROSS];
    for (int64_t i = 0; i < high; i++)
        for (int64_t j = 0; j < wide; j++) {
            sight[i][j] = f.visible.look((across + j) * BLOCK, (down + i) * BLOCK);
            if (sight[i][j] == NONE) continue;
            left[i] = std::min(left[i], j), right[i] = j + 1;
            top[j] = std::min(top[j], i), bottom[j] = i + 1;
        }
    for (int64_t j = 0; j < wide; j++) {
        const int64_t q0 = (across + j) * BLOCK;
        const __m512i segments[2] = {ids.of(f.p, q0), ids.of(f.p, q0 + 16)};
        for (int64_t i = 0; i < high; i++) {
            char *weights = f.weights + 2 * i * group + j * TILE, *slopes = f.slopes + 2 * i * group + j * TILE;
            char* pairs = f.slope_pairs + (i + j * DOWN) * 2 * TILE;
            if (sight[i][j] == NONE) {  // it may lie between others
                for (int half = 0; half < 2; half++) memset(weights + half * group, 0, TILE), memset(slopes + half * group, 0, TILE);
                memset(pairs, 0, 2 * TILE);
                continue;
            }
            multiply<unit>(f.scores, 32, {f.keys + 2 * (down + i) * key_row, key_row, TILE},
                           {f.query + 2 * (across + j) * key_row, key_row, TILE}, 2, 2, s.key_chunks, false);
            multiply<unit>(f.back, 32, {f.values + 2 * (down + i) * value_row, value_row, TILE},
                           {f.grad + 2 * (across + j) * value_row, value_row, TILE}, 2, 2, s.value_chunks, false);
            const auto pass = sight[i][j] == ALL ? slope<false> : slope<true>;
            pass(f, segments, q0, (down + i) * BLOCK, weights, slopes, pairs, group);
        }
    }
    const int64_t key_dim = s.key_tiles * 16, value_dim = s.value_tiles * 16;
    for (int64_t i = 0; i < high; i++) {
        const int64_t from = left[i], count = right[i] - from, q = across + from, k = (down + i) * BLOCK;
        if (count <= 0) continue;
        multiply<unit>(f.dv + k * value_dim, value_dim, {f.weights + 2 * i * group + from * TILE, group, TILE},
                       {f.grad_pairs + q * s.value_tiles * TILE, TILE, s.value_tiles * TILE}, 2, s.value_tiles, count, true);
        multiply<unit>(f.dk + k * key_dim, key_dim, {f.slopes + 2 * i * group + from * TILE, group, TILE},
                       {f.query_pairs + q * s.key_tiles * TILE, TILE, s.key_tiles * TILE}, 2, s.key_tiles, count, true);
    }
    for (int64_t j = 0; j < wide; j++) {
        const int64_t from = top[j], count = bottom[j] - from;
        if (count <= 0) continue;
        multiply<unit>(f.dq + (across + j) * key_dim * 32, 32, {f.turned + (down + from) * TILE, s.keys * TILE, TILE},
                       {f.slope_pairs + (from + j * DOWN) * 2 * TILE, TILE, 2 * TILE}, s.key_tiles, 2, count, true);
    }
}

// Q, dO, lse and delta of one head.
void open_head(const Backward& f, int64_t b, int64_t h) {
    const Problem& p = f.p;
    const Shape& s = f.s;
    const Matrix q = p.q.matrix(b, h, p.queries, p.key_dim), grad = p.grad.matrix(b, h, p.queries, p.value_dim);
    const Matrix out = p.out.matrix(b, h, p.queries, p.value_dim);
    const float* lse = p.lse + (b * p.heads + h) * p.queries;
    for (int64_t i = 0; i < s.queries; i++) {
        for (int64_t half = 2 * i; half < 2 * i + 2; half++) {
            pack_right(q, 16 * half, s.key_chunks, f.query + half * s.key_chunks * TILE, TILE);
            pack_right(grad, 16 * half, s.value_chunks, f.grad + half * s.value_chunks * TILE, TILE);
        }
        pack_pairs<false>(q, i * BLOCK, s.key_tiles, f.query_pairs + i * s.key_tiles * TILE, TILE);
        pack_pairs<false>(grad, i * BLOCK, s.value_tiles, f.grad_pairs + i * s.value_tiles * TILE, TILE);
    }
    for (int64_t t = 0; t < s.queries * BLOCK; t++) {
        __m512 sum = _mm512_setzero_ps();
        for (int64_t c = 0; c < s.value_chunks; c++)
            sum = _mm512_dpbf16_ps(sum, (__m512bh)out.piece(t, 32 * c), (__m512bh)grad.piece(t, 32 * c));
        f.delta[t] = _mm512_reduce_add_ps(sum);
        f.lse[t] = t < p.queries ? lse[t] * LOG2E : -LEAST;
    }
    memset(f.dq, 0, s.queries * s.key_tiles * 16 * 32 * 4);
}

// Turn, scale and write dQ of one head.
void close_head(const Backward& f, int64_t b, int64_t h) {
    const Problem& p = f.p;
    uint16_t* dq = p.dq.data + b * p.dq.batch + h * p.dq.head;
    const __m512 scale = _mm512_set1_ps((float)p.scale);
    for (int64_t block = 0; block < f.s.queries; block++)
        for (int64_t t = 0; t < f.s.key_tiles; t++)
            for (int64_t half = 0; half < 2; half++) {
                __m512i r[16];
                const float* from = f.dq + (block * f.s.key_tiles + t) * 16 * 32 + 16 * half;
                for (int i = 0; i < 16; i++) r[i] = (__m512i)_mm512_mul_ps(_mm512_loadu_ps(from + 32 * i), scale);
                transpose(r);
                for (int64_t i = 0; i < 16; i++) {
                    const int64_t q = block * BLOCK + query_of(half, i);
                    if (q < p.queries)
                        _mm256_mask_storeu_epi16(dq + q * p.dq.token + 16 * t, first_lanes(p.key_dim - 16 * t),
                                                 (__m256i)_mm512_cvtneps_pbh((__m512)r[i]));
                }
            }
}

void write_sums(const Problem& p, const float* from, int64_t tiles, int64_t dim, float factor, Strided to, int64_t b, int64_t g) {
    const __m512 scale = _mm512_set1_ps(factor);
    for (int64_t k = 0; k < p.keys; k++)
        for (int64_t t = 0; t < tiles; t++)
            _mm256_mask_storeu_epi16(
                to.data + b * to.batch + k * to.token + g * to.head + 16 * t, first_lanes(dim - 16 * t),
                (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(_mm512_loadu_ps(from + (k * tiles + t) * 16), scale)));
}

template <Unit unit>
bool backward_task(const Problem& p, const Shape& s, int64_t b, int64_t g) {
    const int64_t T = s.queries * BLOCK, S = s.keys * BLOCK;
    const int64_t k32 = s.key_chunks * 32, v32 = s.value_chunks * 32, k16 = s.key_tiles * 16, v16 = s.value_tiles * 16;
    const int64_t square = DOWN * ACROSS * 2 * TILE;
    const int64_t packed = 2 * (S * (k32 + v32 + k16) + T * (k32 + k16 + v32 + v16));
    const int64_t sums = 4 * (S * (k16 + v16) + T * k16 + 2 * T + 2 * BLOCK * 32);
    if (!arena.open(packed + sums + 3 * square + Segments::bytes(s) + 24 * 64)) return false;
    const Segments ids(p, s, b);
    const Backward f{p, s, ids.visible(p), (float)(p.scale * LOG2E),
                     arena.take<char>(2 * S * k32), arena.take<char>(2 * S * v32), arena.take<char>(2 * S * k16),
                     arena.take<char>(2 * T * k32), arena.take<char>(2 * T * k16), arena.take<char>(2 * T * v32), arena.take<char>(2 * T * v16),
                     arena.take<float>(T), arena.take<float>(T),
                     arena.take<float>(S * k16), arena.take<float>(S * v16), arena.take<float>(T * k16),
                     arena.take<float>(BLOCK * 32), arena.take<float>(BLOCK * 32),
                     arena.take<char>(square), arena.take<char>(square), arena.take<char>(square)};
    const Matrix k = p.k.matrix(b, g, p.keys, p.key_dim), v = p.v.matrix(b, g, p.keys, p.value_dim);
    for (int64_t i = 0; i < s.keys; i++) {
        for (int64_t half = 2 * i; half < 2 * i + 2; half++) {
            pack_left(k, 16 * half, s.key_chunks, f.keys + half * s.key_chunks * TILE, TILE);
            pack_left(v, 16 * half, s.value_chunks, f.values + half * s.value_chunks * TILE, TILE);
        }
        pack_pairs<true>(k, i * BLOCK, s.key_tiles, f.turned + i * TILE, s.keys * TILE);
    }
    memset(f.dk, 0, 4 * S * k16);
    memset(f.dv, 0, 4 * S * v16);
    const int64_t group = p.heads / p.kv_heads;
    for (int64_t h = g * group; h < (g + 1) * group; h++) {
        open_head(f, b, h);
        for (int64_t down = 0; down < s.keys; down += DOWN)
            for (int64_t across = 0; across < s.queries; across += ACROSS) take_square<unit>(f, ids, down, across);
        close_head(f, b, h);
    }
    write_sums(p, f.dk, s.key_tiles, p.key_dim, (float)p.scale, p.dk, b, g);
    write_sums(p, f.dv, s.value_tiles, p.value_dim, 1.0f, p.dv, b, g);
    return true;
}

// ---------------------------------------------------------------------------------------------- tasks

// Run task(i) for each i below `count` on `threads` threads; false if one of them found no memory.
template <Unit unit, typename Task>
bool each(int64_t count, int64_t threads, Task task) {
    bool fine = true;
    if (!count) return true;
#pragma omp parallel num_threads((int)std::min(count, threads)) reduction(&& : fine)
    {
#ifdef OPENBOOK_AMX
        if (unit == AMX) amx_begin();
#endif
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < count; i++) fine = task(i) && fine;
#ifdef OPENBOOK_AMX
        if (unit == AMX) amx_end();
#endif
    }
    return fine;
}

template <Unit unit>
bool forward(const Problem& p) {
    const Shape s(p);
    const int64_t pairs = p.rows * p.kv_heads;
    if (!pairs || !p.queries) return true;
    // Few rows: the queries are parted too, the heavy last ones first.
    const int64_t parts = std::clamp<int64_t>(4 * p.threads / pairs, 1, s.queries);
    return each<unit>(pairs * parts, p.threads, [&](int64_t i) {
        const int64_t part = parts - 1 - i / pairs, pair = i % pairs;
        const int64_t first = part * s.queries / parts, last = (part + 1) * s.queries / parts;
        return forward_task<unit>(p, s, pair / p.kv_heads, pair % p.kv_heads, first, last);
    });
}

template <Unit unit>
bool backward(const Problem& p) {
    const Shape s(p);
    return each<unit>(p.rows * p.kv_heads, p.threads,
                      [&](int64_t i) { return backward_task<unit>(p, s, i / p.kv_heads, i % p.kv_heads); });
}

bool amx_allowed() {
#ifdef OPENBOOK_AMX
    static const bool allowed = syscall(SYS_arch_prctl, 0x1023, 18) == 0;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return allowed;
#else
    return false;
#endif
}

}  // namespace openbook

extern "C" {

// The best unit of this process: 2 AMX, 1 AVX-512 BF16.
int openbook_attention_unit() { return openbook::amx_allowed() ? openbook::AMX : openbook::AVX512; }

// 0: done; 1: no memory.
int openbook_attention_forward(const openbook::Problem* p) {
#ifdef OPENBOOK_AMX
    if (p->unit == openbook::AMX) return !openbook::forward<openbook::AMX>(*p);
#endif
    return !openbook::forward<openbook::AVX512>(*p);
}

int openbook_attention_backward(const openbook::Problem* p) {
#ifdef OPENBOOK_AMX
    if (p->unit == openbook::AMX) return !openbook::backward<openbook::AMX>(*p);
#endif
    return !openbook::backward<openbook::AVX512>(*p);
}
}
