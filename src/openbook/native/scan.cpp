// Linear recurrences along a row, token after token: selective state spaces with their gradients, the delta rule,
// and structured state spaces.
//
// Sixteen channels lie in a vector, so that sums over states need no order but that of the states: what a row gives
// depends on that row alone, bit for bit, however it is cut into pieces.

#include <vector>
#include <omp.h>

#include "lanes.h"

namespace openbook {

// For channel c of group g and state n (decays = 1: one decay for all states of a channel):
//   h_n = exp(step · decay_n) h_n + step · x · write_n        y = Σ_n h_n · read_n + skip · x
// x, step, y [B,T,C]; write, read [B,T,G,N]; decay [decays,C]; skip [C]; kept [B,N,C] is h before and after.
// mark [B,T] may be null: 0 leaves h as it is, 2 starts from nothing. borders [B,T/chunk,N,C] may be null: h at the
// start of each chunk.
struct Scan {
    int64_t rows, tokens, channels, states, groups, decays, chunk;
    const float *x, *step, *write, *read, *decay, *skip;
    const int8_t* mark;
    float *kept, *y, *borders;
};

// What comes back: dy [B,T,C], and in `carry` [B,N,C] the gradient of the last state before, of the first one after.
// to_write and to_read [threads,B,T,G,N], to_decay [B,decays,C], to_skip [B,C] hold zeros before.
struct Back {
    const float* dy;
    float *carry, *to_x, *to_step, *to_write, *to_read, *to_decay, *to_skip;
};

struct Part {  // up to sixteen channels of one group
    int64_t group, first, count;
};

inline int64_t parts_of(const Scan& s) { return s.groups * ((s.channels / s.groups + LANES - 1) / LANES); }

inline Part part_of(const Scan& s, int64_t number) {
    const int64_t size = s.channels / s.groups, each = (size + LANES - 1) / LANES;
    const int64_t group = number / each, inside = number % each * LANES;
    return {group, group * size + inside, std::min(LANES, size - inside)};
}

struct Place {  // one token
    int mark;
    Lanes x, step, input;
    const float *write, *read;
};

inline Place place_of(const Scan& s, int64_t row, int64_t t, const Part& p) {
    const int64_t token = row * s.tokens + t, at = token * s.channels + p.first;
    const int mark = s.mark ? s.mark[token] : 1;
    const Lanes x = load(s.x + at, p.count), step = mark ? load(s.step + at, p.count) : Lanes{};
    const int64_t shared = (token * s.groups + p.group) * s.states;
    return {mark, x, step, step * x, s.write + shared, s.read + shared};
}

// N: the states if they are known, so that they stay in registers. ONE: one decay for all of them.
template <int N, bool ONE>
void forward(const Scan& s, int64_t row, const Part& p, int64_t from, int64_t to, Lanes* h) {
    const int64_t states = N ? N : s.states, C = s.channels;
    const Lanes skip = load(s.skip + p.first, p.count);
    for (int64_t t = from; t < to; t++) {
        const Place now = place_of(s, row, t, p);
        if (now.mark == 2)
            for (int64_t n = 0; n < states; n++) h[n] = Lanes{};
        Lanes sum = now.x * skip, decay;
        if (ONE) decay = exp(now.step * load(s.decay + p.first, p.count));
        for (int64_t n = 0; n < states; n++) {
            if (!ONE) decay = exp(now.step * load(s.decay + n * C + p.first, p.count));
            h[n] = fma(decay, h[n], now.input * now.write[n]);
            sum = fma(h[n], all(now.read[n]), sum);
        }
        store(s.y + (row * s.tokens + t) * C + p.first, sum, p.count);
    }
}

using Forward = void (*)(const Scan&, int64_t, const Part&, int64_t, int64_t, Lanes*);
inline Forward choose(const Scan& s) {
    if (s.decays == 1) return forward<0, true>;
    return s.states == 16 ? forward<16, false> : forward<0, false>;
}

inline void load_state(const Scan& s, const float* from, int64_t row, const Part& p, Lanes* h) {
    for (int64_t n = 0; n < s.states; n++) h[n] = load(from + (row * s.states + n) * s.channels + p.first, p.count);
}
inline void store_state(const Scan& s, float* to, int64_t row, const Part& p, const Lanes* h) {
    for (int64_t n = 0; n < s.states; n++) store(to + (row * s.states + n) * s.channels + p.first, h[n], p.count);
}

inline int64_t chunks_of(const Scan& s) { return (s.tokens + s.chunk - 1) / s.chunk; }

// The states before each token of a chunk and the decays into it, [tokens,N] and [tokens,decays].
void again(const Scan& s, int64_t row, const Part& p, int64_t from, int64_t to, Lanes* h, Lanes* before, Lanes* decays) {
    const int64_t N = s.states;
    for (int64_t t = from; t < to; t++) {
        const Place now = place_of(s, row, t, p);
        for (int64_t n = 0; n < N; n++, before++) {
            if (now.mark == 2) h[n] = Lanes{};
            *before = h[n];
            if (n < s.decays) *decays++ = exp(now.step * load(s.decay + n * s.channels + p.first, p.count));
            h[n] = fma(decays[-1], h[n], now.input * now.write[n]);
        }
    }
}

struct Sums {  // over the channels of a thread, for each token of a chunk: [tokens,N]
    Lanes *to_write, *to_read;
};

void backward(const Scan& s, const Back& b, int64_t row, const Part& p, int64_t from, int64_t to, const Lanes* before,
              const Lanes* decays, Lanes* g, Sums sums) {
    const int64_t N = s.states, C = s.channels, D = s.decays;
    const Lanes skip = load(s.skip + p.first, p.count);
    Lanes to_skip = load(b.to_skip + row * C + p.first, p.count);
    float* to_decay = b.to_decay + row * D * C + p.first;
    for (int64_t t = to - 1; t >= from; t--) {
        const Place now = place_of(s, row, t, p);
        const int64_t at = (row * s.tokens + t) * C + p.first, i = t - from;
        const Lanes dy = load(b.dy + at, p.count);
        Lanes to_input = {}, to_step = {}, whole = {};
        for (int64_t n = 0; n < N; n++) {
            const Lanes h0 = before[i * N + n], e = decays[i * D + (D == 1 ? 0 : n)];
            const Lanes h = fma(e, h0, now.input * now.write[n]);
            sums.to_read[i * N + n] += dy * h;
            g[n] = fma(dy, all(now.read[n]), g[n]);
            sums.to_write[i * N + n] += g[n] * now.input;
            to_input = fma(g[n], all(now.write[n]), to_input);
            const Lanes ge = g[n] * e, power = ge * h0;  // of step · decay
            g[n] = now.mark == 2 ? Lanes{} : ge;
            if (D == 1) {
                whole += power;
            } else {
                to_step = fma(power, load(s.decay + n * C + p.first, p.count), to_step);
                store(to_decay + n * C, fma(power, now.step, load(to_decay + n * C, p.count)), p.count);
            }
        }
        if (D == 1) {
            to_step = whole * load(s.decay + p.first, p.count);
            store(to_decay, fma(whole, now.step, load(to_decay, p.count)), p.count);
        }
        to_step = now.mark ? fma(to_input, now.x, to_step) : Lanes{};
        store(b.to_step + at, to_step, p.count);
        store(b.to_x + at, fma(to_input, now.step, dy * skip), p.count);
        to_skip = fma(dy, now.x, to_skip);
    }
    store(b.to_skip + row * C + p.first, to_skip, p.count);
}

inline void add_sums(const Scan& s, int64_t row, int64_t group, int64_t from, int64_t to, Lanes* sums, float* out) {
    for (int64_t t = from; t < to; t++)
        for (int64_t n = 0; n < s.states; n++, sums++) {
            out[((row * s.tokens + t) * s.groups + group) * s.states + n] += total(*sums);
            *sums = Lanes{};
        }
}

// f(row, first part, last part + 1) for this thread's share of all rows and parts.
template <class F>
void in_rows(const Scan& s, F f) {
    const int64_t parts = parts_of(s), all = s.rows * parts, id = omp_get_thread_num(), count = omp_get_num_threads();
    int64_t first = all * id / count;
    const int64_t last = all * (id + 1) / count;
    while (first < last) {
        const int64_t row = first / parts, end = std::min(last, (row + 1) * parts);
        f(row, first - row * parts, end - row * parts);
        first = end;
    }
}

inline int workers(double work, int64_t threads) { return work < 3e4 ? 1 : (int)threads; }

// The gated delta rule of one head (nn/delta.py): for each token, with S [K,V] and u [V]
//   S = decay · S      u = rate · (v − Sᵀ k)      S = S + k uᵀ      y = Sᵀ q
// q, k [B,T,G,K], v, y [B,T,H,V], decay and rate [B,T,H], kept [B,H,K,V]; head h reads q and k of group h · G / H.
struct Delta {
    int64_t rows, tokens, heads, groups, key, value;
    const float *q, *k, *v, *decay, *rate;
    const int8_t* mark;
    float *kept, *y;
};

void delta(const Delta& d, int64_t row, int64_t head, int64_t first, int64_t count, Lanes* s) {
    const int64_t K = d.key, V = d.value, group = head * d.groups / d.heads;
    float* kept = d.kept + (row * d.heads + head) * K * V + first;
    for (int64_t i = 0; i < K; i++) s[i] = load(kept + i * V, count);
    for (int64_t t = 0; t < d.tokens; t++) {
        const int64_t token = row * d.tokens + t, at = (token * d.heads + head) * V + first;
        const int mark = d.mark ? d.mark[token] : 1;
        const float *q = d.q + (token * d.groups + group) * K, *k = d.k + (token * d.groups + group) * K;
        const Lanes decay = all(mark == 2 ? 0.0f : mark ? d.decay[token * d.heads + head] : 1.0f);
        const Lanes rate = all(mark ? d.rate[token * d.heads + head] : 0.0f);
        Lanes seen = {}, y = {};
        for (int64_t i = 0; i < K; i++) {
            s[i] = s[i] * decay;
            seen = fma(s[i], all(k[i]), seen);
        }
        const Lanes u = rate * (load(d.v + at, count) - seen);
        for (int64_t i = 0; i < K; i++) {
            s[i] = fma(u, all(k[i]), s[i]);
            y = fma(s[i], all(q[i]), y);
        }
        store(d.y + at, y, count);
    }
    for (int64_t i = 0; i < K; i++) store(kept + i * V, s[i], count);
}

// A structured state space (nn/structured.py): for each channel and state, complex numbers as two,
//   h = turn · h + write · x        y = 2 Re Σ h · read + skip · x
// turn, write, read [2,N,C] (real parts, then imaginary); x, y [B,T,C]; kept [B,2,N,C].
struct Turn {
    int64_t rows, tokens, channels, states;
    const float *x, *turn, *write, *read, *skip;
    float *kept, *y;
};

void turn(const Turn& d, int64_t row, int64_t first, int64_t count, Lanes* h) {
    const int64_t N = d.states, C = d.channels, imaginary = N * C;
    float* kept = d.kept + row * 2 * N * C + first;
    for (int64_t n = 0; n < 2 * N; n++) h[n] = load(kept + n * C, count);
    for (int64_t t = 0; t < d.tokens; t++) {
        const int64_t at = (row * d.tokens + t) * C + first;
        const Lanes x = load(d.x + at, count);
        Lanes sum = {};
        for (int64_t n = 0; n < N; n++) {
            const int64_t here = n * C + first, there = here + imaginary;
            const Lanes a = load(d.turn + here, count), b = load(d.turn + there, count);
            const Lanes re = fma(a, h[n], load(d.write + here, count) * x) - b * h[N + n];
            const Lanes im = fma(a, h[N + n], load(d.write + there, count) * x) + b * h[n];
            sum = fma(re, load(d.read + here, count), sum) - im * load(d.read + there, count);
            h[n] = re;
            h[N + n] = im;
        }
        store(d.y + at, fma(load(d.skip + first, count), x, sum + sum), count);
    }
    for (int64_t n = 0; n < 2 * N; n++) store(kept + n * C, h[n], count);
}

template <class F>
int guarded(F f) {  // 0: done; 1: no memory
    try {
        f();
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

using Memory = std::vector<float>;
inline Lanes* aligned(Memory& memory) { return (Lanes*)(((uintptr_t)memory.data() + 63) & ~(uintptr_t)63); }

}  // namespace openbook

using namespace openbook;

extern "C" {

int openbook_scan_forward(const Scan* s, int64_t threads) {
    const int64_t N = s->states, work = s->rows * s->tokens * s->channels * N;
    const int count = workers((double)work, threads);
    return guarded([&] {
        std::vector<Memory> memory(count, Memory(LANES * N * (parts_of(*s) + 1)));
        const Forward run = choose(*s);
#pragma omp parallel num_threads(count)
        in_rows(*s, [&](int64_t row, int64_t first, int64_t last) {
            Lanes* h = aligned(memory[omp_get_thread_num()]);
            for (int64_t i = first; i < last; i++) load_state(*s, s->kept, row, part_of(*s, i), h + (i - first) * N);
            for (int64_t c = 0; c < chunks_of(*s); c++)
                for (int64_t i = first; i < last; i++) {
                    const Part p = part_of(*s, i);
                    if (s->borders) store_state(*s, s->borders, row * chunks_of(*s) + c, p, h + (i - first) * N);
                    run(*s, row, p, c * s->chunk, std::min(s->tokens, (c + 1) * s->chunk), h + (i - first) * N);
                }
            for (int64_t i = first; i < last; i++) store_state(*s, s->kept, row, part_of(*s, i), h + (i - first) * N);
        });
    });
}

int openbook_scan_threads(const Scan* s, int64_t threads) {  // how many to_write and to_read there must be
    return workers((double)s->rows * s->tokens * s->channels * s->states, threads);
}

int openbook_scan_backward(const Scan* s, const Back* b, int64_t threads) {
    const int64_t N = s->states, L = s->chunk, count = openbook_scan_threads(s, threads), wide = N * LANES;
    const int64_t shared = s->rows * s->tokens * s->groups * N;
    return guarded([&] {
        std::vector<Memory> memory(count, Memory(wide * parts_of(*s) + (4 * L + 1) * wide + LANES));
#pragma omp parallel num_threads(count)
        in_rows(*s, [&](int64_t row, int64_t first, int64_t last) {
            const int64_t thread = omp_get_thread_num();
            Lanes *h = aligned(memory[thread]), *before = h + N, *decays = before + L * N, *g = decays + L * N;
            const Sums sums = {g + parts_of(*s) * N, g + (parts_of(*s) + L) * N};
            for (int64_t i = first; i < last; i++) load_state(*s, b->carry, row, part_of(*s, i), g + (i - first) * N);
            for (int64_t c = chunks_of(*s) - 1; c >= 0; c--) {
                const int64_t from = c * L, to = std::min(s->tokens, from + L);
                for (int64_t i = first; i < last; i++) {
                    const Part p = part_of(*s, i);
                    load_state(*s, s->borders, row * chunks_of(*s) + c, p, h);
                    again(*s, row, p, from, to, h, before, decays);
                    backward(*s, *b, row, p, from, to, before, decays, g + (i - first) * N, sums);
                    if (i + 1 == last || part_of(*s, i + 1).group != p.group) {
                        add_sums(*s, row, p.group, from, to, sums.to_write, b->to_write + thread * shared);
                        add_sums(*s, row, p.group, from, to, sums.to_read, b->to_read + thread * shared);
                    }
                }
            }
            for (int64_t i = first; i < last; i++) store_state(*s, b->carry, row, part_of(*s, i), g + (i - first) * N);
        });
    });
}

int openbook_scan_delta(const Delta* d, int64_t threads) {
    const int64_t blocks = (d->value + LANES - 1) / LANES, tasks = d->rows * d->heads * blocks;
    const int count = workers((double)d->rows * d->tokens * d->heads * d->key * d->value, threads);
    return guarded([&] {
        std::vector<Memory> memory(count, Memory(LANES * (d->key + 1)));
#pragma omp parallel for schedule(static) num_threads(count)
        for (int64_t task = 0; task < tasks; task++) {
            const int64_t first = task % blocks * LANES, head = task / blocks;
            delta(*d, head / d->heads, head % d->heads, first, std::min(LANES, d->value - first),
                  aligned(memory[omp_get_thread_num()]));
        }
    });
}

int openbook_scan_turn(const Turn* d, int64_t threads) {
    const int64_t blocks = (d->channels + LANES - 1) / LANES, tasks = d->rows * blocks;
    const int count = workers((double)d->rows * d->tokens * d->channels * d->states, threads);
    return guarded([&] {
        std::vector<Memory> memory(count, Memory(LANES * (2 * d->states + 1)));
#pragma omp parallel for schedule(static) num_threads(count)
        for (int64_t task = 0; task < tasks; task++) {
            const int64_t first = task % blocks * LANES;
            turn(*d, task / blocks, first, std::min(LANES, d->channels - first),
                 aligned(memory[omp_get_thread_num()]));
        }
    });
}
}
