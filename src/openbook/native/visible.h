// Which query may see which key, by order (causal, window) and by segments, for blocks of 32 x 32 and for single keys.

#pragma once

#include <immintrin.h>
#include <stdint.h>

#include <algorithm>

namespace openbook {

constexpr int64_t BLOCK = 32;  // queries and keys are taken in blocks of this many

enum Sight { NONE, SOME, ALL };

// Query q sees key k if k <= q (causal), |q - k| < window (window > 0), and both are of one segment above 0. With
// segments each query also sees itself, so that padding has something to see.
struct Visible {
    int64_t queries, keys, window;
    bool causal;
    const int32_t* segments;       // [keys rounded up to blocks], or null
    const int32_t *least, *most;   // of each block's segments

    // Keys that a block of queries may see lie in [begin, end), by order alone.
    int64_t begin(int64_t q0) const { return window ? std::max<int64_t>(0, q0 - window + 1) : 0; }
    int64_t end(int64_t q0) const {
        const int64_t last = std::min(q0 + BLOCK, queries) - 1;
        const int64_t reach = causal ? last : window ? last + window - 1 : keys - 1;
        return std::min(keys, reach + 1);
    }

    Sight look(int64_t q0, int64_t k0) const {
        const int64_t q1 = std::min(q0 + BLOCK, queries) - 1, k1 = std::min(k0 + BLOCK, keys) - 1;
        if (k0 < begin(q0) - BLOCK + 1 || k0 >= end(q0)) return NONE;
        bool all = k0 + BLOCK <= keys && (!causal || k1 <= q0);
        if (window) all = all && q1 - k0 < window && (causal || k1 - q0 < window);
        if (segments) {
            const int64_t q = q0 / BLOCK, k = k0 / BLOCK;
            const bool apart = most[q] < least[k] || most[k] < least[q] || (most[k] == 0 && least[k] == 0);
            if (apart) return q0 == k0 ? SOME : NONE;
            all = all && least[q] == most[q] && least[k] == most[k];
        }
        return all ? ALL : SOME;
    }

    // Which of the queries q0..q0+15 see key k.
    __mmask16 who(int64_t q0, int64_t k, __m512i query_segments) const {
        if (k >= keys) return 0;
        int64_t from = 0, to = 16;
        if (causal) from = k - q0;
        else if (window) from = k - q0 - window + 1;
        if (window) to = k - q0 + window;
        from = std::clamp<int64_t>(from, 0, 16);
        to = std::clamp<int64_t>(to, 0, 16);
        uint32_t seen = (0xffffu << from) & ~(0xffffu << to) & 0xffffu;
        if (segments) {
            const int32_t own = segments[k];
            seen &= own ? _mm512_cmpeq_epi32_mask(query_segments, _mm512_set1_epi32(own)) : 0;
            if (k >= q0 && k < q0 + 16) seen |= 1u << (k - q0);
        }
        return (__mmask16)seen;
    }
};

}  // namespace openbook
