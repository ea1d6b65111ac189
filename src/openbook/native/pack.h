// Packing a matrix [out,in] of fp32 or bf16 into the tiles of gemm.h.

#pragma once

#include <vector>

#include "product.h"

namespace openbook {

// Row `o` of 16 as lines of the tiles of one block, four bytes at a time.
inline void spread(const char* row, int64_t bytes, int64_t o, char* block) {
    for (int64_t i = 0; i < bytes; i += 4) memcpy(block + 16 * i + 4 * o, row + i, 4);
}

// bf16: tiles of the rounded numbers; int8: whole numbers + 128 and the scale of each output. `wide`: fp32, else bf16.
inline void pack(const Matrix& w, bool wide, const char* weight, char* tiles, float* scale, int64_t threads) {
    const int64_t bytes = padded(w);
#pragma omp parallel for schedule(static) num_threads(threads_for((double)w.in* w.out, threads))
    for (int64_t n = 0; n < w.blocks(); n++) {
        std::vector<float> values(w.in);
        std::vector<char> row(bytes);
        for (int64_t o = 0; o < 16; o++) {
            const int64_t number = 16 * n + o;
            std::fill(row.begin(), row.end(), 0);
            if (number < w.out) {
                const float* from = (const float*)weight + number * w.in;
                if (!wide) {
                    for (int64_t i = 0; i < w.in; i++) {
                        uint16_t half;
                        memcpy(&half, weight + 2 * (number * w.in + i), 2);
                        const uint32_t whole = (uint32_t)half << 16;
                        memcpy(&values[i], &whole, 4);
                    }
                    from = values.data();
                }
                int32_t sum;
                if (w.kind == INT8) quantise(from, nullptr, w.in, bytes, (int8_t*)row.data(), scale + number, &sum);
                else round_row(from, nullptr, w.in, bytes, (uint16_t*)row.data());
            }
            if (w.kind == INT8)
                for (char& byte : row) byte = (char)(byte + 128);
            spread(row.data(), bytes, o, tiles + n * w.block());
        }
    }
}

}  // namespace openbook
