// Whether AMX may be used: the system's permission, and a trial that must give what the vectors give.

#pragma once

#include <vector>

#include "product.h"

namespace openbook {

inline bool agree(int64_t kind) {
    constexpr int64_t R = 37, OUT = 72, IN = 200;
    uint32_t state = 1;
    const auto draw = [&] { return (state = state * 1664525u + 1013904223u) >> 8; };
    Matrix w = {nullptr, nullptr, nullptr, nullptr, kind, IN, OUT};
    std::vector<char> tiles(w.blocks() * w.block());
    std::vector<float> scale(OUT), x(R * IN), y(R * OUT), z(R * OUT);
    for (float& s : scale) s = (1 + draw() % 100) / 100.0f;
    for (float& v : x) v = (int)(draw() % 2001 - 1000) / 100.0f;
    for (char& byte : tiles) byte = (char)draw();
    if (kind == BF16)
        for (size_t i = 1; i < tiles.size(); i += 2) tiles[i] = 0x3f;  // 0.5 to 2
    w.data = tiles.data();
    w.scale = scale.data();
    Scratch memory;
    memory.reserve(size_of_rows(w, R));
    const Rows rows = take_rows(memory, w, R, x.data());
    for (int64_t r = 0; r < R; r++) prepare(w, x.data() + r * IN, r, rows);
    const Team alone = {0, 1};
    multiply(w, rows, {0, R}, alone, WIDE, {y.data(), OUT});
    multiply(w, rows, {0, R}, alone, TILES, {z.data(), OUT});
    for (size_t i = 0; i < y.size(); i++) {
        const float bound = kind == INT8 ? 0.0f : 1e-2f;
        if (!(std::abs(y[i] - z[i]) <= bound)) return false;
    }
    return true;
}

}  // namespace openbook
