// The chances of the bytes of a text under a model of byte n-grams; the reference is Grams in data/clean/grams.py.
//
// A table is a hash table of slots with linear probing; a slot whose chance is above 0 (no logarithm of a chance is) is
// empty. The first slot of a byte some way ahead is fetched early: the tables are larger than the caches.

#include <cstdint>

namespace {

struct Slot {
  uint64_t key;
  float chance, weight;
};

struct Table {
  const Slot* slots;
  int64_t bits;  // their number is 2^bits

  uint64_t place(uint64_t key) const { return ((key ^ (key >> 29)) * 0x9e3779b97f4a7c15ull) >> (64 - bits); }

  const Slot* find(uint64_t key) const {
    const uint64_t mask = (uint64_t{1} << bits) - 1;
    for (uint64_t at = place(key);; at = (at + 1) & mask) {
      const Slot& slot = slots[at];
      if (slot.chance > 0) return nullptr;
      if (slot.key == key) return &slot;
    }
  }
};

constexpr int64_t kAhead = 12;

inline uint64_t last(uint64_t key, int64_t n) { return n == 8 ? key : key & ((uint64_t{1} << (8 * n)) - 1); }

}  // namespace

// `tables`: of 1 … order bytes. `out`: the logarithms, size - order + 1 of them.
extern "C" void openbook_grams(const uint8_t* data, int64_t size, const Table* tables, int64_t order, float unseen,
                               float* out) {
  const Table& longest = tables[order - 1];
  uint64_t key = 0, ahead = 0;
  for (int64_t i = 0; i < size && i < kAhead; ++i) ahead = ahead << 8 | data[i];
  for (int64_t i = 0; i < size; ++i) {
    key = key << 8 | data[i];
    if (i + kAhead < size) {
      ahead = ahead << 8 | data[i + kAhead];
      __builtin_prefetch(longest.slots + longest.place(last(ahead, order)));
    }
    if (i + 1 < order) continue;
    float chance = 0;
    int64_t n = order;
    for (; n > 0; --n) {
      if (const Slot* slot = tables[n - 1].find(last(key, n))) {
        chance += slot->chance;
        break;
      }
      if (n > 1)
        if (const Slot* slot = tables[n - 2].find(last(key >> 8, n - 1))) chance += slot->weight;
    }
    out[i + 1 - order] = n ? chance : chance + unseen;
  }
}
