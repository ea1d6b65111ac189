// Row-exact operators: products, norms and activations whose result for a row depends on that row alone, bit for bit.

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "agree.h"
#include "pack.h"
#include "served.h"

namespace openbook {

static int64_t machine = WIDE;

template <class F>
int guarded(F f) {  // 0: done; 1: no memory
    try {
        f();
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

// y = W x + b; with `ends` [E]: rows ends[e-1] to ends[e] times matrix e of E that lie one behind the other.
static void product(const Matrix& w, const int32_t* ends, int64_t count, int64_t rows, const float* x, float* y,
                    int64_t threads) {
    Scratch& memory = scratch();
    memory.reserve(size_of_rows(w, rows));
    const Rows a = take_rows(memory, w, rows, x);
#pragma omp parallel num_threads(threads_for((double)rows * w.in * w.out, threads))
    {
        const Team team = {omp_get_thread_num(), omp_get_num_threads()};
        const Span mine = share(rows, team.id, team.count);
        for (int64_t row = mine.first; row < mine.last; row++) prepare(w, x + row * w.in, row, a);
        if (w.kind != FLOAT) team.wait();
        Matrix one = w;
        int64_t first = 0;
        for (int64_t e = 0; e < count; e++) {
            const int64_t last = ends ? ends[e] : rows;
            multiply(one, a, {first, last}, team, machine, {y, w.out});
            one.data += w.kind == FLOAT ? 4 * w.in * w.out : w.blocks() * w.block();
            if (one.scale) one.scale += w.out;
            first = std::max(first, last);
        }
        const Span left = share(rows - first, team.id, team.count);  // in no group
        if (first < rows) memset(y + (first + left.first) * w.out, 0, 4 * w.out * (left.last - left.first));
    }
}

}  // namespace openbook

using namespace openbook;

extern "C" {

// Make AMX the machine (2) if the system allows it, or vectors (1); answers which it is now.
int64_t openbook_rows_machine(int64_t wanted) { return machine = wanted == TILES && amx_allowed() ? TILES : WIDE; }

// 0: AMX gives what the vectors give; else it may not be used. The first trial may end the process.
int openbook_rows_trial() { return amx_allowed() && agree(INT8) && agree(BF16) ? 0 : 1; }

// Ask the system to keep this memory in large pages.
void openbook_rows_large_pages(char* memory, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
    madvise(memory, bytes, MADV_HUGEPAGE);
#endif
}

// weight [out,in] fp32 (wide) or bf16 → tiles and, for int8, the scale of each output.
int openbook_rows_pack(const Matrix* w, int64_t wide, const char* weight, char* tiles, float* scale, int64_t threads) {
    return guarded([&] { pack(*w, wide, weight, tiles, scale, threads); });
}

int openbook_rows_product(const Matrix* w, int64_t rows, const float* x, float* y, int64_t threads) {
    return guarded([&] { product(*w, nullptr, 1, rows, x, y, threads); });
}

int openbook_rows_grouped(const Matrix* w, const int32_t* ends, int64_t experts, int64_t rows, const float* x, float* y,
                          int64_t threads) {
    return guarded([&] { product(*w, ends, experts, rows, x, y, threads); });
}

int openbook_rows_before(const Block* block, const Step* step, int64_t threads) {
    return guarded([&] {
        in_slices(*block, *step, [&](const Step& part) { before(*block, part, threads, machine); });
    });
}

int openbook_rows_after(const Block* block, const Step* step, int64_t threads) {
    return guarded([&] {
        in_slices(*block, *step, [&](const Step& part) { after(*block, part, threads, machine); });
    });
}

void openbook_rows_normalise(const Norm* norm, int64_t rows, int64_t dim, const float* x, float* y, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads_for((double)rows* dim, threads))
    for (int64_t row = 0; row < rows; row++) normalise(*norm, x + row * dim, dim, y + row * dim);
}

void openbook_rows_activate(int64_t function, int64_t count, const float* x, float* y, int64_t threads) {
    const int64_t vectors = (count + LANES - 1) / LANES;
#pragma omp parallel for schedule(static) num_threads(threads_for((double)count, threads))
    for (int64_t i = 0; i < vectors; i++) {
        const int64_t n = std::min(LANES, count - LANES * i);
        store(y + LANES * i, activate(function, load(x + LANES * i, n)), n);
    }
}
}
