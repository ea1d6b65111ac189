// The two products of a piece of keys: scores of query rows, and weights times values. Blocks are read as they lie.
//
// With vectors a word of the left side (a float, or a pair of bf16) meets 16 words of the right one; with AMX whole tiles
// meet (tiles.h). A row's sums are taken in the same order however many rows are taken together.

#pragma once

#include <type_traits>

#include "paged_pages.h"

namespace openbook {

struct Piece {  // blocks from..to-1 of the piece of keys that begins at key `base`
    int64_t base, from, to, valid;
    const char *keys[RUN], *values[RUN];
    const char *next_keys[RUN], *next_values[RUN];  // what will be taken after these: asked for meanwhile
    const float *key_scales[RUN], *value_scales[RUN];
    int64_t keys_in(int64_t b) const { return std::min(BLOCK, valid - BLOCK * b); }
};

// Scores of R rows and B blocks of keys.
template <class Word, bool ahead, int R, int B>
inline void score_some(const Shape& s, const char* q, const char* const* keys, const char* const* next,
                       float* scores) {
    Floats sums[R][2 * B];
    for (int r = 0; r < R; r++)
        for (int i = 0; i < 2 * B; i++) sums[r][i] = all(0);
    for (int64_t w = 0; w < s.words; w++) {
        Floats right[2 * B];
        for (int i = 0; i < 2 * B; i++) {
            right[i] = load(keys[i / 2] + i % 2 * s.key_half + w * s.key_step);
            if (ahead) expect(next[i / 2] + i % 2 * s.key_half + w * s.key_step);
        }
        for (int r = 0; r < R; r++) {
            int32_t left;
            memcpy(&left, q + r * s.row + 4 * w, 4);
            for (int i = 0; i < 2 * B; i++) sums[r][i] = Word::dot(sums[r][i], left, right[i]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int i = 0; i < 2 * B; i++) store(scores + r * PIECE + 16 * i, sums[r][i]);
}

template <class Word, bool ahead, int R>
inline void score_rows(const Shape& s, const char* q, const Piece& piece, float* scores) {
    constexpr int B = R <= 2 ? 4 : R <= 4 ? 2 : 1;
    int64_t b = piece.from;
    for (; b + B <= piece.to; b += B)
        score_some<Word, ahead, R, B>(s, q, piece.keys + b, piece.next_keys + b, scores + BLOCK * b);
    if (B > 1)
        for (; b < piece.to; b++)
            score_some<Word, ahead, R, 1>(s, q, piece.keys + b, piece.next_keys + b, scores + BLOCK * b);
}

// Weights of R rows times J tiles of values, added to `mixed`.
template <class Word, bool ahead, int R, int J>
inline void mix_some(const Shape& s, const char* weights, const Piece& piece, int64_t tile, float* mixed) {
    constexpr int64_t row = PIECE * 4 / Word::numbers;
    const int64_t width = 16 * s.value_tiles;
    Floats sums[R][J];
    for (int r = 0; r < R; r++)
        for (int j = 0; j < J; j++) sums[r][j] = load(mixed + r * width + 16 * (tile + j));
    const auto step = [&](int64_t b, int64_t w, auto change) {
        Floats right[J];
        for (int j = 0; j < J; j++) {
            const int64_t place = (tile + j) * s.value_tile + w * s.value_step;
            right[j] = change(load(piece.values[b] + place));
            if (ahead) expect(piece.next_values[b] + place);
        }
        for (int r = 0; r < R; r++) {
            int32_t left;
            memcpy(&left, weights + r * row + 4 * (b * (BLOCK / Word::numbers) + w), 4);
            for (int j = 0; j < J; j++) sums[r][j] = Word::dot(sums[r][j], left, right[j]);
        }
    };
    for (int64_t b = piece.from; b < piece.to; b++) {
        const int64_t keys = piece.keys_in(b), whole = keys / Word::numbers;
        for (int64_t w = 0; w < whole; w++) step(b, w, [](Floats x) { return x; });
        if (keys % Word::numbers) step(b, whole, [](Floats x) { return Word::first(x); });
    }
    for (int r = 0; r < R; r++)
        for (int j = 0; j < J; j++) store(mixed + r * width + 16 * (tile + j), sums[r][j]);
}

template <class Word, bool ahead, int R>
inline void mix_rows(const Shape& s, const char* weights, const Piece& piece, float* mixed) {
    constexpr int J = R <= 4 ? 4 : 2;
    int64_t tile = 0;
    for (; tile + J <= s.value_tiles; tile += J) mix_some<Word, ahead, R, J>(s, weights, piece, tile, mixed);
    // What is left goes together too: one tile alone is a single chain of sums, each waiting for the last.
    if (J > 3 && s.value_tiles - tile == 3) return mix_some<Word, ahead, R, J == 4 ? 3 : 1>(s, weights, piece, tile, mixed);
    if (J > 2 && s.value_tiles - tile == 2) return mix_some<Word, ahead, R, J == 4 ? 2 : 1>(s, weights, piece, tile, mixed);
    for (; tile < s.value_tiles; tile++) mix_some<Word, ahead, R, 1>(s, weights, piece, tile, mixed);
}

// work(row, R) for groups of 8 rows and what is left.
template <class Work>
inline void by_eights(int64_t rows, Work work) {
    int64_t r = 0;
    for (; r + 8 <= rows; r += 8) work(r, std::integral_constant<int, 8>());
    switch (rows - r) {
        case 1: return work(r, std::integral_constant<int, 1>());
        case 2: return work(r, std::integral_constant<int, 2>());
        case 3: return work(r, std::integral_constant<int, 3>());
        case 4: return work(r, std::integral_constant<int, 4>());
        case 5: return work(r, std::integral_constant<int, 5>());
        case 6: return work(r, std::integral_constant<int, 6>());
        case 7: return work(r, std::integral_constant<int, 7>());
    }
}

#ifdef OPENBOOK_AMX

template <int M>
inline void score_tiles(const Shape& s, char* q, const Piece& piece, float* scores) {
    for (int64_t b = piece.from; b < piece.to; b++) {
        for (int64_t line = 0; line < s.wide_keys; line += 64) expect(piece.next_keys[b] + line);
        amx_block<M, 2>(scores + BLOCK * b, PIECE, {q, 16 * s.row, 64, s.row},
                        {(char*)piece.keys[b], s.key_half, TILE}, s.chunks, false);
    }
}

// Tiles 0 to 3 are sums (0,0), (0,1), (1,0), (1,1); 4 and 5 weights; 6 and 7 values.
template <int M, int N>
inline void mix_tiles(const Shape& s, const char* weights, const Piece& piece, int64_t tile, float* mixed) {
    const int64_t width = 16 * s.value_tiles, stride = 4 * width, row = 2 * PIECE;
    float *upper = mixed + 16 * tile, *lower = upper + 16 * width;
    TILE_LOAD(0, upper, stride);
    if (N > 1) TILE_LOAD(1, upper + 16, stride);
    if (M > 1) TILE_LOAD(2, lower, stride);
    if (M > 1 && N > 1) TILE_LOAD(3, lower + 16, stride);
    for (int64_t b = piece.from; b < piece.to; b++) {
        const char *right = piece.values[b] + tile * TILE, *next = piece.next_values[b] + tile * TILE;
        for (int64_t line = 0; line < N * TILE; line += 64) expect(next + line);
        TILE_LOAD(6, right, 64);
        TILE_LOAD(4, weights + 64 * b, row);
        TILE_MULTIPLY(0, 4, 6);
        if (N > 1) TILE_LOAD(7, right + TILE, 64);
        if (N > 1) TILE_MULTIPLY(1, 4, 7);
        if (M > 1) TILE_LOAD(5, weights + 64 * b + 16 * row, row);
        if (M > 1) TILE_MULTIPLY(2, 5, 6);
        if (M > 1 && N > 1) TILE_MULTIPLY(3, 5, 7);
    }
    TILE_STORE(0, upper, stride);
    if (N > 1) TILE_STORE(1, upper + 16, stride);
    if (M > 1) TILE_STORE(2, lower, stride);
    if (M > 1 && N > 1) TILE_STORE(3, lower + 16, stride);
}

template <int M>
inline void mix_all_tiles(const Shape& s, const char* weights, const Piece& piece, float* mixed) {
    int64_t tile = 0;
    for (; tile + 2 <= s.value_tiles; tile += 2) mix_tiles<M, 2>(s, weights, piece, tile, mixed);
    if (tile < s.value_tiles) mix_tiles<M, 1>(s, weights, piece, tile, mixed);
}

#endif

}  // namespace openbook
