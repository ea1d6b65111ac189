// Byte-level byte-pair encoding: texts to ids, and the training of merges. The interface that native/bpe.py calls.
//
// An encoder is made once and never changes; threads borrow a Memory each. Nothing here knows Python: all calls run
// without its lock, and what they give does not depend on the number of threads.

#include <atomic>
#include <new>

#include "bpe_merge.h"
#include "bpe_split.h"
#include "bpe_train.h"

namespace openbook {

// Everything an encoder is made of, as addresses. Spellings lie one after the other; `ends` says where each ends.
struct Setup {
    const Given* steps;
    int64_t steps_count, merges_count, words_count, added_count, prefix_space, whole_words;
    const uint32_t *left, *right, *made, *bytes;  // merges by rank; ids of the 256 bytes
    const Byte* words;
    const int64_t* words_ends;
    const uint32_t* words_ids;
    const Byte* added;
    const int64_t* added_ends;
    const uint32_t* added_ids;
    const Byte* added_kinds;  // 0 found first, 1 found in what is left, +2: not handled here
    const Byte* refused;      // null, or a bit for each code point: a text that holds one is not handled here
};

constexpr uint32_t REFUSED = NONE - 1;

// Finds names in a text, the longest one at the leftmost place.
class Names {
  public:
    void add(const Byte* p, const Byte* end, uint32_t value) {
        int32_t at = 0;
        for (; p < end; p++) {
            int32_t next = child(at, *p);
            if (next < 0) {
                next = nodes.size();
                nodes.push_back({});
                nodes[at].children.push_back({*p, next});
                if (!at) begins[*p] = true, firsts++, first = *p;
            }
            at = next;
        }
        nodes[at].value = value;
    }

    // The first name from p on: its place and end, and its value; NONE when there is none.
    uint32_t find(const Byte*& p, const Byte* end, const Byte*& after) const {
        if (!firsts) return NONE;
        for (;; p++) {
            if (firsts == 1) {
                p = static_cast<const Byte*>(std::memchr(p, first, end - p));
                if (!p) return NONE;
            } else {
                while (p < end && !begins[*p]) p++;
                if (p >= end) return NONE;
            }
            uint32_t found = NONE;
            int32_t at = 0;
            for (const Byte* q = p; q < end && (at = child(at, *q)) >= 0;)
                if (q++, nodes[at].value != NONE) found = nodes[at].value, after = q;
            if (found != NONE) return found;
        }
    }

  private:
    struct Node {
        std::vector<std::pair<Byte, int32_t>> children;
        uint32_t value = NONE;
    };
    std::vector<Node> nodes = std::vector<Node>(1);
    bool begins[256] = {};
    int firsts = 0;
    Byte first = 0;

    int32_t child(int32_t at, Byte byte) const {
        for (const auto& [key, next] : nodes[at].children)
            if (key == byte) return next;
        return -1;
    }
};

class Encoder {
  public:
    explicit Encoder(const Setup& s)
        : steps(s.steps, s.steps + s.steps_count),
          vocabulary({s.merges_count, s.left, s.right, s.made}, {s.words_count, s.words, s.words_ends, s.words_ids},
                     s.whole_words, s.bytes),
          prefix_space(s.prefix_space) {
        for (int64_t i = 0; i < s.added_count; i++) {
            const Byte kind = s.added_kinds[i];
            names[kind & 1].add(s.added + (i ? s.added_ends[i - 1] : 0), s.added + s.added_ends[i],
                                kind & 2 ? REFUSED : s.added_ids[i]);
        }
        if (s.refused) refused.assign(s.refused, s.refused + 0x110000 / 8);
    }

    ~Encoder() {
        for (auto& slot : slots) delete slot.load();
    }

    // Ids of a text; -1 when it is not handled here. `out` has room for one id a byte and four more.
    int64_t encode(const Byte* text, int64_t size, Memory& memory, uint32_t* out) const {
        if (size >= int64_t(1) << 31 || (!refused.empty() && holds_refused(text, text + size))) return -1;
        Task task{*this, memory, text + size, out, effort_for(size)};
        try {
            return task.named(0, text, text + size) ? task.out - out : -1;
        } catch (const std::bad_alloc&) {
            return -1;
        }
    }

    Memory* borrow() {
        for (auto& slot : slots)
            if (Memory* found = slot.exchange(nullptr)) return found;
        return new Memory;
    }

    void give_back(Memory* memory) {
        for (auto& slot : slots) {
            Memory* none = nullptr;
            if (slot.compare_exchange_strong(none, memory)) return;
        }
        delete memory;
    }

  private:
    std::vector<Step> steps;
    Vocabulary vocabulary;
    bool prefix_space;
    Names names[2];
    std::vector<Byte> refused;
    std::atomic<Memory*> slots[16] = {};

    struct Task {
        const Encoder& encoder;
        Memory& memory;
        const Byte* edge;
        uint32_t* out;
        int64_t effort;

        // The text between the added tokens of this kind, and the tokens themselves.
        bool named(int kind, const Byte* begin, const Byte* end) {
            if (kind == 2) return spaced(begin, end);
            for (const Byte *p = begin, *after;;) {
                const uint32_t found = encoder.names[kind].find(p, end, after);
                if (found == REFUSED) return false;
                if (found == NONE) return begin == end || named(kind + 1, begin, end);
                if (begin < p && !named(kind + 1, begin, p)) return false;
                *out++ = found;
                begin = p = after;
            }
        }

        bool spaced(const Byte* begin, const Byte* end) {
            if (!encoder.prefix_space || *begin == ' ') return words(begin, end);
            std::vector<Byte> copy(1, ' ');
            copy.insert(copy.end(), begin, end);
            const Byte* before = edge;
            edge = copy.data() + copy.size();
            const bool done = words(copy.data(), edge);
            edge = before;
            return done;
        }

        bool words(const Byte* begin, const Byte* end) {
            const auto word = [this](const Byte* from, const Byte* to) {
                out = memory.encode(encoder.vocabulary, from, to, edge, out);
            };
            return split(encoder.steps, 0, begin, end, effort, word);
        }
    };

    bool holds_refused(const Byte* p, const Byte* end) const {
        while (p < end) {
            if (*p < 0x80) {
                p++;
                continue;
            }
            const uint32_t code = decode(p, p);
            if (refused[code >> 3] >> (code & 7) & 1) return true;
        }
        return false;
    }
};

}  // namespace openbook

using namespace openbook;

extern "C" {

void* openbook_bpe_make(const Setup* setup) { return new Encoder(*setup); }

void openbook_bpe_free(void* encoder) { delete static_cast<Encoder*>(encoder); }

// Each text's ids to out + places[i], their number to counts[i] (-1: not handled here).
void openbook_bpe_encode(void* encoder, int64_t texts, const Byte* const* text, const int64_t* size, uint32_t* out,
                         const int64_t* places, int64_t* counts, int64_t threads) {
    Encoder& e = *static_cast<Encoder*>(encoder);
    on_threads(threads, texts, [&](auto next) {
        Memory* memory = e.borrow();
        for (int64_t i; (i = next()) < texts;) counts[i] = e.encode(text[i], size[i], *memory, out + places[i]);
        e.give_back(memory);
    });
}

void* openbook_bpe_counter(const Given* steps, int64_t count) {
    return new Counter(std::vector<Step>(steps, steps + count));
}

void openbook_bpe_counter_free(void* counter) { delete static_cast<Counter*>(counter); }

// Counts the words of some texts; 0 when a pattern asks too much.
int64_t openbook_bpe_count(void* counter, int64_t texts, const Byte* const* text, const int64_t* size,
                           int64_t threads) {
    return static_cast<Counter*>(counter)->add(texts, text, size, threads);
}

// Trains on what was counted. left, right and made have room for `vocab` merges; returns how many there are.
int64_t openbook_bpe_train(void* counter, const Taught* taught, uint32_t* left, uint32_t* right, uint32_t* made,
                           int64_t room) {
    return static_cast<Counter*>(counter)->train(*taught, left, right, made, room);
}

}  // extern "C"
