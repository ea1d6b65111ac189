// The tile instructions of AMX: as instructions, or (OPENBOOK_EMULATE_AMX) in plain C++ for machines without them.
//
// They are written here and not taken from <immintrin.h>: gcc 12 says there that loading the configuration reads 8 bytes
// of its 64, and that loading a tile reads no memory, so that it may move stores past them.

#pragma once

#include <stdint.h>
#include <string.h>

#if defined(OPENBOOK_AMX) && !defined(OPENBOOK_EMULATE_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace openbook {

// Whether this process may use the tiles: the system is asked once.
inline bool amx_allowed() {
#if defined(OPENBOOK_EMULATE_AMX)
    return true;
#elif defined(OPENBOOK_AMX)
    static const bool allowed = syscall(SYS_arch_prctl, 0x1023, 18) == 0;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return allowed;
#else
    return false;
#endif
}

}  // namespace openbook

#ifdef OPENBOOK_AMX

namespace openbook {

#ifdef OPENBOOK_EMULATE_AMX

struct EmulatedTile {
    char row[16][64];
};
inline EmulatedTile& emulated(int number) {
    static thread_local EmulatedTile tiles[8];
    return tiles[number];
}
inline void amx_begin() {}
inline void amx_end() {}
inline void emulated_load(int t, const void* from, int64_t stride) {
    for (int i = 0; i < 16; i++) memcpy(emulated(t).row[i], (const char*)from + i * stride, 64);
}
inline void emulated_store(int t, void* to, int64_t stride) {
    for (int i = 0; i < 16; i++) memcpy((char*)to + i * stride, emulated(t).row[i], 64);
}
inline float emulated_bf16(const char* place) {
    uint32_t bits = 0;
    memcpy((char*)&bits + 2, place, 2);
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
template <class T, class F>
inline void emulated_multiply(int c, int a, int b, F term) {
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < 16; j++) {
                T sum;
                memcpy(&sum, emulated(c).row[i] + 4 * j, 4);
                sum = term(sum, emulated(a).row[i] + 4 * k, emulated(b).row[k] + 4 * j);
                memcpy(emulated(c).row[i] + 4 * j, &sum, 4);
            }
}
inline void emulated_bf16_product(int c, int a, int b) {
    emulated_multiply<float>(c, a, b, [](float sum, const char* x, const char* y) {
        sum += emulated_bf16(x) * emulated_bf16(y);
        return sum + emulated_bf16(x + 2) * emulated_bf16(y + 2);
    });
}
inline void emulated_byte_product(int c, int a, int b) {  // signed times unsigned
    emulated_multiply<int32_t>(c, a, b, [](int32_t sum, const char* x, const char* y) {
        for (int i = 0; i < 4; i++) sum += (int8_t)x[i] * (uint8_t)y[i];
        return sum;
    });
}

#define TILE_ZERO(t) memset(&openbook::emulated(t), 0, 1024)
#define TILE_LOAD(t, from, stride) openbook::emulated_load(t, from, stride)
#define TILE_STORE(t, to, stride) openbook::emulated_store(t, to, stride)
#define TILE_MULTIPLY(c, a, b) openbook::emulated_bf16_product(c, a, b)
#define TILE_MULTIPLY_BYTES(c, a, b) openbook::emulated_byte_product(c, a, b)

#else

inline void amx_begin() {
    alignas(64) uint8_t config[64] = {1};
    for (int tile = 0; tile < 8; tile++) {
        config[16 + 2 * tile] = 64;  // bytes of a row
        config[48 + tile] = 16;      // rows
    }
    asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
}
inline void amx_end() { asm volatile("tilerelease" ::: "memory"); }

#define TILE_ZERO(t) asm volatile("tilezero %%tmm" #t ::: "memory")
#define TILE_LOAD(t, from, stride) \
    asm volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(from), "r"((int64_t)(stride)) : "memory")
#define TILE_STORE(t, to, stride) \
    asm volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(to), "r"((int64_t)(stride)) : "memory")
#define TILE_MULTIPLY(c, a, b) asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::: "memory")
#define TILE_MULTIPLY_BYTES(c, a, b) asm volatile("tdpbsud %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::: "memory")

#endif

}  // namespace openbook

#endif
