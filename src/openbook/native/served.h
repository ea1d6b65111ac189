// A decoder block for any number of rows, in two calls: before and after attention (nn/served.py).
//
// Everything is made of the same functions as the single operators of rows.cpp, so that a block gives the same bits
// whether it runs here or layer by layer. With few rows every thread prepares all of them for itself, which costs less
// than waiting for one another.

#pragma once

#include "product.h"

namespace openbook {

// One residual step: x + factor · post(f(pre x)), then `last` of that. Norms of kind -1 are none.
struct Branch {
    Norm pre, post, last;
    float factor;
};

struct Block {
    int64_t dim, heads, kv_heads, head_dim, hidden, activation, parallel;
    int64_t neighbours;  // the pairs that are turned: (2i, 2i + 1), else (i, i + turned / 2)
    int64_t over;        // what head_q and head_k norm: 0 a head, 1 a head by weights of its own, 2 all heads at once
    Branch attention, ffn;
    Norm shared, head_q, head_k;  // shared: before both branches of a parallel block
    Matrix q, k, v, out, gate, up, down;  // gate.data is null where the feed-forward layer is plain
    float clip;                           // q, k and v are kept within ± this; 0: as they are
};

struct Step {  // what changes from call to call; cos and sin [R,turned]
    int64_t rows, turned;
    const float *x, *cos, *sin;
    float *q, *k, *v;
    const float* mixed;
    float* y;
};

constexpr int64_t SLICE = 512;  // rows at a time: what is between two products stays near, and needs little memory
constexpr int64_t PRIVATE = 4;  // rows that every thread prepares for itself

inline bool alike(const Matrix& a, const Matrix& b) {  // rows prepared for one serve the other
    return a.kind == b.kind && a.in == b.in && a.smooth == b.smooth;
}

// Rows normed and prepared for up to three matrices of the same input.
struct Input {
    int64_t rows, dim, copies;
    const Matrix* matrix[3];
    int count;

    Input(int64_t rows, int64_t dim, int64_t threads, std::initializer_list<const Matrix*> wanted)
        : rows(rows), dim(dim), copies(rows <= PRIVATE ? threads : 1), count(0) {
        for (const Matrix* m : wanted)
            if (m->data) matrix[count++] = m;
    }
    size_t one() const {
        size_t bytes = Scratch::size_of<float>(rows * dim);
        for (int i = 0; i < count; i++) bytes += size_of_rows(*matrix[i], rows);
        return bytes;
    }
    size_t bytes() const { return copies * one(); }

    // This thread's view of the memory at `place`; fill(row, to) gives a row in fp32, or its place where it has one.
    template <class F>
    void prepare(char* place, const Team& team, F fill, Rows (&found)[3]) const {
        Scratch part(place + (copies > 1 ? team.id * one() : 0));
        float* values = part.take<float>(rows * dim);
        for (int i = 0; i < count; i++) {
            int like = 0;
            while (!alike(*matrix[like], *matrix[i])) like++;
            found[i] = like < i ? found[like] : take_rows(part, *matrix[i], rows, values);
        }
        const Span mine = copies > 1 ? Span{0, rows} : share(rows, team.id, team.count);
        for (int64_t row = mine.first; row < mine.last; row++) {
            fill(row, values + row * dim);
            for (int i = 0; i < count; i++)
                if (i == 0 || found[i].data != found[i - 1].data)
                    openbook::prepare(*matrix[i], values + row * dim, row, found[i]);
        }
        if (copies == 1) team.wait();
    }
};

inline void turn_neighbours(float* head, const float* cos, const float* sin, int64_t turned) {
    each(turned, [&](int64_t i, int64_t count) {
        const Lanes x = load(head + i, count);
        store(head + i, x * load(cos + i, count) + swapped(x) * load(sin + i, count), count);
    });
}

inline void turn(float* head, const float* cos, const float* sin, int64_t turned) {  // sin carries its half's sign
    const int64_t half = turned / 2;
    each(half, [&](int64_t i, int64_t count) {
        const Lanes low = load(head + i, count), high = load(head + half + i, count);
        store(head + i, low * load(cos + i, count) + high * load(sin + i, count), count);
        store(head + half + i, high * load(cos + half + i, count) + low * load(sin + half + i, count), count);
    });
}

inline void clip(float* head, int64_t count, float most) {  // what is not a number stays so
    each(count, [&](int64_t i, int64_t c) {
        const Lanes x = load(head + i, c), low = x < -most ? all(-most) : x;
        store(head + i, low > most ? all(most) : low, c);
    });
}

inline void before(const Block& b, const Step& s, int64_t threads, int64_t machine) {
    const int64_t R = s.rows, D = b.dim, K = b.head_dim, H = b.heads, G = b.kv_heads;
    const Input input(R, D, threads, {&b.q, &b.k, &b.v});
    Scratch& memory = scratch();
    memory.reserve(input.bytes());
    char* place = memory.take<char>(0);
#pragma omp parallel num_threads((int)threads)
    {
        const Team team = {omp_get_thread_num(), omp_get_num_threads()};
        Rows rows[3];
        const auto fill = [&](int64_t row, float* to) {
            normalise(b.shared, s.x + row * D, D, to);
            normalise(b.attention.pre, to, D, to);
        };
        input.prepare(place, team, fill, rows);
        multiply(b.q, rows[0], {0, R}, team, machine, {s.q, H * K});
        multiply(b.k, rows[1], {0, R}, team, machine, {s.k, G * K});
        multiply(b.v, rows[2], {0, R}, team, machine, {s.v, G * K});
        if (s.turned || b.head_q.kind >= 0 || b.clip > 0) {
            team.wait();
            if (b.over == 2) {
                const Span whole = share(R, team.id, team.count);
                for (int64_t row = whole.first; row < whole.last; row++) {
                    normalise(b.head_q, s.q + row * H * K, H * K, s.q + row * H * K);
                    normalise(b.head_k, s.k + row * G * K, G * K, s.k + row * G * K);
                }
                team.wait();
            }
            const int64_t heads = H + G + (b.clip > 0 ? G : 0);  // values are clipped, and no more
            const Span mine = share(R * heads, team.id, team.count);
            for (int64_t i = mine.first; i < mine.last; i++) {
                const int64_t row = i / heads, number = i % heads, key = number - H, value = key - G;
                float* head = value >= 0 ? s.v + (row * G + value) * K
                              : key >= 0 ? s.k + (row * G + key) * K
                                         : s.q + (row * H + number) * K;
                if (b.clip > 0) clip(head, K, b.clip);
                if (value >= 0) continue;
                if (b.over != 2) {
                    Norm norm = key < 0 ? b.head_q : b.head_k;
                    const int64_t own = b.over == 1 ? (key < 0 ? number : key) * K : 0;
                    if (norm.weight) norm.weight += own;
                    if (norm.bias) norm.bias += own;
                    normalise(norm, head, K, head);
                }
                (b.neighbours ? turn_neighbours : turn)(head, s.cos + row * s.turned, s.sin + row * s.turned, s.turned);
            }
        }
    }
}

// y = x + factor · post(W rows), then the last norm; `step` is needed where there is a norm in between.
inline void residual(const Branch& branch, const Matrix& w, const Rows& rows, int64_t count, const Team& team,
                     int64_t machine, const float* x, float* step, float* y) {
    const int64_t D = w.out;
    const bool between = branch.post.kind >= 0;
    if (between)
        multiply(w, rows, {0, count}, team, machine, {step, D});
    else
        multiply(w, rows, {0, count}, team, machine, {y, D, x, branch.factor});
    if (!between && branch.last.kind < 0) return;
    team.wait();
    const Span mine = share(count, team.id, team.count);
    for (int64_t row = mine.first; row < mine.last; row++) {
        float *from = step + row * D, *to = y + row * D;
        if (between) {
            normalise(branch.post, from, D, from);
            each(D, [&](int64_t i, int64_t c) {
                store(to + i, load(x + row * D + i, c) + load(from + i, c) * branch.factor, c);
            });
        }
        normalise(branch.last, to, D, to);
    }
}

inline void after(const Block& b, const Step& s, int64_t threads, int64_t machine) {
    const int64_t R = s.rows, D = b.dim, F = b.hidden, M = b.heads * b.head_dim;
    const Input values(R, M, threads, {&b.out}), input(R, D, threads, {&b.up, &b.gate}), inside(R, F, threads, {&b.down});
    Scratch& memory = scratch();
    const size_t bytes = values.bytes() + input.bytes() + inside.bytes();
    memory.reserve(bytes + 2 * Scratch::size_of<float>(R * D) + 2 * Scratch::size_of<float>(R * F));
    char *first = memory.take<char>(values.bytes()), *second = memory.take<char>(input.bytes());
    char* third = memory.take<char>(inside.bytes());
    float *middle = memory.take<float>(R * D), *step = memory.take<float>(R * D);
    float *up = memory.take<float>(R * F), *gate = memory.take<float>(R * F);
#pragma omp parallel num_threads((int)threads)
    {
        const Team team = {omp_get_thread_num(), omp_get_num_threads()};
        Rows rows[3];
        values.prepare(first, team, [&](int64_t r, float* to) { memcpy(to, s.mixed + r * M, 4 * M); }, rows);
        residual(b.attention, b.out, rows[0], R, team, machine, s.x, step, middle);
        if (!b.parallel) team.wait();
        const float* from = b.parallel ? s.x : middle;
        const auto fill = [&](int64_t row, float* to) {
            normalise(b.shared, from + row * D, D, to);
            normalise(b.ffn.pre, to, D, to);
        };
        input.prepare(second, team, fill, rows);
        multiply(b.up, rows[0], {0, R}, team, machine, {up, F});
        if (b.gate.data) multiply(b.gate, rows[1], {0, R}, team, machine, {gate, F});
        const Part mine = part(b.up, {0, R}, team);  // what this thread has just made
        for (int64_t row = mine.rows.first; row < mine.rows.last; row++) {
            const int64_t start = row * F + 16 * mine.columns.first;
            each(std::min(F, 16 * mine.columns.last) - 16 * mine.columns.first, [&](int64_t i, int64_t c) {
                const Lanes u = load(up + start + i, c);
                store(up + start + i,
                      b.gate.data ? activate(b.activation, load(gate + start + i, c)) * u : activate(b.activation, u), c);
            });
        }
        team.wait();
        inside.prepare(third, team, [&](int64_t r, float* to) { memcpy(to, up + r * F, 4 * F); }, rows);
        residual(b.ffn, b.down, rows[0], R, team, machine, middle, step, s.y);
    }
}

// f(a step of at most SLICE rows) until all are done.
template <class F>
inline void in_slices(const Block& b, const Step& s, F f) {
    const int64_t query = b.heads * b.head_dim, key = b.kv_heads * b.head_dim;
    for (int64_t row = 0; row < s.rows; row += SLICE) {
        Step part = s;
        part.rows = std::min(SLICE, s.rows - row);
        part.x += row * b.dim, part.y += row * b.dim, part.mixed += row * query;
        part.cos += row * s.turned, part.sin += row * s.turned;
        part.q += row * query, part.k += row * key, part.v += row * key;
        f(part);
    }
}

}  // namespace openbook
