// The driver of gemm.h: which thread multiplies what, which kernel, in which order through the caches.

#pragma once

#include <omp.h>
#include <stdlib.h>

#include <new>
#include <type_traits>

#include "gemm.h"

namespace openbook {

struct Team {  // this thread among those of a parallel region
    int64_t id, count;
    void wait() const {
#pragma omp barrier
    }
};
struct Span {
    int64_t first, last;
};
inline Span share(int64_t total, int64_t id, int64_t count) { return {total * id / count, total * (id + 1) / count}; }

template <class F>
inline void with_count(int64_t count, F f) {  // f(a number the compiler knows)
    switch (count) {
        case 1: return f(std::integral_constant<int, 1>{});
        case 2: return f(std::integral_constant<int, 2>{});
        case 3: return f(std::integral_constant<int, 3>{});
        case 4: return f(std::integral_constant<int, 4>{});
        case 5: return f(std::integral_constant<int, 5>{});
        case 6: return f(std::integral_constant<int, 6>{});
        case 7: return f(std::integral_constant<int, 7>{});
        default: return f(std::integral_constant<int, 8>{});
    }
}

#if defined(__AVX512F__)
constexpr int64_t MOST_ROWS = 8, MOST_BLOCKS = 3, FLOAT_ROWS = 6, FLOAT_PASS = 8;
#else
constexpr int64_t MOST_ROWS = 4, MOST_BLOCKS = 1, FLOAT_ROWS = 2, FLOAT_PASS = 2;  // 16 registers, two for each vector
#endif

// Blocks `columns` for the rows `rows`, by vectors.
inline void by_vectors(const Matrix& w, const Rows& a, Span rows, Span columns, const Output& out) {
    const bool one = w.kind == FLOAT && rows.last - rows.first <= FLOAT_PASS;  // all rows in one pass over the matrix
    const int64_t most = one ? FLOAT_PASS : w.kind == FLOAT ? FLOAT_ROWS : MOST_ROWS, wide = w.kind == FLOAT ? 1 : MOST_BLOCKS;
    const int64_t count = rows.last - rows.first, parts = (count + most - 1) / most - 1;
    // Some rows: few blocks at a time, and the next ones are on their way. Many rows: a panel of blocks for all of them.
    const bool some = w.kind != FLOAT && count * padded(w) <= PANEL / 2;
    const int64_t panel = some ? wide : std::max(wide, PANEL / w.block() / wide * wide);
    for (int64_t p = columns.first; p < columns.last; p += panel) {
        const int64_t end = std::min(p + panel, columns.last);
        for (int64_t row = rows.first; row < rows.last; row += most) {
            const Ask ask = some && row > rows.first ? Ask{(row - rows.first) / most - 1, parts} : Ask{};
            for (int64_t n = p; n < end; n += wide)
                with_count(std::min(most, rows.last - row), [&](auto m) {
                    if (w.kind == FLOAT) return float_block<(m < FLOAT_PASS ? m : FLOAT_PASS)>(w, a, row, n, out);
                    constexpr int M = m < MOST_ROWS ? m : MOST_ROWS;
                    const int64_t blocks = std::min(wide, end - n);
                    if (MOST_BLOCKS > 2 && blocks == 3) return some_blocks<M, MOST_BLOCKS>(w, a, row, n, ask, out);
                    if (MOST_BLOCKS > 1 && blocks == 2)
                        return some_blocks<M, (MOST_BLOCKS > 1 ? 2 : 1)>(w, a, row, n, ask, out);
                    some_blocks<M, 1>(w, a, row, n, ask, out);
                });
        }
    }
}

#ifdef OPENBOOK_AMX
inline void by_tiles(const Matrix& w, const Rows& a, Span rows, Span columns, const Output& out) {
    const int64_t panel = std::max<int64_t>(2, PANEL / w.block() / 2 * 2);
    amx_begin();
    for (int64_t p = columns.first; p < columns.last; p += panel) {
        const int64_t end = std::min(p + panel, columns.last);
        for (int64_t row = rows.first; row < rows.last; row += 32)
            for (int64_t n = p; n < end; n += 2) {
                const bool two = n + 1 < end;
                if (w.kind == INT8 && two) tile_blocks<2, true>(w, a, row, rows.last, n, out);
                else if (w.kind == INT8) tile_blocks<1, true>(w, a, row, rows.last, n, out);
                else if (two) tile_blocks<2, false>(w, a, row, rows.last, n, out);
                else tile_blocks<1, false>(w, a, row, rows.last, n, out);
            }
    }
    amx_end();
}
#endif

constexpr int64_t FEW = 4;  // rows up to which vectors are no slower than tiles; int8 only: its sums are exact

struct Part {
    Span rows, columns;  // columns in blocks of 16
};

// A thread's part of a product; it depends on the sizes alone. Where there are more threads than blocks, the rows are
// parted too.
inline Part part(const Matrix& w, Span rows, const Team& team) {
    const int64_t count = rows.last - rows.first, across = std::min(team.count, w.blocks());
    const int64_t down = std::max<int64_t>(1, std::min(team.count / across, count / 32));
    if (count <= 0 || team.id >= across * down) return {};
    const Span mine = share((count + 31) / 32, team.id / across, down);
    return {{rows.first + 32 * mine.first, std::min(rows.first + 32 * mine.last, rows.last)},
            share(w.blocks(), team.id % across, across)};
}

// This thread's part of y = W x + b for prepared rows.
inline void multiply(const Matrix& w, const Rows& a, Span rows, const Team& team, int64_t machine, const Output& out) {
    const int64_t count = rows.last - rows.first;
    const Part mine = part(w, rows, team);
#ifdef OPENBOOK_AMX
    if (machine == TILES && w.kind != FLOAT && (w.kind == BF16 || count > FEW)) 
        return by_tiles(w, a, mine.rows, mine.columns, out);
#endif
    by_vectors(w, a, mine.rows, mine.columns, out);
}

// Working memory of the calling thread, kept from call to call.
class Scratch {
    char* place = nullptr;
    size_t size = 0, used = 0;
    bool own = true;

  public:
    Scratch() = default;
    explicit Scratch(char* place) : place(place), own(false) {}  // memory that somebody else reserved
    ~Scratch() {
        if (own) free(place);
    }
    void reserve(size_t bytes) {
        used = 0;
        if (bytes <= size) return;
        free(place);
        size = 0;
        place = (char*)aligned_alloc(64, (bytes + 4095) / 4096 * 4096);
        if (!place) throw std::bad_alloc();
        size = (bytes + 4095) / 4096 * 4096;
    }
    template <class T>
    T* take(int64_t count) {
        T* found = (T*)(place + used);
        used += size_of<T>(count);
        return found;
    }
    template <class T>
    static size_t size_of(int64_t count) {
        return (count * sizeof(T) + 63) / 64 * 64;
    }
};

inline Scratch& scratch() {
    static thread_local Scratch kept;
    return kept;
}

inline size_t size_of_rows(const Matrix& w, int64_t count) {  // 32 more: tiles are read whole
    if (w.kind == FLOAT) return 0;
    return Scratch::size_of<char>((count + 32) * padded(w)) + 2 * Scratch::size_of<float>(count);
}
inline Rows take_rows(Scratch& from, const Matrix& w, int64_t count, const float* x) {
    if (w.kind == FLOAT) return {(char*)x, 4 * w.in, nullptr, nullptr};
    Rows rows = {from.take<char>((count + 32) * padded(w)), padded(w)};
    rows.scale = from.take<float>(count);
    rows.sum = from.take<int32_t>(count);
    return rows;
}

inline int threads_for(double work, int64_t threads) {  // a region costs microseconds
    return work < 20000 ? 1 : (int)threads;
}

}  // namespace openbook
