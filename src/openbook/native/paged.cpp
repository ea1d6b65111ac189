// Attention of packed query rows over pages of keys and values, beside nn/paged_reference.py.
//
// A task is one sequence, one key/value head and up to 32 query rows; with few tasks and long sequences, one of its
// chunks of 512 keys. Which thread takes it, and what else is in the step, changes nothing in what a row gets.

#include "paged_walk.h"

namespace openbook {

struct Tasks {
    int32_t* firsts;  // [N+1]: the first tile of each sequence
    float* partial;   // states of [tiles, chunks] where chunks are tasks of their own
    int64_t rows, tiles, chunks, states;  // rows and chunks at most; floats of a state; chunks 1: not split

    // False if there is no memory.
    template <class Walk>
    bool plan(const Problem& p, const Walk& walk) {
        const int64_t most = walk.s.value_dim > 256 ? 16 : ROWS;
        int64_t longest = 0, widest = 1;
        for (int64_t i = 0; i < p.sequences; i++) {
            longest = std::max<int64_t>(longest, p.lengths[i]);
            widest = std::max(widest, (p.starts[i + 1] - p.starts[i]) * walk.group);
        }
        rows = std::min(most, padded(widest, 16));
        const auto count = [&](int64_t i) {
            return padded((p.starts[i + 1] - p.starts[i]) * walk.group, rows) / rows;
        };
        tiles = 0;
        for (int64_t i = 0; i < p.sequences; i++) tiles += count(i) * p.kv_heads;
        chunks = padded(longest, CHUNK) / CHUNK;
        states = padded(State::size(rows, 16 * walk.s.value_tiles), 16);
        if (p.threads == 1 || tiles >= 2 * p.threads || chunks < 2) chunks = 1;
        const bool fine = shared.lend([&] {
            shared.take(firsts, p.sequences + 1);
            shared.take(partial, chunks > 1 ? tiles * chunks * states : 0);
        });
        if (!fine) return false;
        firsts[0] = 0;
        for (int64_t i = 0; i < p.sequences; i++) firsts[i + 1] = firsts[i] + (int32_t)count(i);
        return true;
    }
    Item item(const Problem& p, int64_t group, int64_t tile) const {
        const int64_t head = tile % p.kv_heads, place = tile / p.kv_heads;
        const int64_t sequence = std::upper_bound(firsts, firsts + p.sequences + 1, (int32_t)place) - firsts - 1;
        const int64_t all = (p.starts[sequence + 1] - p.starts[sequence]) * group;
        const int64_t first = (firsts[sequence + 1] - 1 - place) * rows;  // the heavy last ones come first
        return {sequence, head, first, std::min(rows, all - first)};
    }
};

// Rows of no sequence.
inline void clear_others(const Problem& p, const Shape& s) {
    const int64_t size = p.input == FLOAT ? 4 : 2, from = p.sequences ? p.starts[0] : 0;
    for (int64_t t = 0; t < p.tokens; t++)
        if (t < from || t >= (p.sequences ? p.starts[p.sequences] : 0))
            for (int64_t h = 0; h < p.heads; h++)
                memset(p.out.data + (t * p.out.token + h * p.out.head) * size, 0, s.value_dim * size);
}

template <class Word, bool matrices>
bool run(const Problem& p, bool writes, bool attends) {
    const Shape s(p);
    Walker<Word, matrices> planned(p, s);
    Tasks tasks{};
    if (attends && !tasks.plan(p, planned)) return false;
    if (attends) clear_others(p, s);
    const bool split = tasks.chunks > 1;
    bool fine = true;
    int64_t claimed = 0;
#pragma omp parallel num_threads((int)p.threads) reduction(&& : fine)
    {
#ifdef OPENBOOK_AMX
        if (matrices) amx_begin();
#endif
        Walker<Word, matrices> walker(p, s);
        walker.rows = attends ? tasks.rows : 16;
        char* room;
        float *mine, *other;
        fine = scratch.lend([&] {
            walker.take();
            scratch.take(room, 8 * padded(std::max(s.key_dim, s.value_dim), 64));
            scratch.take(mine, attends ? tasks.states : 0);
            scratch.take(other, attends ? tasks.states : 0);
        });
        if (writes) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < p.tokens * p.kv_heads; i++)
                if (fine) write_token(p, s, i / p.kv_heads, i % p.kv_heads, room);
        }
        if (attends) {
            const int64_t width = 16 * s.value_tiles;
            State total(mine, tasks.rows, width), part(other, tasks.rows, width);
            const int64_t count = tasks.tiles * tasks.chunks;
            const auto claim = [&] {  // the next task; it is claimed before it is due, so that its keys can be asked for
                int64_t mine;
#pragma omp atomic capture
                mine = claimed++;
                return mine;
            };
            for (int64_t i = fine ? claim() : count, next; i < count; i = next) {
                next = claim();
                const Item item = tasks.item(p, walker.group, i / tasks.chunks);
                const Item after = tasks.item(p, walker.group, std::min(next, count - 1) / tasks.chunks);
                walker.pack(item);
                if (split) {
                    State own(tasks.partial + i * tasks.states, tasks.rows, width);
                    walker.take_chunk(item, i % tasks.chunks, own, item);
                    continue;
                }
                const int64_t first = walker.begin(item) / CHUNK;
                walker.take_chunk(item, first, total, after);
                for (int64_t chunk = first + 1; chunk * CHUNK < walker.end(item); chunk++) {
                    walker.take_chunk(item, chunk, part, after);
                    total.join(part, item.count);
                }
                walker.finish(item, total);
            }
            if (split) {
#pragma omp barrier
#pragma omp for schedule(dynamic, 1)
                for (int64_t i = 0; i < tasks.tiles; i++) {
                    if (!fine) continue;
                    const Item item = tasks.item(p, walker.group, i);
                    const int64_t first = walker.begin(item) / CHUNK;
                    State own(tasks.partial + (i * tasks.chunks + first) * tasks.states, tasks.rows, width);
                    for (int64_t chunk = first + 1; chunk * CHUNK < walker.end(item); chunk++)
                        own.join(State(tasks.partial + (i * tasks.chunks + chunk) * tasks.states, tasks.rows, width),
                                 item.count);
                    walker.finish(item, own);
                }
            }
        }
#ifdef OPENBOOK_AMX
        if (matrices) amx_end();
#endif
    }
    return fine;
}

// Whether the tables stay within the step and the pages.
bool sound(const Problem& p, bool writes, bool attends) {
    bool fine = true;
    for (int64_t t = 0; writes && t < p.tokens; t++) fine = fine && p.slots[t] < p.count * p.page;
    if (!attends || !p.sequences) return fine;
    fine = fine && p.starts[0] >= 0 && p.starts[p.sequences] <= p.tokens;
    for (int64_t i = 0; i < p.sequences && fine; i++) {
        fine = p.starts[i] <= p.starts[i + 1];
        if (p.starts[i] == p.starts[i + 1]) continue;
        const int64_t pages = padded(p.lengths[i], p.page) / p.page;
        fine = fine && pages <= p.width;
        for (int64_t j = 0; j < pages && fine; j++)
            fine = p.table[i * p.width + j] >= 0 && p.table[i * p.width + j] < p.count;
    }
    return fine;
}

}  // namespace openbook

extern "C" {

// What multiplies bf16 in this process: 2 AMX, 1 AVX-512 BF16, 0 fp32 vectors.
int openbook_paged_unit() {
    using namespace openbook;
#if defined(__AVX512BF16__)
    return amx_allowed() ? MATRICES : VECTORS;
#else
    return amx_allowed() ? MATRICES : PLAIN;
#endif
}

// Write new tokens (`what` & 1), then attend (`what` & 2). 0: done; 1: no memory; 2: the tables point elsewhere.
int openbook_paged(const openbook::Problem* p, int what) {
    using namespace openbook;
    const bool writes = what & 1, attends = what & 2;
    if (!sound(*p, writes, attends)) return 2;
    if (p->kind == FLOAT) return !run<Single, false>(*p, writes, attends);
#ifdef OPENBOOK_AMX
    if (p->unit == MATRICES) return !run<Pair, true>(*p, writes, attends);
#endif
    return !run<Pair, false>(*p, writes, attends);
}
}
