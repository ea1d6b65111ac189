// What paged attention works on: its arguments, a block of a page in bytes, the memory of a thread, and writing tokens.
// The layout of a block is described in nn/pages.py.

#pragma once

#include <math.h>
#include <stdlib.h>

#include <algorithm>

#include "vector.h"
#ifdef OPENBOOK_AMX
#include "tiles.h"
#endif

namespace openbook {

constexpr int64_t BLOCK = 32, PIECE = 128, CHUNK = 512;  // keys: of a block, of a step of the softmax, of one softmax
constexpr int64_t RUN = PIECE / BLOCK;
#ifndef OPENBOOK_AMX
constexpr int64_t TILE = 1024;  // bytes: see tiles.h
#endif

enum Kind { FLOAT = 0, BF16 = 1, INT8 = 2 };  // of numbers: of pages, of q, k and v

struct Strided {  // [T, heads, dim], the last dimension dense; strides in numbers
    char* data;
    int64_t token, head;
};

struct Problem {  // mirrored in native/paged.py
    char* pages;
    int64_t count, kind, page, heads, kv_heads, key_dim, value_dim, latent;
    int64_t tokens, sequences, width;  // T, N, P
    const int32_t *table, *starts, *lengths, *slots;
    int64_t input, threads, unit;  // input: the kind of q, k, v and out
    Strided q, k, v, out;
    int64_t causal, window;  // window 0: none
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

// One key or value as it is stored, `count` numbers of it; `place(i)` says where number i goes.
template <typename Place>
inline void scatter(const float* x, int64_t count, Kind kind, Place place) {
    if (kind == FLOAT)
        for (int64_t i = 0; i < count; i++) *(float*)place(i, 4) = x[i];
    else if (kind == BF16)
        for (int64_t i = 0; i < count; i++) *(uint16_t*)place(i, 2) = narrow(x[i]);
    else
        for (int64_t i = 0; i < count; i++) *(int8_t*)place(i, 1) = (int8_t)x[i];
}

// Token t of head g. `room`: floats for one padded key or value.
inline void write_token(const Problem& p, const Shape& s, int64_t t, int64_t g, float* room) {
    const int64_t slot = p.slots[t];
    if (slot < 0) return;
    char* keys = p.pages + (slot / BLOCK * p.kv_heads + g) * s.block;
    char* values = keys + s.key_bytes;
    float* scales = (float*)(values + s.value_bytes);
    const int64_t key = slot % BLOCK, size = p.input == FLOAT ? 4 : 2;
    const auto fetch = [&](const Strided& x, int64_t dim, int64_t full) {
        const char* row = x.data + (t * x.token + g * x.head) * size;
        for (int64_t i = 0; i < dim; i++) room[i] = number(row, p.input, i);
        for (int64_t i = dim; i < full; i++) room[i] = 0;
    };
    const int64_t full = s.kind == FLOAT ? s.key_dim : 32 * s.chunks;
    fetch(p.k, s.key_dim, full);
    if (s.kind == INT8) scales[key] = quantise(room, s.key_dim);
    scatter(room, full, s.kind, [&](int64_t i, int64_t bytes) {
        if (s.kind == FLOAT) return keys + 128 * i + 4 * key;
        return keys + bytes * (key / 16 * s.chunks * 512 + i / 2 * 32 + 2 * (key % 16) + i % 2);
    });
    if (s.latent) return;
    fetch(p.v, s.value_dim, 16 * s.value_tiles);
    if (s.kind == INT8) scales[BLOCK + key] = quantise(room, s.value_dim);
    scatter(room, 16 * s.value_tiles, s.kind, [&](int64_t i, int64_t bytes) {
        if (s.kind == FLOAT) return values + key * s.value_step + 4 * i;
        return values + bytes * (i / 16 * 512 + key / 2 * 32 + 2 * (i % 16) + key % 2);
    });
}

// ---------------------------------------------------------------------------------------------- blocks as multiplied

inline void expand(const char* from, int64_t count, uint16_t* to) {  // whole numbers as bf16, which holds them
    const int8_t* whole = (const int8_t*)from;
    for (int64_t i = 0; i < count; i++) {
        const float x = whole[i];
        uint32_t bits;
        memcpy(&bits, &x, 4);
        to[i] = (uint16_t)(bits >> 16);
    }
}

// Values of a latent block out of its keys.
inline void prefix(const Shape& s, const char* keys, char* values) {
    if (s.kind == FLOAT) {
        for (int64_t i = 0; i < 16 * s.value_tiles; i++)
            for (int64_t key = 0; key < BLOCK; key++)
                *(float*)(values + key * s.value_step + 4 * i) = i < s.value_dim ? *(float*)(keys + 128 * i + 4 * key) : 0;
        return;
    }
    for (int64_t i = 0; i < s.value_dim; i++)
        for (int64_t key = 0; key < BLOCK; key++)
            ((uint16_t*)values)[i / 16 * 512 + key / 2 * 32 + 2 * (i % 16) + key % 2] =
                ((const uint16_t*)keys)[key / 16 * s.chunks * 512 + i / 2 * 32 + 2 * (key % 16) + i % 2];
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
