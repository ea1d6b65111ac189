// The walk of some query rows of one key/value head over the pages of their sequence.
//
// Rows are queries x the heads that share the key/value head. A piece of 128 keys is taken at a time: scores, the softmax
// with a running top (Dao et al. 2022), weights times values. Every 512 keys a new softmax begins, and the two are joined:
// on this fixed grid the chunks of one row may be walked by several threads. All of it is per row: a row's numbers do not
// depend on the rows beside it. Keys that a row does not see weigh exactly 0 and change nothing.

#pragma once

#include "paged_pages.h"

namespace openbook {

enum { PLAIN = 0, VECTORS = 1, MATRICES = 2 };  // units: fp32, AVX-512 BF16, AMX
constexpr int64_t ROWS = 32;                    // taken together
constexpr float LEAST = -1e30f;                 // below every score; finite, so that differences are

struct State {  // what a softmax of each row has taken in
    float* top;    // [rows]
    float* sum;    // [rows,16]
    float* mixed;  // [rows, values padded]
    int64_t width;
    static int64_t size(int64_t rows, int64_t width) { return rows * (16 + 16 + width); }
    State(float* room, int64_t rows, int64_t width)
        : top(room), sum(room + 16 * rows), mixed(room + 32 * rows), width(width) {}
    void clear(int64_t rows) {
        for (int64_t i = 0; i < rows; i++) top[i] = LEAST;
        memset(sum, 0, rows * 64);
        memset(mixed, 0, rows * width * 4);
    }
    void scale(int64_t r, Floats factor) {
        store(sum + 16 * r, load(sum + 16 * r) * factor);
        for (int64_t i = 0; i < width; i += 16)
            store(mixed + r * width + i, load(mixed + r * width + i) * factor);
    }
    void join(const State& other, int64_t rows) {
        for (int64_t r = 0; r < rows; r++) {
            const float high = std::max(top[r], other.top[r]);
            const Floats mine = exp2(all(top[r] - high)), others = exp2(all(other.top[r] - high));
            top[r] = high;
            scale(r, mine);
            store(sum + 16 * r, fma(load(other.sum + 16 * r), others, load(sum + 16 * r)));
            for (int64_t i = r * width; i < (r + 1) * width; i += 16)
                store(mixed + i, fma(load(other.mixed + i), others, load(mixed + i)));
        }
    }
};

struct Item {  // rows first..first+count-1 of sequence `sequence` (query · group + head) and key/value head `head`
    int64_t sequence, head, first, count;
};

struct Piece {  // blocks from..to-1 of the piece of keys that begins at key `base`
    int64_t base, from, to, valid;
    const char *keys[RUN], *values[RUN];
    const float *key_scales[RUN], *value_scales[RUN];
    int64_t keys_in(int64_t b) const { return std::min(BLOCK, valid - BLOCK * b); }
};

// ---------------------------------------------------------------------------------------------- products

// Scores of R rows and B blocks of keys.
template <class Word, int R, int B>
inline void score_some(const Shape& s, const char* q, const char* const* keys, float* scores) {
    Floats sums[R][2 * B];
    for (int r = 0; r < R; r++)
        for (int i = 0; i < 2 * B; i++) sums[r][i] = all(0);
    for (int64_t w = 0; w < s.words; w++) {
        Floats right[2 * B];
        for (int i = 0; i < 2 * B; i++) right[i] = load(keys[i / 2] + i % 2 * s.key_half + w * s.key_step);
        for (int r = 0; r < R; r++) {
            int32_t left;
            memcpy(&left, q + r * s.row + 4 * w, 4);
            for (int i = 0; i < 2 * B; i++) sums[r][i] = Word::dot(sums[r][i], left, right[i]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int i = 0; i < 2 * B; i++) store(scores + r * PIECE + 16 * i, sums[r][i]);
}

template <class Word, int R>
inline void score_rows(const Shape& s, const char* q, const Piece& piece, float* scores) {
    constexpr int B = R <= 2 ? 4 : R <= 4 ? 2 : 1;
    int64_t b = piece.from;
    for (; b + B <= piece.to; b += B) score_some<Word, R, B>(s, q, piece.keys + b, scores + BLOCK * b);
    if (B > 1)
        for (; b < piece.to; b++) score_some<Word, R, 1>(s, q, piece.keys + b, scores + BLOCK * b);
}

// Weights of R rows times J tiles of values, added to `mixed`.
template <class Word, int R, int J>
inline void mix_some(const Shape& s, const char* weights, const Piece& piece, int64_t tile, float* mixed) {
    constexpr int64_t row = PIECE * 4 / Word::numbers;
    const int64_t width = 16 * s.value_tiles;
    Floats sums[R][J];
    for (int r = 0; r < R; r++)
        for (int j = 0; j < J; j++) sums[r][j] = load(mixed + r * width + 16 * (tile + j));
    const auto step = [&](int64_t b, int64_t w, auto change) {
        Floats right[J];
        for (int j = 0; j < J; j++)
            right[j] = change(load(piece.values[b] + (tile + j) * s.value_tile + w * s.value_step));
        for (int r = 0; r < R; r++) {
            int32_t left;
            memcpy(&left, weights + r * row + 4 * (b * (BLOCK / Word::numbers) + w), 4);
            for (int j = 0; j < J; j++) sums[r][j] = Word::dot(sums[r][j], left, right[j]);
        }
    };
    for (int64_t b = piece.from; b < piece.to; b++) {
        const int64_t keys = piece.keys_in(b), whole = keys / Word::numbers;
        for (int64_t w = 0; w < whole; w++) step(b, w, [](Floats x) { return x; });
        if (keys % Word::numbers) step(b, whole, [](Floats x) { return Word::first(x); });
    }
    for (int r = 0; r < R; r++)
        for (int j = 0; j < J; j++) store(mixed + r * width + 16 * (tile + j), sums[r][j]);
}

template <class Word, int R>
inline void mix_rows(const Shape& s, const char* weights, const Piece& piece, float* mixed) {
    constexpr int J = R <= 4 ? 4 : 2;
    int64_t tile = 0;
    for (; tile + J <= s.value_tiles; tile += J) mix_some<Word, R, J>(s, weights, piece, tile, mixed);
    for (; tile < s.value_tiles; tile++) mix_some<Word, R, 1>(s, weights, piece, tile, mixed);
}

// work(row, R) for groups of 8 rows and what is left.
template <class Work>
inline void by_eights(int64_t rows, Work work) {
    int64_t r = 0;
    for (; r + 8 <= rows; r += 8) work(r, std::integral_constant<int, 8>());
    switch (rows - r) {
        case 1: return work(r, std::integral_constant<int, 1>());
        case 2: return work(r, std::integral_constant<int, 2>());
        case 3: return work(r, std::integral_constant<int, 3>());
        case 4: return work(r, std::integral_constant<int, 4>());
        case 5: return work(r, std::integral_constant<int, 5>());
        case 6: return work(r, std::integral_constant<int, 6>());
        case 7: return work(r, std::integral_constant<int, 7>());
    }
}

#ifdef OPENBOOK_AMX

template <int M>
inline void score_tiles(const Shape& s, char* q, const Piece& piece, float* scores) {
    for (int64_t b = piece.from; b < piece.to; b++)
        amx_block<M, 2>(scores + BLOCK * b, PIECE, {q, 16 * s.row, 64, s.row},
                        {(char*)piece.keys[b], s.key_half, TILE}, s.chunks, false);
}

// Tiles 0 to 3 are sums (0,0), (0,1), (1,0), (1,1); 4 and 5 weights; 6 and 7 values.
template <int M, int N>
inline void mix_tiles(const Shape& s, const char* weights, const Piece& piece, int64_t tile, float* mixed) {
    const int64_t width = 16 * s.value_tiles, stride = 4 * width, row = 2 * PIECE;
    float *upper = mixed + 16 * tile, *lower = upper + 16 * width;
    TILE_LOAD(0, upper, stride);
    if (N > 1) TILE_LOAD(1, upper + 16, stride);
    if (M > 1) TILE_LOAD(2, lower, stride);
    if (M > 1 && N > 1) TILE_LOAD(3, lower + 16, stride);
    for (int64_t b = piece.from; b < piece.to; b++) {
        const char* right = piece.values[b] + tile * TILE;
        TILE_LOAD(6, right, 64);
        TILE_LOAD(4, weights + 64 * b, row);
        TILE_MULTIPLY(0, 4, 6);
        if (N > 1) TILE_LOAD(7, right + TILE, 64);
        if (N > 1) TILE_MULTIPLY(1, 4, 7);
        if (M > 1) TILE_LOAD(5, weights + 64 * b + 16 * row, row);
        if (M > 1) TILE_MULTIPLY(2, 5, 6);
        if (M > 1 && N > 1) TILE_MULTIPLY(3, 5, 7);
    }
    TILE_STORE(0, upper, stride);
    if (N > 1) TILE_STORE(1, upper + 16, stride);
    if (M > 1) TILE_STORE(2, lower, stride);
    if (M > 1 && N > 1) TILE_STORE(3, lower + 16, stride);
}

template <int M>
inline void mix_all_tiles(const Shape& s, const char* weights, const Piece& piece, float* mixed) {
    int64_t tile = 0;
    for (; tile + 2 <= s.value_tiles; tile += 2) mix_tiles<M, 2>(s, weights, piece, tile, mixed);
    if (tile < s.value_tiles) mix_tiles<M, 1>(s, weights, piece, tile, mixed);
}

#endif

// ---------------------------------------------------------------------------------------------- the walk

template <class Word, bool matrices>
struct Walker {
    const Problem& p;
    const Shape& s;
    int64_t group, rows;                       // heads that share a key/value head; rows of scratch
    char *q, *weights, *wide_keys, *wide_values;
    float* scores;

    Walker(const Problem& problem, const Shape& shape)
        : p(problem), s(shape), group(p.heads / p.kv_heads), rows(ROWS) {}
    void take() {
        scratch.take(q, rows * s.row);
        scratch.take(scores, rows * PIECE);
        scratch.take(weights, rows * PIECE * 4 / Word::numbers);
        scratch.take(wide_keys, s.kind == INT8 ? RUN * s.wide_keys : 0);
        scratch.take(wide_values, RUN * s.wide_values);
    }

    int64_t length(const Item& item) const { return p.lengths[item.sequence]; }
    int64_t position(const Item& item, int64_t row) const {  // the last key that a row may see
        if (!p.causal) return length(item) - 1;
        const int64_t queries = p.starts[item.sequence + 1] - p.starts[item.sequence];
        return length(item) - queries + (item.first + row) / group;
    }
    int64_t begin(const Item& item) const {
        return p.window ? std::max<int64_t>(0, position(item, 0) - p.window + 1) : 0;
    }
    int64_t end(const Item& item) const {
        return std::max<int64_t>(0, std::min(length(item), position(item, item.count - 1) + 1));
    }

    // Where row r of an item stands in q and out.
    const char* place(const Strided& x, const Item& item, int64_t r) const {
        const int64_t row = item.first + r, token = p.starts[item.sequence] + row / group;
        return x.data + (token * x.token + (item.head * group + row % group) * x.head) * (p.input == FLOAT ? 4 : 2);
    }

    void pack(const Item& item) {
        const int64_t count = matrices ? padded(item.count, 16) : item.count;
        for (int64_t r = 0; r < count; r++) {
            char* to = q + r * s.row;
            if (r >= item.count || s.kind != FLOAT) memset(to, 0, s.row);
            if (r >= item.count) continue;
            const char* from = place(p.q, item, r);
            if (s.kind == FLOAT)
                for (int64_t i = 0; i < s.key_dim; i++) ((float*)to)[i] = number(from, p.input, i);
            else if (p.input == BF16) memcpy(to, from, 2 * s.key_dim);
            else
                for (int64_t i = 0; i < s.key_dim; i++) ((uint16_t*)to)[i] = narrow(((const float*)from)[i]);
        }
    }

    void find(const Item& item, int64_t base, Piece& piece) {
        const int64_t last = end(item), each = p.page / BLOCK;
        piece.base = base;
        piece.from = std::max<int64_t>(0, begin(item) - base) / BLOCK;
        piece.to = (std::min(PIECE, last - base) + BLOCK - 1) / BLOCK;
        piece.valid = std::min(PIECE, length(item) - base);
        const int32_t* table = p.table + item.sequence * p.width;
        for (int64_t b = piece.from; b < piece.to; b++) {
            const int64_t block = base / BLOCK + b;
            const int64_t stored = (int64_t)table[block / each] * each + block % each;
            prepare(p.pages + (stored * p.kv_heads + item.head) * s.block, b, piece);
        }
    }

    void prepare(const char* block, int64_t b, Piece& piece) {
        char* values = wide_values + b * s.wide_values;
        piece.keys[b] = block;
        piece.values[b] = block + s.key_bytes;
        if (s.kind == INT8) {
            char* keys = wide_keys + b * s.wide_keys;
            expand(block, s.key_bytes, (uint16_t*)keys);
            if (!s.latent) expand(block + s.key_bytes, s.value_bytes, (uint16_t*)values);
            piece.keys[b] = keys;
            piece.values[b] = values;
            piece.key_scales[b] = (const float*)(block + s.key_bytes + s.value_bytes);
            piece.value_scales[b] = piece.key_scales[b] + (s.latent ? 0 : BLOCK);
        }
        if (s.latent) {
            prefix(s, piece.keys[b], values);
            piece.values[b] = values;
        }
        if (matrices && piece.keys_in(b) < BLOCK) {  // whole tiles are multiplied
            if (piece.values[b] != values) memcpy(values, piece.values[b], s.wide_values);
            piece.values[b] = values;
            clear_rest(s, values, piece.keys_in(b));
        }
    }

    // Sixteen scores of row r from key `at` of the piece on, in exponents of 2.
    Floats score(const Item& item, const Piece& piece, int64_t r, int64_t at) const {
        Floats x = load(scores + r * PIECE + at);
        if (s.kind == INT8) x = x * load(piece.key_scales[at / BLOCK] + at % BLOCK);
        if (!p.softcap && !p.bias) return x * all((float)(p.scale * LOG2E));
        x = x * all((float)p.scale);
        if (p.softcap) x = tanh(x * all((float)(1 / p.softcap))) * all((float)p.softcap);
        if (p.bias) {
            const float* bias = p.bias + (item.head * group + (item.first + r) % group) * p.bias_length;
            const int64_t distance = position(item, r) - piece.base - at;
            float more[16];
            for (int64_t i = 0; i < 16; i++)
                more[i] = bias[std::min(std::max<int64_t>(distance - i, 0), p.bias_length - 1)];
            x = x + load(more);
        }
        return x * all((float)LOG2E);
    }

    // Scores of row r to weights; what was taken in before is scaled to the new top.
    void weigh(const Item& item, const Piece& piece, int64_t r, State& state) {
        const int64_t last = position(item, r), size = 4 / Word::numbers;
        const int64_t first = p.window ? std::max<int64_t>(0, last - p.window + 1) : 0;
        const int64_t from = BLOCK * piece.from, to = BLOCK * piece.to;
        const int64_t low = std::clamp(first - piece.base, from, to);
        const int64_t high = std::clamp(std::min(last + 1 - piece.base, piece.valid), low, to);
        char* out = weights + r * PIECE * size;
        const int64_t begin = low / 16 * 16, stop = padded(high, 16);
        memset(out + from * size, 0, (begin - from) * size);
        memset(out + stop * size, 0, (to - stop) * size);
        if (low >= high) {
            memset(out + begin * size, 0, (stop - begin) * size);
            return;
        }
        float* row = scores + r * PIECE;
        Floats most = all(state.top[r]);
        for (int64_t i = begin; i < stop; i += 16) {
            const Floats x = within(low - i, high - i, score(item, piece, r, i), all(-INFINITY));
            store(row + i, x);
            most = greater(x, most);
        }
        const float top = greatest(most);
        if (top != state.top[r]) state.scale(r, exp2(all(state.top[r] - top)));
        state.top[r] = top;
        Floats sum = load(state.sum + 16 * r);
        for (int64_t i = begin; i < stop; i += 16) {
            Floats x = exp2(load(row + i) - all(top));
            sum = sum + x;
            if (s.kind == INT8)
                x = within(low - i, high - i, x * load(piece.value_scales[i / BLOCK] + i % BLOCK), all(0));
            if (Word::numbers == 1) store(out + 4 * i, x);
            else store_narrow((uint16_t*)out + i, x);
        }
        store(state.sum + 16 * r, sum);
    }

    void take_piece(const Item& item, int64_t base, State& state) {
        Piece piece;
        find(item, base, piece);
#ifdef OPENBOOK_AMX
        if (matrices) {
            const bool two = item.count > 16;
            two ? score_tiles<2>(s, q, piece, scores) : score_tiles<1>(s, q, piece, scores);
            for (int64_t r = 0; r < item.count; r++) weigh(item, piece, r, state);
            two ? mix_all_tiles<2>(s, weights, piece, state.mixed) : mix_all_tiles<1>(s, weights, piece, state.mixed);
            return;
        }
#endif
        by_eights(item.count, [&](int64_t r, auto count) {
            constexpr int R = decltype(count)::value;
            score_rows<Word, R>(s, q + r * s.row, piece, scores + r * PIECE);
            for (int64_t i = r; i < r + R; i++) weigh(item, piece, i, state);
            mix_rows<Word, R>(s, weights + r * PIECE * 4 / Word::numbers, piece, state.mixed + r * state.width);
        });
    }

    // The keys of one chunk, for an item whose queries are packed.
    void take_chunk(const Item& item, int64_t chunk, State& state) {
        state.clear(rows);
        const int64_t stop = std::min((chunk + 1) * CHUNK, end(item));
        for (int64_t base = std::max(chunk * CHUNK, begin(item) / PIECE * PIECE); base < stop; base += PIECE)
            take_piece(item, base, state);
    }

    void finish(const Item& item, State& state) {
        for (int64_t r = 0; r < item.count; r++) {
            float top = state.top[r], total = sum(load(state.sum + 16 * r)), factor = 1;
            if (p.sinks) {
                const float sink = p.sinks[item.head * group + (item.first + r) % group] * LOG2E;
                const float high = std::max(top, sink);
                float shares[16];
                store(shares, exp2(within(0, 1, all(top - high), all(sink - high))));
                factor = shares[0];
                total = total * factor + shares[1];
            }
            const Floats share = all(total == 0 ? 0.0f : factor / total);
            char* out = (char*)place(p.out, item, r);
            for (int64_t i = 0; i < s.value_dim; i += 16) {
                const Floats x = load(state.mixed + r * state.width + i) * share;
                const int64_t count = std::min<int64_t>(16, s.value_dim - i);
                if (p.input == FLOAT) memcpy(out + 4 * i, &x, 4 * count);
                else {
                    uint16_t half[16];
                    store_narrow(half, x);
                    memcpy(out + 2 * i, half, 2 * count);
                }
            }
        }
    }
};

}  // namespace openbook
