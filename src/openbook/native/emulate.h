// The tile instructions of AMX on arrays, for the tests of machines without it. See tiles.h.

#pragma once

#include <stdint.h>
#include <string.h>

namespace openbook {

inline thread_local uint32_t emulated[8][16][16];

inline float emulated_bf16(uint32_t word, int which) {
    const uint32_t bits = which ? word & 0xffff0000u : word << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
inline void emulated_load(int tile, const void* from, int64_t stride) {
    for (int i = 0; i < 16; i++) memcpy(emulated[tile][i], (const char*)from + i * stride, 64);
}
inline void emulated_store(int tile, void* to, int64_t stride) {
    for (int i = 0; i < 16; i++) memcpy((char*)to + i * stride, emulated[tile][i], 64);
}
inline void emulated_multiply(int c, int a, int b) {
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++)
            for (int which = 0; which < 2; which++)
                for (int j = 0; j < 16; j++) {
                    float* sum = (float*)&emulated[c][i][j];
                    *sum += emulated_bf16(emulated[a][i][k], which) * emulated_bf16(emulated[b][k][j], which);
                }
}
inline void amx_begin() { memset(emulated, 0xff, sizeof emulated); }
inline void amx_end() {}

#define TILE_ZERO(t) memset(emulated[t], 0, TILE)
#define TILE_LOAD(t, from, stride) emulated_load(t, from, stride)
#define TILE_STORE(t, to, stride) emulated_store(t, to, stride)
#define TILE_MULTIPLY(c, a, b) emulated_multiply(c, a, b)

}  // namespace openbook
