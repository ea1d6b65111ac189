// Texts compared with each other (data/dedupe): the units of a text, their n-grams, MinHash, bands joined, hashes found.
// All numbers pass over the end of their type and back, so that each result is that of the numpy reference, bit for bit.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

namespace openbook {

// A code point's entry: what it is in the upper bits, what it is folded to in the lower (data/dedupe/words.py).
constexpr uint32_t FOLD = (1u << 21) - 1, BETWEEN = 0, PART = 1, ALONE = 2;
constexpr uint64_t CHARACTER = 0x9E3779B97F4A7C15u, UNIT = 0xD6E8FEB86659FD93u;

inline uint64_t mix(uint64_t h) {  // MurmurHash3's finaliser
    h = (h ^ (h >> 33)) * 0xFF51AFD7ED558CCDu;
    h = (h ^ (h >> 33)) * 0xC4CEB9FE1A85EC53u;
    return h ^ (h >> 33);
}

inline uint32_t mix(uint32_t h) {
    h = (h ^ (h >> 16)) * 0x85EBCA6Bu;
    h = (h ^ (h >> 13)) * 0xC2B2AE35u;
    return h ^ (h >> 16);
}

struct Table {
    const uint32_t* entries;
    int64_t size;
    uint32_t operator[](uint32_t code) const { return (int64_t)code < size ? entries[code] : BETWEEN; }
};

// The next code point of UTF-8 that Python wrote; half characters (surrogates) may be among them.
inline uint32_t next(const uint8_t*& at) {
    const uint32_t first = *at++;
    if (first < 0x80) return first;
    const int more = first >= 0xF0 ? 3 : first >= 0xE0 ? 2 : 1;
    uint32_t code = first & (0x3F >> more);
    for (int i = 0; i < more; i++) code = code << 6 | (*at++ & 0x3F);
    return code;
}

// emit(hash, first character, character behind the last) for each word.
template <class Emit>
void words(const uint8_t* at, int64_t bytes, Table table, Emit emit) {
    const uint8_t* end = at + bytes;
    uint64_t hash = 0;
    int64_t place = 0, start = -1, last = 0;
    for (; at < end; place++) {
        const uint32_t entry = table[next(at)], kind = entry >> 21;
        if (kind > ALONE) continue;  // nothing: a mark that is not seen
        if (kind == PART) {
            if (start < 0) start = place, hash = 0;
            hash = hash * CHARACTER + (entry & FOLD) + 1;
            last = place + 1;
            continue;
        }
        if (start >= 0) emit(mix(hash), start, last);
        start = -1;
        if (kind == ALONE) emit(mix((uint64_t)(entry & FOLD) + 1), place, place + 1);
    }
    if (start >= 0) emit(mix(hash), start, last);
}

// The same for each character; what stands between words is one space.
template <class Emit>
void characters(const uint8_t* at, int64_t bytes, Table table, Emit emit) {
    const uint8_t* end = at + bytes;
    int64_t place = 0, start = -1, last = -1;  // of what stands between
    bool any = false;
    for (; at < end; place++) {
        const uint32_t entry = table[next(at)], kind = entry >> 21;
        if (kind > ALONE) continue;
        if (kind == BETWEEN) {
            if (start < 0) start = place;
            last = place + 1;
            continue;
        }
        if (any && start >= 0) emit(mix((uint64_t)' ' + 1), start, last);
        start = -1;
        any = true;
        emit(mix((uint64_t)(entry & FOLD) + 1), place, place + 1);
    }
}

template <class Emit>
void units(const uint8_t* text, int64_t bytes, Table table, int64_t single, Emit emit) {
    single ? characters(text, bytes, table, emit) : words(text, bytes, table, emit);
}

// emit(place, hash) for each run of n units.
template <class Emit>
void ngrams(const uint64_t* in, int64_t count, int64_t n, Emit emit) {
    uint64_t top = 1, sum = 0;  // UNIT^n
    for (int64_t i = 0; i < n; i++) top *= UNIT;
    for (int64_t i = 0; i < count; i++) {
        sum = sum * UNIT + in[i];
        if (i >= n) sum -= top * in[i - n];
        if (i >= n - 1) emit(i - n + 1, mix(sum));
    }
}

typedef uint32_t Wide __attribute__((vector_size(64), aligned(4)));
constexpr int64_t LANES = 16, TOGETHER = 4;

// least [P] = min over x of a x + b mod 2^32.
void least(const uint32_t* x, int64_t count, const uint32_t* a, const uint32_t* b, int64_t P, uint32_t* out) {
    int64_t p = 0;
    for (; p + LANES * TOGETHER <= P; p += LANES * TOGETHER) {
        Wide A[TOGETHER], B[TOGETHER], low[TOGETHER];
        for (int64_t i = 0; i < TOGETHER; i++) {
            A[i] = *(const Wide*)(a + p + i * LANES);
            B[i] = *(const Wide*)(b + p + i * LANES);
            low[i] = ~Wide{};
        }
        for (int64_t j = 0; j < count; j++)
            for (int64_t i = 0; i < TOGETHER; i++) {
                const Wide y = A[i] * x[j] + B[i];
                low[i] = y < low[i] ? y : low[i];
            }
        for (int64_t i = 0; i < TOGETHER; i++) *(Wide*)(out + p + i * LANES) = low[i];
    }
    for (; p < P; p++) {
        uint32_t low = ~0u;
        for (int64_t j = 0; j < count; j++) low = std::min(low, a[p] * x[j] + b[p]);
        out[p] = low;
    }
}

inline int64_t root(int64_t* parents, int64_t i) {
    while (parents[i] != i) i = parents[i] = parents[parents[i]];
    return i;
}

inline void unite(int64_t* parents, int64_t i, int64_t j) {
    i = root(parents, i), j = root(parents, j);
    parents[std::max(i, j)] = std::min(i, j);
}

template <class F>
int guarded(F f) {  // 0: done; 1: no memory
    try {
        f();
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

}  // namespace openbook

using namespace openbook;

extern "C" {

// Answers how many units there are; there is room for one a byte, or for words one every second byte.
int64_t openbook_minhash_units(const uint8_t* text, int64_t bytes, const uint32_t* table, int64_t size, int64_t single,
                               uint64_t* hashes, int64_t* starts, int64_t* ends) {
    int64_t count = 0;
    units(text, bytes, Table{table, size}, single, [&](uint64_t hash, int64_t start, int64_t end) {
        hashes[count] = hash, starts[count] = start, ends[count] = end;
        count++;
    });
    return count;
}

void openbook_minhash_ngrams(const uint64_t* in, int64_t count, int64_t n, uint64_t* out) {
    ngrams(in, count, n, [&](int64_t place, uint64_t gram) { out[place] = gram; });
}

// out [texts,P]; bounds [texts+1]: where each text lies in `text`.
int openbook_minhash_signatures(const uint8_t* text, const int64_t* bounds, int64_t texts, const uint32_t* table,
                                int64_t size, int64_t single, int64_t n, const uint32_t* a, const uint32_t* b,
                                int64_t P, uint32_t* out) {
    return guarded([&] {
        std::vector<uint64_t> hashes;
        std::vector<uint32_t> x;
        for (int64_t t = 0; t < texts; t++) {
            hashes.clear(), x.clear();
            units(text + bounds[t], bounds[t + 1] - bounds[t], Table{table, size}, single,
                  [&](uint64_t hash, int64_t, int64_t) { hashes.push_back(hash); });
            const int64_t count = (int64_t)hashes.size(), run = std::min(n, count);
            ngrams(hashes.data(), count, run, [&](int64_t, uint64_t gram) { x.push_back(mix((uint32_t)(gram >> 32))); });
            least(x.data(), (int64_t)x.size(), a, b, P, out + t * P);
        }
    });
}

// out [sets,P] of sets of hashes; bounds [sets+1]: where each lies in `hashes`.
int openbook_minhash_sketch(const uint32_t* hashes, const int64_t* bounds, int64_t sets, const uint32_t* a,
                            const uint32_t* b, int64_t P, uint32_t* out) {
    return guarded([&] {
        std::vector<uint32_t> x;
        for (int64_t s = 0; s < sets; s++) {
            x.clear();
            for (int64_t i = bounds[s]; i < bounds[s + 1]; i++) x.push_back(mix(hashes[i]));
            least(x.data(), (int64_t)x.size(), a, b, P, out + s * P);
        }
    });
}

// keys [bands,stride]: of each of `rows` signatures [P] the hash of its rows in each band, written from column `at` on.
void openbook_minhash_bands(const uint32_t* signatures, int64_t rows, int64_t P, int64_t bands, int64_t each,
                            uint64_t* keys, int64_t stride, int64_t at) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t b = 0; b < bands; b++) {
            uint64_t sum = 0;
            for (int64_t i = 0; i < each; i++) sum = mix(sum * UNIT + signatures[r * P + b * each + i] + 1);
            keys[b * stride + at + r] = sum;
        }
}

// One band: `order` sorts its keys, the first document first. Each document is compared with the first of its key and
// the `reach` before it, and joined with those that agree in at least `least` places of P (0: with all).
void openbook_minhash_join(const uint64_t* keys, const int64_t* order, int64_t count, const uint32_t* signatures,
                           int64_t P, int64_t least, int64_t reach, int64_t* parents) {
    const auto compare = [&](int64_t i, int64_t j) {
        if (root(parents, i) == root(parents, j)) return;
        int64_t agree = 0;
        for (int64_t p = 0; p < P && least; p++) agree += signatures[i * P + p] == signatures[j * P + p];
        if (agree >= least) unite(parents, i, j);
    };
    int64_t first = 0;
    for (int64_t t = 1; t < count; t++) {
        if (keys[order[t]] != keys[order[first]]) {
            first = t;
            continue;
        }
        compare(order[t], order[first]);
        for (int64_t u = std::max(first + 1, t - reach); u < t; u++) compare(order[t], order[u]);
    }
}

void openbook_minhash_unite(int64_t* parents, const int64_t* left, const int64_t* right, int64_t count) {
    for (int64_t i = 0; i < count; i++) unite(parents, left[i], right[i]);
}

// The n-grams of `in` [count], of each of `lengths` [kinds], that stand in the sorted `index`: the first `room` of them,
// their places in `in`, their lengths and their places in the index; answers how many there are. `filter`: a bit for
// each value of the upper 64 - `coarse` bits, set where one begins so; those whose upper bits are t stand from starts[t]
// to starts[t + 1].
int64_t openbook_minhash_search(const uint64_t* in, int64_t count, const int64_t* lengths, int64_t kinds,
                                const uint64_t* index, const uint8_t* filter, int64_t coarse, const int64_t* starts,
                                int64_t shift, int64_t* hits, int64_t room) {  // hits [3,room]
    int64_t found = 0;
    for (int64_t k = 0; k < kinds; k++)
        ngrams(in, count, lengths[k], [&](int64_t place, uint64_t gram) {
            const uint64_t bit = gram >> coarse, top = gram >> shift;
            if (!(filter[bit >> 3] >> (bit & 7) & 1)) return;
            const uint64_t *end = index + starts[top + 1], *at = std::lower_bound(index + starts[top], end, gram);
            if (at == end || *at != gram) return;
            if (found < room) hits[found] = place, hits[room + found] = lengths[k], hits[2 * room + found] = at - index;
            found++;
        });
    return found;
}
}
