// Training byte-pair encoding: words and how often they come, then merge after merge (Sennrich et al. 2016).
//
// The most frequent pair becomes a token, of equally frequent ones that of the lowest ids. Counts of pairs are kept up
// to date from the words that a merge changes; a pair waits in a heap under the count that it had, and is put back when
// it comes up under an old one. A token that two pairs can make (ab+c, a+bc) puts a pair into the heap a second time,
// for the words that have come since; both entries, and a rule for each, are part of the result, as in `tokenizers`.

#pragma once

#include <algorithm>
#include <atomic>
#include <queue>
#include <string>
#include <system_error>
#include <thread>
#include <unordered_map>
#include <vector>

#include "bpe_merge.h"
#include "bpe_split.h"

namespace openbook {

// Runs `work(next)` on some threads; next() hands out 0, 1, 2 … to them all.
template <class Work>
void on_threads(int64_t threads, int64_t count, Work&& work) {
    std::atomic<int64_t> taken{0};
    const auto next = [&] { return taken.fetch_add(1, std::memory_order_relaxed); };
    std::vector<std::thread> others;
    try {
        for (int64_t i = 1; i < std::min(threads, count); i++) others.emplace_back([&] { work(next); });
    } catch (const std::system_error&) {  // no more threads to be had: those that run do it all
    }
    work(next);
    for (auto& other : others) other.join();
}

// Distinct words, one after the other, each with its count.
class Table {
  public:
    struct Word {
        uint64_t hash;
        size_t begin;
        uint32_t size;
        int64_t count;
    };
    std::vector<Word> words;
    std::vector<Byte> text;

    void add(const Byte* p, uint32_t size, int64_t count) { add(p, size, hash_of(p, size), count); }

    void take(Table& other) {
        for (const Word& w : other.words) add(&other.text[w.begin], w.size, w.hash, w.count);
        other = Table();
    }

  private:
    std::vector<uint32_t> places = std::vector<uint32_t>(1 << 12, NONE);

    void add(const Byte* p, uint32_t size, uint64_t hash, int64_t count) {
        const uint64_t last = places.size() - 1;
        for (uint64_t at = hash & last;; at = (at + 1) & last) {
            if (places[at] == NONE) {
                places[at] = words.size();
                words.push_back({hash, text.size(), size, count});
                text.insert(text.end(), p, p + size);
                if (words.size() * 2 > places.size()) grow();
                return;
            }
            Word& w = words[places[at]];
            if (w.hash == hash && w.size == size && !std::memcmp(&text[w.begin], p, size)) {
                w.count += count;
                return;
            }
        }
    }

    void grow() {
        places.assign(places.size() * 2, NONE);
        const uint64_t last = places.size() - 1;
        for (size_t i = 0; i < words.size(); i++) {
            uint64_t at = words[i].hash & last;
            while (places[at] != NONE) at = (at + 1) & last;
            places[at] = i;
        }
    }
};

// What a vocabulary begins with.
struct Taught {
    int64_t vocab, least, specials_count;
    const Byte* specials;  // ids 0, 1, …; an empty one is a name that no word spells
    const int64_t* specials_ends;
    const uint32_t* bytes;  // ids of the 256 bytes
};

// How often each pair stands in the words, and in which of them it has come to stand since it was last put in the heap.
class Pairs {
  public:
    struct Pair {
        uint64_t key;
        int64_t count;
        std::vector<uint32_t> words;
    };
    std::vector<Pair> all;
    std::vector<uint32_t> touched;

    static uint64_t key(uint32_t left, uint32_t right) { return uint64_t(left) << 32 | right; }

    void lose(uint64_t key, int64_t count) { all[find(key)].count -= count; }

    void gain(uint64_t key, int64_t count, uint32_t word) {
        const uint32_t at = find(key);
        Pair& pair = all[at];
        pair.count += count;
        if (pair.words.empty()) touched.push_back(at);
        if (pair.words.empty() || pair.words.back() != word) pair.words.push_back(word);
    }

  private:
    std::vector<uint32_t> places = std::vector<uint32_t>(1 << 16, NONE);

    uint32_t find(uint64_t key) {
        const uint64_t last = places.size() - 1;
        uint64_t at = mixed(key) & last;
        for (; places[at] != NONE; at = (at + 1) & last)
            if (all[places[at]].key == key) return places[at];
        places[at] = all.size();
        all.push_back({key, 0, {}});
        if (all.size() * 2 > places.size()) grow();
        return all.size() - 1;
    }

    void grow() {
        places.assign(places.size() * 2, NONE);
        const uint64_t last = places.size() - 1;
        for (size_t i = 0; i < all.size(); i++) {
            uint64_t at = mixed(all[i].key) & last;
            while (places[at] != NONE) at = (at + 1) & last;
            places[at] = i;
        }
    }
};

class Training {
  public:
    Training(const Table& table, const Taught& taught) : taught(taught) {
        for (const auto& word : table.words) {
            first.push_back(symbols.size());
            sizes.push_back(word.size);
            counts.push_back(word.count);
            for (uint32_t i = 0; i < word.size; i++) symbols.push_back(taught.bytes[table.text[word.begin + i]]);
        }
        spellings.resize(taught.specials_count + 256);
        for (int64_t i = 0; i < taught.specials_count; i++) {
            const int64_t begin = i ? taught.specials_ends[i - 1] : 0;
            name(i, std::string(taught.specials + begin, taught.specials + taught.specials_ends[i]));
        }
        for (int byte = 0; byte < 256; byte++) name(taught.bytes[byte], std::string(1, char(byte)));
        for (uint32_t word = 0; word < counts.size(); word++)
            for (uint32_t i = 0; i + 1 < sizes[word]; i++) {
                const uint32_t* at = &symbols[first[word] + i];
                pairs.gain(Pairs::key(at[0], at[1]), counts[word], word);
            }
        queue_touched();
    }

    int64_t run(uint32_t* left, uint32_t* right, uint32_t* made, int64_t room) {
        int64_t rules = 0;
        while (int64_t(spellings.size()) < taught.vocab && !heap.empty() && rules < room) {
            Waiting top = heap.top();
            heap.pop();
            const int64_t count = pairs.all[top.pair].count;
            if (top.count != count) {
                top.count = count;
                heap.push(top);
                continue;
            }
            if (count < 1 || count < taught.least) break;
            const uint32_t a = top.key >> 32, b = uint32_t(top.key), id = token(a, b);
            left[rules] = a, right[rules] = b, made[rules++] = id;
            std::vector<uint32_t> words;
            words.swap(places[top.words]);
            for (size_t i = 0; i < words.size(); i++) {
                if (i + 8 < words.size()) __builtin_prefetch(&symbols[first[words[i + 8]]]);
                merge(words[i], a, b, id);
            }
            queue_touched();
        }
        return rules;
    }

  private:
    struct Waiting {
        int64_t count;
        uint64_t key;
        uint32_t pair, words;
        bool operator<(const Waiting& o) const {
            return count != o.count ? count < o.count : key != o.key ? key > o.key : words > o.words;
        }
    };
    const Taught& taught;
    std::vector<uint32_t> symbols, sizes;
    std::vector<size_t> first;
    std::vector<int64_t> counts;
    std::vector<std::string> spellings;
    std::unordered_map<std::string, uint32_t> known;
    Pairs pairs;
    std::priority_queue<Waiting> heap;
    std::vector<std::vector<uint32_t>> places;  // words of the entries of the heap

    void name(uint32_t id, std::string spelling) {
        if (!spelling.empty()) known.emplace(spelling, id);
        spellings[id] = std::move(spelling);
    }

    uint32_t token(uint32_t a, uint32_t b) {
        std::string spelling = spellings[a] + spellings[b];
        const auto [at, fresh] = known.emplace(spelling, uint32_t(spellings.size()));
        if (fresh) spellings.push_back(std::move(spelling));
        return at->second;
    }

    void merge(uint32_t word, uint32_t a, uint32_t b, uint32_t id) {
        uint32_t* s = &symbols[first[word]];
        const uint32_t size = sizes[word];
        const int64_t count = counts[word];
        uint32_t kept = 0;
        for (uint32_t i = 0; i < size; i++) {
            if (s[i] != a || i + 1 >= size || s[i + 1] != b) {
                s[kept++] = s[i];
                continue;
            }
            if (kept) {
                pairs.lose(Pairs::key(s[kept - 1], a), count);
                pairs.gain(Pairs::key(s[kept - 1], id), count, word);
            }
            i++;
            s[kept++] = id;
            if (i + 1 < size) {
                pairs.lose(Pairs::key(b, s[i + 1]), count);
                pairs.gain(Pairs::key(id, s[i + 1]), count, word);
            }
        }
        sizes[word] = kept;
    }

    void queue_touched() {
        for (const uint32_t at : pairs.touched) {
            Pairs::Pair& pair = pairs.all[at];
            std::vector<uint32_t> words;
            words.swap(pair.words);
            if (pair.count <= 0) continue;
            words.shrink_to_fit();
            places.push_back(std::move(words));
            heap.push({pair.count, pair.key, at, uint32_t(places.size() - 1)});
        }
        pairs.touched.clear();
    }
};

// Counts words as texts come.
class Counter {
  public:
    explicit Counter(std::vector<Step> steps) : steps(std::move(steps)) {}

    bool add(int64_t texts, const Byte* const* text, const int64_t* size, int64_t threads) {
        if (tables.size() < size_t(threads)) tables.resize(threads);
        std::atomic<size_t> number{0};
        std::atomic<bool> fine{true};
        on_threads(threads, texts, [&](auto next) {
            Table& table = tables[number++];
            const auto word = [&](const Byte* from, const Byte* to) { table.add(from, to - from, 1); };
            for (int64_t i; (i = next()) < texts;) {
                int64_t effort = effort_for(size[i]);
                if (!split(steps, 0, text[i], text[i] + size[i], effort, word)) fine = false;
            }
        });
        return fine;
    }

    int64_t train(const Taught& taught, uint32_t* left, uint32_t* right, uint32_t* made, int64_t room) {
        if (tables.empty()) return 0;
        for (size_t i = 1; i < tables.size(); i++) tables[0].take(tables[i]);
        return Training(tables[0], taught).run(left, right, made, room);
    }

  private:
    std::vector<Step> steps;
    std::vector<Table> tables;
};

}  // namespace openbook
