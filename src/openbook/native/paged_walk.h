// The walk of some query rows of one key/value head over the pages of their sequence.
//
// Rows are queries x the heads that share the key/value head. A piece of 128 keys is taken at a time: scores, the softmax
// with a running top (Dao et al. 2022), weights times values. Every 512 keys a new softmax begins, and the two are joined:
// on this fixed grid the chunks of one row may be walked by several threads. All of it is per row: a row's numbers do not
// depend on the rows beside it. Keys that a row does not see weigh exactly 0 and change nothing.

#pragma once

#include "paged_products.h"

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

// ---------------------------------------------------------------------------------------------- the walk

template <class Word, bool matrices>
struct Walker {
    const Problem& p;
    const Shape& s;
    int64_t group, rows;                       // heads that share a key/value head; rows of scratch
    char *q, *weights, *wide_keys, *wide_values;
    float* scores;
    float factor;  // scores times this are exponents of 2
    bool simple;   // that is all that happens to scores

    Walker(const Problem& problem, const Shape& shape)
        : p(problem), s(shape), group(p.heads / p.kv_heads), rows(ROWS), factor((float)(p.scale * LOG2E)),
          simple(s.kind != INT8 && !p.softcap && !p.bias && factor > 0) {}
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
    int64_t first(int64_t last) const {  // the first key that a query whose last is this one sees
        const int64_t window = p.window ? last - p.window + 1 : 0, chunk = p.chunk ? last - last % p.chunk : 0;
        return std::max<int64_t>(0, std::max(window, chunk));
    }
    int64_t begin(const Item& item) const { return first(position(item, 0)); }
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

    const char* block(const Item& item, int64_t number) const {
        const int64_t each = p.page / BLOCK, page = p.table[item.sequence * p.width + number / each];
        return p.pages + ((page * each + number % each) * p.kv_heads + item.head) * s.block;
    }

    // The piece of keys at `base`, and what comes after it: the next piece of this item, or the first of the item `after`.
    void find(const Item& item, int64_t base, const Item& after, Piece& piece) {
        const int64_t last = end(item);
        piece.base = base;
        piece.from = std::max<int64_t>(0, begin(item) - base) / BLOCK;
        piece.to = (std::min(PIECE, last - base) + BLOCK - 1) / BLOCK;
        piece.valid = std::min(PIECE, length(item) - base);
        const bool more = base + PIECE < last;
        const Item& then = more ? item : after;
        const int64_t number = (more ? base + PIECE : begin(after) / PIECE * PIECE) / BLOCK;
        const int64_t stop = (end(then) + BLOCK - 1) / BLOCK;
        for (int64_t b = piece.from; b < piece.to; b++) {
            const char* own = block(item, base / BLOCK + b);
            prepare(own, number + b < stop ? block(then, number + b) : own, b, piece);
        }
    }

    void prepare(const char* block, const char* next, int64_t b, Piece& piece) {
        char* values = wide_values + b * s.wide_values;
        piece.keys[b] = block;
        piece.values[b] = block + s.key_bytes;
        piece.next_keys[b] = next;
        piece.next_values[b] = next + s.key_bytes;
        if (s.kind == INT8) {
            char* keys = wide_keys + b * s.wide_keys;
            expand(block, s.key_bytes, (uint16_t*)keys, next);
            if (!s.latent) expand(block + s.key_bytes, s.value_bytes, (uint16_t*)values, next + s.key_bytes);
            piece.keys[b] = piece.next_keys[b] = keys;
            piece.values[b] = piece.next_values[b] = values;
            piece.key_scales[b] = (const float*)(block + s.key_bytes + s.value_bytes);
            piece.value_scales[b] = piece.key_scales[b] + (s.latent ? 0 : BLOCK);
        }
        if (s.latent) {
            prefix(s, piece.keys[b], values);
            piece.values[b] = piece.next_values[b] = values;
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
        if (!p.softcap && !p.bias) return x * all(factor);
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
        const int64_t first = this->first(last);
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
        if (simple) weigh_seen<true>(item, piece, r, low, high, out, state);
        else weigh_seen<false>(item, piece, r, low, high, out, state);
    }

    // The keys low..high-1, of which there are some.
    template <bool simple>
    void weigh_seen(const Item& item, const Piece& piece, int64_t r, int64_t low, int64_t high, char* out,
                    State& state) {
        const int64_t begin = low / 16 * 16, stop = padded(high, 16);
        float* row = scores + r * PIECE;
        Floats most = all(simple ? -INFINITY : state.top[r]);
        for (int64_t i = begin; i < stop; i += 16) {
            Floats x = simple ? load(row + i) : score(item, piece, r, i);
            if (i < low || i + 16 > high) x = within(low - i, high - i, x, all(-INFINITY));
            if (!simple || i < low || i + 16 > high) store(row + i, x);
            most = greater(x, most);
        }
        const float top = simple ? std::max(greatest(most) * factor, state.top[r]) : greatest(most);
        if (top != state.top[r]) state.scale(r, exp2(all(state.top[r] - top)));
        state.top[r] = top;
        Floats sum = load(state.sum + 16 * r);
        for (int64_t i = begin; i < stop; i += 16) {
            Floats x = exp2(simple ? fma(load(row + i), all(factor), all(-top)) : load(row + i) - all(top));
            sum = sum + x;
            if (s.kind == INT8)
                x = within(low - i, high - i, x * load(piece.value_scales[i / BLOCK] + i % BLOCK), all(0));
            if (Word::numbers == 1) store(out + 4 * i, x);
            else store_narrow((uint16_t*)out + i, x);
        }
        store(state.sum + 16 * r, sum);
    }

    void take_piece(const Item& item, int64_t base, State& state, const Item& after) {
        Piece piece;
        find(item, base, after, piece);
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
            const auto score = r ? score_rows<Word, R != 8, R> : score_rows<Word, true, R>;  // once is enough
            const auto mix = r ? mix_rows<Word, R != 8, R> : mix_rows<Word, true, R>;
            score(s, q + r * s.row, piece, scores + r * PIECE);
            for (int64_t i = r; i < r + R; i++) weigh(item, piece, i, state);
            mix(s, weights + r * PIECE * 4 / Word::numbers, piece, state.mixed + r * state.width);
        });
    }

    // The keys of one chunk, for an item whose queries are packed.
    void take_chunk(const Item& item, int64_t chunk, State& state, const Item& after) {
        state.clear(matrices ? padded(item.count, 16) : item.count);
        const int64_t stop = std::min((chunk + 1) * CHUNK, end(item));
        for (int64_t base = std::max(chunk * CHUNK, begin(item) / PIECE * PIECE); base < stop; base += PIECE)
            take_piece(item, base, state, after);
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
