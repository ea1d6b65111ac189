// What paged attention works on: its arguments, a block of a page in bytes, the memory of a thread, and writing tokens.
// The layout of a block is described in nn/pages.py.

#pragma once

#include <math.h>
#include <stdlib.h>

#include <algorithm>

#include "vector.h"
#ifdef __AVX512BF16__
#include "tiles.h"
#endif

namespace openbook {

constexpr int64_t BLOCK = 32, PIECE = 128, CHUNK = 512;  // keys: of a block, of a step of the softmax, of one softmax
constexpr int64_t RUN = PIECE / BLOCK;
#ifndef __AVX512BF16__
constexpr int64_t TILE = 1024;  // bytes: see tiles.h
#endif

enum Kind { FLOAT = 0, BF16 = 1, INT8 = 2 };  // of numbers: of pages, of q, k and v

struct Strided {  // [T, heads, dim], the last dimension dense; strides in numbers
    char* data;
    int64_t token, head;
};

struct Problem {  // mirrored in native/paged.py
    char* pages;
    int64_t count, kind, page, kv_heads, key_dim, value_dim, latent;
    const int32_t *table, *starts, *lengths, *slots;
    int64_t sequences, width;                         // N, P
    int64_t tokens, heads, input, threads, unit;      // input: the kind of q, k, v and out
    Strided q, k, v, out;
    int64_t causal, window, chunk;  // 0: none
    double scale, softcap;   // softcap 0: none
    const float* bias;       // [H, bias_length] or null
    int64_t bias_length;
    const float* sinks;  // [H] or null
};

inline int64_t padded(int64_t count, int64_t size) { return (count + size - 1) / size * size; }

struct Shape {
    Kind kind;
    bool latent;
    int64_t key_dim, value_dim;
    int64_t numbers;                                  // in a word
    int64_t words, value_tiles;                       // of a key; of a value (16 features each)
    int64_t chunks;                                   // of 32 features in a key
    int64_t key_half, key_step;                       // bytes from key to key + 16, from word to word
    int64_t value_tile, value_step;                   // bytes from tile to tile, from word to word
    int64_t key_bytes, value_bytes, block, row;       // bytes as stored; row: of a packed query
    int64_t wide_keys, wide_values;                   // bytes as multiplied

    explicit Shape(const Problem& p)
        : kind((Kind)p.kind), latent(p.latent), key_dim(p.key_dim), value_dim(p.value_dim) {
        const bool single = kind == FLOAT;
        const int64_t size = single ? 4 : kind == BF16 ? 2 : 1;
        numbers = single ? 1 : 2;
        words = (key_dim + numbers - 1) / numbers;
        value_tiles = padded(value_dim, 16) / 16;
        chunks = padded(key_dim, 32) / 32;
        key_half = single ? 64 : chunks * TILE;
        key_step = single ? 128 : 64;
        value_tile = single ? 64 : TILE;
        value_step = single ? 64 * value_tiles : 64;
        key_bytes = BLOCK * (single ? key_dim : 32 * chunks) * size;
        value_bytes = latent ? 0 : BLOCK * 16 * value_tiles * size;
        block = key_bytes + value_bytes + (kind == INT8 ? (latent ? 128 : 256) : 0);
        row = padded(single ? 4 * key_dim : 64 * chunks, 64);
        wide_keys = kind == INT8 ? 2 * key_bytes : key_bytes;
        wide_values = BLOCK * 16 * value_tiles * (single ? 4 : 2);
    }
};

// ---------------------------------------------------------------------------------------------- memory of a thread

struct Scratch {
    char* base = nullptr;
    int64_t size = 0, used = 0;
    template <typename T>
    void take(T*& place, int64_t count) {
        place = (T*)(base + used);
        used += padded(count * (int64_t)sizeof(T), 64);
    }
    // Run `takes`, which takes what is needed: once to count, once for good. False if there is no memory.
    template <typename Takes>
    bool lend(Takes takes) {
        used = 0;
        takes();
        if (used > size) {
            free(base);
            size = padded(used, 1 << 16);
            base = (char*)aligned_alloc(64, size);
            if (!base) return size = 0;
        }
        used = 0;
        takes();
        return true;
    }
    ~Scratch() { free(base); }
};
inline thread_local Scratch scratch, shared;  // a thread's own; what the calling thread lends to all

// ---------------------------------------------------------------------------------------------- writing

inline float number(const char* row, int64_t kind, int64_t i) {
    return kind == FLOAT ? ((const float*)row)[i] : widen(((const uint16_t*)row)[i]);
}

// Whole numbers -127..127 and their scale; what is not finite makes the scale so.
inline float quantise(float* x, int64_t count) {
    float most = 0;
    for (int64_t i = 0; i < count; i++) most = !(fabsf(x[i]) <= most) && most == most ? fabsf(x[i]) : most;
    const float scale = most / 127.0f;
    for (int64_t i = 0; i < count; i++) {
        const float whole = nearbyintf(x[i] / scale);
        x[i] = fabsf(whole) <= 127.0f ? whole : whole > 127.0f && whole < INFINITY ? 127.0f : 0.0f;
    }
    return scale;
}

// `count` numbers of row x of a tensor as they are stored, zeros up to `full`.
inline void fetch(const char* x, int64_t input, Kind kind, int64_t count, int64_t full, float* scale, char* to) {
    const int64_t size = kind == FLOAT ? 4 : kind == BF16 ? 2 : 1;
    if (kind == FLOAT)
        for (int64_t i = 0; i < count; i++) ((float*)to)[i] = number(x, input, i);
    else if (kind == BF16 && input == BF16) memcpy(to, x, 2 * count);
    else if (kind == BF16)
        for (int64_t i = 0; i < count; i++) ((uint16_t*)to)[i] = narrow(((const float*)x)[i]);
    else {
        float* room = (float*)(to + padded(full, 64));
        for (int64_t i = 0; i < count; i++) room[i] = number(x, input, i);
        *scale = quantise(room, count);
        for (int64_t i = 0; i < count; i++) to[i] = (char)(int8_t)room[i];
    }
    memset(to + count * size, 0, (full - count) * size);
}

template <typename Pair>
inline void write_key(const Shape& s, int64_t key, const char* room, char* keys) {
    char* to = keys + sizeof(Pair) * (key / 16 * s.chunks * 256 + key % 16);
    for (int64_t w = 0; w < 16 * s.chunks; w++) memcpy(to + 16 * sizeof(Pair) * w, room + sizeof(Pair) * w, sizeof(Pair));
}
template <typename Number>
inline void write_value(const Shape& s, int64_t key, const char* room, char* values) {
    for (int64_t t = 0; t < s.value_tiles; t++) {
        Number* to = (Number*)values + 512 * t + key / 2 * 32 + key % 2;
        for (int64_t i = 0; i < 16; i++) to[2 * i] = ((const Number*)room)[16 * t + i];
    }
}

// Token t of head g. `room`: for one padded key or value, as it is and in fp32.
inline void write_token(const Problem& p, const Shape& s, int64_t t, int64_t g, char* room) {
    const int64_t slot = p.slots[t];
    if (slot < 0) return;
    char* keys = p.pages + (slot / BLOCK * p.kv_heads + g) * s.block;
    char* values = keys + s.key_bytes;
    float* scales = (float*)(values + s.value_bytes);
    const int64_t key = slot % BLOCK, size = p.input == FLOAT ? 4 : 2;
    const char* row = p.k.data + (t * p.k.token + g * p.k.head) * size;
    fetch(row, p.input, s.kind, s.key_dim, s.kind == FLOAT ? s.key_dim : 32 * s.chunks, scales + key, room);
    if (s.kind == BF16) write_key<uint32_t>(s, key, room, keys);
    else if (s.kind == INT8) write_key<uint16_t>(s, key, room, keys);
    else
        for (int64_t i = 0; i < s.key_dim; i++) *(float*)(keys + 128 * i + 4 * key) = ((const float*)room)[i];
    if (s.latent) return;
    row = p.v.data + (t * p.v.token + g * p.v.head) * size;
    fetch(row, p.input, s.kind, s.value_dim, 16 * s.value_tiles, scales + BLOCK + key, room);
    if (s.kind == BF16) write_value<uint16_t>(s, key, room, values);
    else if (s.kind == INT8) write_value<int8_t>(s, key, room, values);
    else memcpy(values + key * s.value_step, room, s.value_step);
}

// ---------------------------------------------------------------------------------------------- blocks as multiplied

// Whole numbers as bf16, which holds them; asks for as many at `next`.
inline void expand(const char* from, int64_t count, uint16_t* to, const char* next) {
    const int8_t* whole = (const int8_t*)from;
    for (int64_t line = 0; line < count; line += 64) {
        expect(next + line);
        for (int64_t i = line; i < line + 64; i++) {
            const float x = whole[i];
            uint32_t bits;
            memcpy(&bits, &x, 4);
            to[i] = (uint16_t)(bits >> 16);
        }
    }
}

// Values of a latent block out of its keys. What stands beyond the values in their last tile goes nowhere.
inline void prefix(const Shape& s, const char* keys, char* values) {
    const int64_t stored = s.kind == FLOAT ? s.key_dim : 16 * s.chunks;  // words of a key
    for (int64_t half = 0; half < 2; half++) {
#ifdef __AVX512BF16__
        alignas(64) static const uint16_t pairs[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                       8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
        const __m512i low = _mm512_load_si512(pairs), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
        const char* from = keys + half * s.key_half;
        __m512i r[16];
        for (int64_t t = 0; t < s.value_tiles; t += s.numbers) {
            for (int64_t i = 0; i < 16; i++)
                r[i] = _mm512_loadu_si512(from + std::min(16 * t / s.numbers + i, stored - 1) * s.key_step);
            transpose(r);  // row i: the features of key i
            for (int64_t i = 0; i < 16; i++) {
                if (s.numbers == 1) {
                    _mm512_storeu_si512(values + (16 * half + i) * s.value_step + 64 * t, r[i]);
                    continue;
                }
                char* to = values + t * TILE + (8 * half + i / 2) * 64;
                if (i % 2) continue;
                _mm512_storeu_si512(to, _mm512_permutex2var_epi16(r[i], low, r[i + 1]));
                if (t + 1 < s.value_tiles)
                    _mm512_storeu_si512(to + TILE, _mm512_permutex2var_epi16(r[i], high, r[i + 1]));
            }
        }
#else
        for (int64_t i = 0; i < s.value_dim; i++)
            for (int64_t key = 16 * half; key < 16 * half + 16; key++)
                if (s.numbers == 1)
                    *(float*)(values + key * s.value_step + 4 * i) = *(const float*)(keys + 128 * i + 4 * key);
                else
                    ((uint16_t*)values)[i / 16 * 512 + key / 2 * 32 + 2 * (i % 16) + key % 2] =
                        ((const uint16_t*)keys)[half * s.chunks * 512 + i / 2 * 32 + 2 * (key % 16) + i % 2];
#endif
    }
}

// Values of the keys from `valid` on as zero: weights are 0 there, but what was never written may be no number.
inline void clear_rest(const Shape& s, char* values, int64_t valid) {
    for (int64_t t = 0; t < s.value_tiles; t++)
        for (int64_t key = valid; key < BLOCK; key++) {
            char* place = values + t * s.value_tile + key / s.numbers * s.value_step;
            if (s.numbers == 1) memset(place, 0, 64);
            else
                for (int i = 0; i < 16; i++) ((uint16_t*)place)[2 * i + key % 2] = 0;
        }
}

}  // namespace openbook
