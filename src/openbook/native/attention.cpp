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

#include "backward.h"
#include "forward.h"

namespace openbook {

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
        return forward_task<unit>(p, s, pair, first, last);
    });
}

template <Unit unit>
bool backward(const Problem& p) {
    const Shape s(p);
    const auto task = [&](int64_t i) { return backward_task<unit>(p, s, i, i + p.threads); };
    return each<unit>(p.rows * p.kv_heads, p.threads, task);
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
