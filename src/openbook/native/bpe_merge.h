// Byte-pair encoding of one word: the merge of the lowest rank first, the leftmost of equals, until none is left.
//
// Words come again and again, so their ids are remembered. A word of up to 15 bytes and 3 ids is one line of a table,
// found by the bytes themselves; others lie in a second table beside their text. Both forget: what is remembered never
// changes what comes out.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "bpe_split.h"

namespace openbook {

constexpr uint32_t NONE = 0xFFFFFFFF;

inline uint64_t mixed(uint64_t x) {
    x ^= x >> 32;
    x *= 0x9E3779B97F4A7C15;
    return x ^ x >> 29;
}

struct Made {
    uint32_t rank, id;
};

// (left, right) → rank and new id: open addressing, at most half full.
class Merges {
  public:
    Merges(int64_t count, const uint32_t* left, const uint32_t* right, const uint32_t* made) {
        int bits = 4;
        while ((int64_t(1) << bits) < count * 2) bits++;
        last = (uint64_t(1) << bits) - 1;
        lines.assign(last + 1, {EMPTY, {NONE, NONE}});
        for (int64_t rank = 0; rank < count; rank++) {
            const uint64_t key = pair(left[rank], right[rank]);
            uint64_t at = mixed(key) & last;
            while (lines[at].key != key && lines[at].key != EMPTY) at = (at + 1) & last;
            lines[at] = {key, {uint32_t(rank), made[rank]}};  // of two rules for a pair the later one counts
        }
    }

    Made find(uint32_t left, uint32_t right) const {
        const uint64_t key = pair(left, right);
        for (uint64_t at = mixed(key) & last;; at = (at + 1) & last) {
            if (lines[at].key == key) return lines[at].made;
            if (lines[at].key == EMPTY) return {NONE, NONE};
        }
    }

  private:
    static constexpr uint64_t EMPTY = ~uint64_t(0);
    struct Line {
        uint64_t key;
        Made made;
    };
    std::vector<Line> lines;
    uint64_t last;

    static uint64_t pair(uint32_t left, uint32_t right) { return uint64_t(left) << 32 | right; }
};

inline uint64_t hash_of(const Byte* p, size_t size) {
    uint64_t h = size * 0x9E3779B97F4A7C15;
    for (; size >= 8; p += 8, size -= 8) {
        uint64_t part;
        std::memcpy(&part, p, 8);
        h = mixed(h ^ part) + (h << 7);
    }
    uint64_t part = 0;
    std::memcpy(&part, p, size);
    return mixed(mixed(h ^ part));
}

// Spellings → ids, for vocabularies in which a whole word is looked up before anything is merged.
class Words {
  public:
    Words(int64_t count, const Byte* bytes, const int64_t* ends, const uint32_t* ids) {
        int bits = 4;
        while ((int64_t(1) << bits) < count * 2) bits++;
        last = (uint64_t(1) << bits) - 1;
        lines.assign(last + 1, {0, 0, 0, NONE});
        text.assign(bytes, bytes + (count ? ends[count - 1] : 0));
        for (int64_t i = 0; i < count; i++) {
            const int64_t begin = i ? ends[i - 1] : 0;
            const uint64_t hash = hash_of(&text[begin], ends[i] - begin);
            uint64_t at = hash & last;
            while (lines[at].id != NONE) at = (at + 1) & last;
            lines[at] = {hash, begin, ends[i] - begin, ids[i]};
        }
    }

    uint32_t find(const Byte* p, int64_t size) const {
        const uint64_t hash = hash_of(p, size);
        for (uint64_t at = hash & last; lines[at].id != NONE; at = (at + 1) & last)
            if (lines[at].hash == hash && lines[at].size == size && !std::memcmp(&text[lines[at].begin], p, size))
                return lines[at].id;
        return NONE;
    }

  private:
    struct Line {
        uint64_t hash;
        int64_t begin, size;
        uint32_t id;
    };
    std::vector<Line> lines;
    std::vector<Byte> text;
    uint64_t last;
};

struct Vocabulary {
    Merges merges;
    Words words;
    bool whole;  // look a word up as a whole first
    uint32_t bytes[256];
    std::vector<Made> pairs;  // [256,256] of two bytes: every word begins with these, and few of them are common

    Vocabulary(Merges merges, Words words, bool whole, const uint32_t* ids)
        : merges(std::move(merges)), words(std::move(words)), whole(whole) {
        std::copy(ids, ids + 256, bytes);
        for (int i = 0; i < 256; i++)
            for (int j = 0; j < 256; j++) {
                const bool both = bytes[i] != NONE && bytes[j] != NONE;
                pairs.push_back(both ? this->merges.find(bytes[i], bytes[j]) : Made{NONE, NONE});
            }
    }
};

// What one thread remembers, and its room for work.
class Memory {
  public:
    Memory() : shorts(SHORTS), longs(LONGS) {}

    // Writes the ids of a word (at most one a byte, and room for two more) and returns their end. `edge`: the text is
    // readable up to here.
    uint32_t* encode(const Vocabulary& v, const Byte* begin, const Byte* end, const Byte* edge, uint32_t* out) {
        const size_t size = end - begin;
        if (size > SHORT) return encode_long(v, begin, size, out);
        uint64_t key[2] = {0, 0};
        if (begin + 16 <= edge) {
            std::memcpy(key, begin, 16);
            if (size < 8) key[0] &= ~(~uint64_t(0) << size * 8), key[1] = 0;
            else key[1] &= ~(~uint64_t(0) << (size - 8) * 8);
        } else {
            std::memcpy(key, begin, size);
        }
        key[1] |= uint64_t(size) << 56;
        Short& line = shorts[mixed(key[0] ^ key[1] * 0xC2B2AE3D27D4EB4F) >> 20 & (SHORTS - 1)];
        if (line.key[0] == key[0] && line.key[1] == key[1]) {
            std::memcpy(out, line.ids, 12);
            return out + line.count;
        }
        uint32_t* done = encode_long(v, begin, size, out);
        if (done - out <= 3) {
            line.key[0] = key[0], line.key[1] = key[1], line.count = done - out;
            std::memcpy(line.ids, out, (done - out) * 4);
        }
        return done;
    }

  private:
    static constexpr size_t SHORT = 15, SHORTS = 1 << 17, LONGS = 1 << 14, TRIES = 4, REMEMBERED = 256, FEW = 48;
    struct Short {
        uint64_t key[2] = {0, 0};
        uint32_t ids[3], count = 0;
    };
    struct Long {
        uint64_t hash = 0;
        std::vector<Byte> text;
        std::vector<uint32_t> ids;
    };
    struct Candidate {
        uint32_t rank, id, place;
        bool operator<(const Candidate& o) const { return rank != o.rank ? rank > o.rank : place > o.place; }
    };
    std::vector<Short> shorts;
    std::vector<Long> longs;
    std::vector<Candidate> heap;
    std::vector<uint32_t> ids, next, previous;

    uint32_t* encode_long(const Vocabulary& v, const Byte* p, size_t size, uint32_t* out) {
        if (size > REMEMBERED) return made(v, p, size, out);
        const uint64_t hash = hash_of(p, size);
        Long* line = nullptr;
        for (size_t i = 0; i < TRIES; i++) {
            Long& one = longs[(hash + i) & (LONGS - 1)];
            if (one.hash == hash && one.text.size() == size && !std::memcmp(one.text.data(), p, size))
                return std::copy(one.ids.begin(), one.ids.end(), out);
            if (!line && one.text.empty()) line = &one;
        }
        if (!line) line = &longs[(hash + (hash >> 40) % TRIES) & (LONGS - 1)];
        uint32_t* done = made(v, p, size, out);
        if (size > SHORT || done - out > 3) {
            line->hash = hash;
            line->text.assign(p, p + size);
            line->ids.assign(out, done);
        }
        return done;
    }

    uint32_t* made(const Vocabulary& v, const Byte* p, size_t size, uint32_t* out) {
        if (v.whole) {
            const uint32_t id = v.words.find(p, size);
            if (id != NONE) return *out = id, out + 1;
        }
        return size <= FEW ? merge_few(v, p, size, out) : merge_many(v, p, size, out);
    }

    // By looking at all pairs each time.
    uint32_t* merge_few(const Vocabulary& v, const Byte* p, size_t size, uint32_t* out) {
        uint32_t id[FEW + 1];
        Made pair[FEW + 1];
        size_t count = 0;
        for (size_t i = 0, before = 0; i < size; i++) {
            if (v.bytes[p[i]] == NONE) continue;
            if (count) pair[count - 1] = v.pairs[before << 8 | p[i]];
            before = p[i];
            id[count++] = v.bytes[p[i]];
        }
        while (count > 1) {
            size_t best = 0;
            for (size_t i = 1; i + 1 < count; i++)
                if (pair[i].rank < pair[best].rank) best = i;
            if (pair[best].rank == NONE) break;
            id[best] = pair[best].id;
            count--;
            std::memmove(id + best + 1, id + best + 2, (count - best - 1) * sizeof(uint32_t));
            std::memmove(pair + best, pair + best + 1, (count - best - 1) * sizeof(Made));
            if (best) pair[best - 1] = v.merges.find(id[best - 1], id[best]);
            if (best + 1 < count) pair[best] = v.merges.find(id[best], id[best + 1]);
        }
        return std::copy(id, id + count, out);
    }

    // By a heap over a chain of symbols: n log n for a word of any length.
    uint32_t* merge_many(const Vocabulary& v, const Byte* p, size_t size, uint32_t* out) {
        ids.clear(), heap.clear();
        for (size_t i = 0; i < size; i++)
            if (v.bytes[p[i]] != NONE) ids.push_back(v.bytes[p[i]]);
        const uint32_t count = ids.size();
        next.resize(count), previous.resize(count);
        for (uint32_t i = 0; i < count; i++) next[i] = i + 1, previous[i] = i - 1;
        const auto offer = [&](uint32_t at) {
            const Made made = v.merges.find(ids[at], ids[next[at]]);
            if (made.rank != NONE) heap.push_back({made.rank, made.id, at});
            return made.rank != NONE;
        };
        for (uint32_t i = 0; i + 1 < count; i++) offer(i);
        std::make_heap(heap.begin(), heap.end());
        while (!heap.empty()) {
            const Candidate top = heap.front();
            std::pop_heap(heap.begin(), heap.end());
            heap.pop_back();
            const uint32_t at = top.place;
            if (ids[at] == NONE || next[at] >= count) continue;
            const uint32_t right = next[at];
            if (v.merges.find(ids[at], ids[right]).id != top.id) continue;  // it has changed since
            ids[at] = top.id, ids[right] = NONE;
            next[at] = next[right];
            if (next[at] < count) previous[next[at]] = at;
            if (at && offer(previous[at])) std::push_heap(heap.begin(), heap.end());
            if (next[at] < count && offer(at)) std::push_heap(heap.begin(), heap.end());
        }
        for (uint32_t at = 0; at < count; at = next[at]) *out++ = ids[at];
        if (size > 1 << 16) heap = {}, ids = {}, next = {}, previous = {};
        return out;
    }
};

}  // namespace openbook
