// Words of a text: the programs of text/split.py, walked over UTF-8.

#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

namespace openbook {

using Byte = uint8_t;

enum Kind { DONE, RUN, EITHER, NEXT, LINE, END };

struct Node {
    int32_t kind, next, a, b, c;
};

// One step as it is given: see `Program` in text/split.py.
struct Given {
    const Node* nodes;
    const int32_t* branches;
    const uint16_t* pages;
    const uint64_t* masks;
    int64_t nodes_count, branches_count, masks_count, keep_matches, keep_rest;
};

constexpr int CLASSES = 40;  // bits of a mask; above them the alternatives that a character can begin
constexpr int PAGES = 0x110000 / 256;
constexpr int64_t EFFORT = 64;  // steps a byte, of which published patterns need about 3: a pattern may be hostile

struct Step {
    std::vector<Node> nodes;
    std::vector<int32_t> branches;
    std::vector<uint16_t> pages;
    std::vector<uint64_t> masks;
    uint64_t ascii[128];
    bool keep_matches, keep_rest;

    explicit Step(const Given& g)
        : nodes(g.nodes, g.nodes + g.nodes_count), branches(g.branches, g.branches + g.branches_count),
          pages(g.pages, g.pages + PAGES), masks(g.masks, g.masks + g.masks_count * 256),
          keep_matches(g.keep_matches), keep_rest(g.keep_rest) {
        for (int c = 0; c < 128; c++) ascii[c] = masks[pages[0] * 256 + c];
    }

    uint64_t mask(uint32_t code) const { return masks[size_t(pages[code >> 8]) * 256 + (code & 255)]; }
};

// The character at p and the place behind it; the text is UTF-8 of Python's making, so nothing is checked.
inline uint32_t decode(const Byte* p, const Byte*& after) {
    if (*p < 0x80) return after = p + 1, *p;
    if (*p < 0xE0) return after = p + 2, (p[0] & 31) << 6 | (p[1] & 63);
    if (*p < 0xF0) return after = p + 3, (p[0] & 15) << 12 | (p[1] & 63) << 6 | (p[2] & 63);
    return after = p + 4, (p[0] & 7) << 18 | (p[1] & 63) << 12 | (p[2] & 63) << 6 | (p[3] & 63);
}

class Walk {
  public:
    Walk(const Step& step, const Byte* end, int64_t& effort) : step(step), end(end), effort(effort) {}

    uint64_t look(const Byte* p, const Byte*& after) const {
        if (*p < 0x80) return after = p + 1, step.ascii[*p];
        const uint32_t code = decode(p, after);
        return step.mask(code);
    }

    // Where a match that begins at p ends; p itself if there is none.
    const Byte* match(const Byte* p) {
        const Byte* after;
        for (uint64_t open = look(p, after) >> CLASSES; open; open &= open - 1)
            if (const Byte* found = from(step.branches[__builtin_ctzll(open)], p)) return found;
        return p;
    }

  private:
    const Step& step;
    const Byte* end;
    int64_t& effort;

    const Byte* from(int32_t at, const Byte* p) {
        for (;;) {
            const Node& n = step.nodes[at];
            const Byte* after;
            at = n.next;
            switch (n.kind) {
                case DONE: return p;
                case RUN: {
                    const uint64_t bit = uint64_t(1) << n.a;
                    if (n.c == 1 || n.c == -3) {
                        if (p >= end || !(look(p, after) & bit)) {
                            if (n.b) return nullptr;
                        } else if (n.b || n.c == -3) {
                            p = after;
                        } else {
                            if (const Byte* found = from(at, after)) return found;
                            effort--;
                        }
                        break;
                    }
                    const Byte* q = p;
                    int64_t count = 0;
                    const int64_t most = n.c < 0 ? INT64_MAX : n.c;
                    while (q < end && count < most && look(q, after) & bit) q = after, count++;
                    effort -= count;
                    if (count < n.b) return nullptr;
                    if (n.c != -2 && step.nodes[at].kind != DONE)
                        for (; count > n.b; count--, effort--) {  // give back one after the other
                            if (effort < 0) return nullptr;
                            if (const Byte* found = from(at, q)) return found;
                            while ((*--q & 0xC0) == 0x80) {}
                        }
                    p = q;
                    break;
                }
                case EITHER: {
                    for (int32_t i = 0; i < n.b; i++)
                        if (const Byte* found = from(step.branches[n.a + i], p)) return found;
                    effort -= n.b;
                    return nullptr;
                }
                case NEXT:
                    if ((p < end && (look(p, after) >> n.a & 1)) != bool(n.b)) return nullptr;
                    break;
                case LINE:
                    if (p < end && *p != '\n') return nullptr;
                    break;
                default:
                    if (p < end) return nullptr;
            }
        }
    }
};

// Hands every piece of [begin, end) to `word`, step after step. Returns false when the patterns ask too much.
template <class Word>
bool split(const std::vector<Step>& steps, size_t number, const Byte* begin, const Byte* end, int64_t& effort,
           Word&& word) {
    if (begin == end) return true;
    if (number == steps.size()) return word(begin, end), true;
    const Step& step = steps[number];
    Walk walk(step, end, effort);
    const bool last = number + 1 == steps.size();
    const auto give = [&](const Byte* from, const Byte* to) {
        if (last) return word(from, to), true;
        return split(steps, number + 1, from, to, effort, word);
    };
    const Byte* rest = begin;  // what no match has taken yet begins here
    for (const Byte* p = begin; p < end;) {
        const Byte* found = walk.match(p);
        if (effort < 0) return false;
        if (found == p) {
            decode(p, p);
            effort--;
            continue;
        }
        if (rest < p && step.keep_rest && !give(rest, p)) return false;
        if (step.keep_matches && !give(p, found)) return false;
        rest = p = found;
    }
    return !(rest < end && step.keep_rest) || give(rest, end);
}

inline int64_t effort_for(int64_t bytes) { return bytes * EFFORT + 4096; }

}  // namespace openbook
