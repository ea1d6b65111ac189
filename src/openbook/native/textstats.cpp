// The statistics of a document in one pass; what each of them is stands in data/clean/statistics.py, the reference.
//
// Words and lines become small numbers: equal ones get the same (a hash table whose entries compare their bytes). An
// n-gram becomes a number from that of its first n-1 words and that of its last n-1 words, so nothing is left to a
// hash's luck. Where one of the two stands only once in the document, the n-gram stands once as well: it needs no
// number, and nearly all of a usual text drops out after three words.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

namespace {

enum Flag : uint8_t { kSpace = 1, kLetter = 2, kTerminal = 4, kBullet = 8 };
constexpr int kLongest = 10;  // words of an n-gram
constexpr int kTop = 2, kTopLast = 4, kRepeated = 5;

struct Counts {
  int64_t characters, words, word_characters, alphabetic_words, stop_words, hashes, ellipses;
  int64_t lines, line_characters, bullet_lines, ellipsis_lines, terminal_lines, short_lines;
  int64_t duplicate_lines, duplicate_line_characters;
  int64_t paragraphs, duplicate_paragraphs, duplicate_paragraph_characters;
  int64_t top[kTopLast - kTop + 1], repeated[kLongest - kRepeated + 1];
};

inline uint64_t mix(uint64_t x) {
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93ull;
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93ull;
  return x ^ (x >> 32);
}

uint64_t hash_bytes(const char* data, size_t size) {
  uint64_t hash = size * 0x9e3779b97f4a7c15ull, part;
  for (; size >= 8; data += 8, size -= 8) {
    std::memcpy(&part, data, 8);
    hash = (hash ^ part) * 0xd6e8feb86659fd93ull;
    hash ^= hash >> 32;
  }
  part = 0;
  std::memcpy(&part, data, size);
  return mix(hash ^ part);
}

// Which number a key has; new keys get the next one. Keys live in `Keys`: it says whether number i equals a key.
struct Table {
  struct Slot {
    uint32_t tag, number;  // number + 1; 0 is empty
  };
  std::vector<Slot> slots;
  size_t mask = 0, size = 0;

  void start(size_t room) {
    size_t slots_wanted = 64;
    while (slots_wanted < room * 2) slots_wanted *= 2;
    slots.assign(slots_wanted, Slot{0, 0});
    mask = slots_wanted - 1;
    size = 0;
  }

  template <class Equal>
  uint32_t find(uint64_t hash, bool& is_new, Equal equal) {
    const uint32_t tag = static_cast<uint32_t>(hash >> 32);
    for (size_t at = hash & mask;; at = (at + 1) & mask) {
      Slot& slot = slots[at];
      if (!slot.number) {
        slot = {tag, static_cast<uint32_t>(++size)};
        is_new = true;
        return slot.number - 1;
      }
      if (slot.tag == tag && equal(slot.number - 1)) {
        is_new = false;
        return slot.number - 1;
      }
    }
  }
};

struct Piece {  // of the text: a word or a line
  const char* data;
  uint32_t size, characters;
};

inline bool same(const Piece& a, const Piece& b) { return a.size == b.size && !std::memcmp(a.data, b.data, a.size); }

// Numbers of pieces of text.
struct Pieces {
  Table table;
  std::vector<Piece> kept;

  uint32_t number(const Piece& piece, bool& is_new) {
    if (kept.size() * 2 >= table.slots.size()) grow();
    const uint32_t found = table.find(hash_bytes(piece.data, piece.size), is_new,
                                      [&](uint32_t other) { return same(kept[other], piece); });
    if (is_new) kept.push_back(piece);
    return found;
  }

  void grow() {
    table.start(std::max<size_t>(256, kept.size() * 2));
    bool is_new;
    for (const Piece& piece : kept)
      table.find(hash_bytes(piece.data, piece.size), is_new, [](uint32_t) { return false; });
  }
};

inline uint32_t decode(const uint8_t*& at) {  // UTF-8 is sound here: it comes from a Python string
  uint32_t first = *at++;
  if (first < 0x80) return first;
  if (first < 0xe0) return (first & 31) << 6 | (*at++ & 63);
  if (first < 0xf0) {
    const uint32_t code = (first & 15) << 12 | (at[0] & 63) << 6 | (at[1] & 63);
    at += 2;
    return code;
  }
  const uint32_t code = (first & 7) << 18 | (at[0] & 63) << 12 | (at[1] & 63) << 6 | (at[2] & 63);
  at += 3;
  return code;
}

struct Line {
  const uint8_t *begin = nullptr, *end = nullptr;
  uint32_t characters = 0, spaces = 0;  // characters up to `end`; white space after it
  uint32_t first = 0, last = 0;
  bool empty() const { return !begin; }
};

struct Reader {
  const uint8_t* flags;
  int64_t short_line;
  Counts& counts;
  Pieces words, lines;
  std::vector<uint32_t> sequence;   // of the words, their numbers
  std::vector<uint32_t> paragraph;  // of its lines, their numbers
  std::vector<uint32_t> stored;     // the lines of all different paragraphs
  struct Paragraph {
    size_t start, size;
    uint64_t hash;
  };
  std::vector<Paragraph> paragraphs;
  Table paragraph_table;
  int64_t paragraph_characters = 0;

  void word(const uint8_t* begin, const uint8_t* end, uint32_t characters, bool letters) {
    bool is_new;
    sequence.push_back(
        words.number({reinterpret_cast<const char*>(begin), static_cast<uint32_t>(end - begin), characters}, is_new));
    ++counts.words;
    counts.word_characters += characters;
    counts.alphabetic_words += letters;
  }

  void line(const Line& line) {
    if (line.empty()) return finish_paragraph();
    const uint32_t size = static_cast<uint32_t>(line.end - line.begin);
    ++counts.lines;
    counts.line_characters += line.characters;
    counts.bullet_lines += (flags[line.first] & kBullet) != 0;
    counts.terminal_lines += (flags[line.last] & kTerminal) != 0;
    counts.ellipsis_lines += line.last == 0x2026 || (size >= 3 && !std::memcmp(line.end - 3, "...", 3));
    counts.short_lines += line.characters <= short_line;
    bool is_new;
    const uint32_t number = lines.number({reinterpret_cast<const char*>(line.begin), size, line.characters}, is_new);
    if (!is_new) {
      ++counts.duplicate_lines;
      counts.duplicate_line_characters += line.characters;
    }
    paragraph.push_back(number);
    paragraph_characters += line.characters;
  }

  void finish_paragraph() {
    if (paragraph.empty()) return;
    ++counts.paragraphs;
    if (paragraphs.size() * 2 >= paragraph_table.slots.size()) {
      paragraph_table.start(std::max<size_t>(64, paragraphs.size() * 2));
      bool is_new;
      for (const Paragraph& one : paragraphs) paragraph_table.find(one.hash, is_new, [](uint32_t) { return false; });
    }
    const size_t size = paragraph.size();
    const uint64_t hash = hash_bytes(reinterpret_cast<const char*>(paragraph.data()), size * 4);
    bool is_new;
    paragraph_table.find(hash, is_new, [&](uint32_t other) {
      const Paragraph& one = paragraphs[other];
      return one.size == size && !std::memcmp(stored.data() + one.start, paragraph.data(), size * 4);
    });
    if (is_new) {
      paragraphs.push_back({stored.size(), size, hash});
      stored.insert(stored.end(), paragraph.begin(), paragraph.end());
    } else {
      ++counts.duplicate_paragraphs;
      counts.duplicate_paragraph_characters += paragraph_characters;
    }
    paragraph.clear();
    paragraph_characters = 0;
  }

  void read(const uint8_t* at, const uint8_t* end) {
    Line current;
    const uint8_t* word_begin = nullptr;
    uint32_t word_characters = 0, dots = 0;
    bool letters = false;
    while (at < end) {
      const uint8_t* const begin = at;
      const uint32_t code = decode(at);
      const uint8_t flag = flags[code];
      ++counts.characters;
      if (flag & kSpace) {
        if (word_begin) word(word_begin, begin, word_characters, letters);
        word_begin = nullptr;
        dots = 0;
        if (code == '\n') {
          line(current);
          current = Line();
        } else {
          ++current.spaces;
        }
        continue;
      }
      if (!word_begin) {
        word_begin = begin;
        word_characters = 0;
        letters = false;
      }
      ++word_characters;
      letters |= (flag & kLetter) != 0;
      if (current.empty()) {
        current.begin = begin;
        current.first = code;
      } else {
        current.characters += current.spaces;
      }
      current.spaces = 0;
      ++current.characters;
      current.end = at;
      current.last = code;
      counts.hashes += code == '#';
      counts.ellipses += code == 0x2026;
      dots = code == '.' ? dots + 1 : 0;
      if (dots == 3) {
        ++counts.ellipses;
        dots = 0;
      }
    }
    if (word_begin) word(word_begin, end, word_characters, letters);
    line(current);
    finish_paragraph();
  }
};

// ---------------------------------------------------------------------------------------------- what repeats

struct Place {
  uint32_t at, gram;  // the word it begins with, its number
};

struct Grams {
  const std::vector<uint32_t>& words;
  const std::vector<int64_t>& ends;  // characters of the words before each
  Counts& counts;
  std::vector<Place> places, longer;
  std::vector<uint32_t> times;  // of each number
  std::vector<uint64_t> keys;
  Table table;

  int64_t characters(uint32_t at, int n) const { return ends[at + n] - ends[at]; }

  void start(size_t different) {
    times.assign(different, 0);
    places.reserve(words.size());
    for (uint32_t i = 0; i < words.size(); ++i) {
      places.push_back({i, words[i]});
      ++times[words[i]];
    }
  }

  // From the repeated grams of n-1 words to those of n.
  void lengthen(int n) {
    longer.clear();
    for (size_t i = 0; i + 1 < places.size(); ++i)  // two neighbours, both of which come again
      if (places[i + 1].at == places[i].at + 1 && times[places[i].gram] > 1 && times[places[i + 1].gram] > 1)
        longer.push_back({places[i].at, static_cast<uint32_t>(i)});
    table.start(longer.size());
    keys.clear();
    std::vector<uint32_t> next_times;
    for (Place& place : longer) {
      const uint64_t key = static_cast<uint64_t>(places[place.gram].gram) << 32 | places[place.gram + 1].gram;
      bool is_new;
      place.gram = table.find(mix(key), is_new, [&](uint32_t other) { return keys[other] == key; });
      if (is_new) {
        keys.push_back(key);
        next_times.push_back(0);
      }
      ++next_times[place.gram];
    }
    places.swap(longer);
    times.swap(next_times);
  }

  int64_t top(int n) const {
    uint32_t most = 1;
    int64_t longest = 0;
    for (const Place& place : places) {
      const uint32_t found = times[place.gram];
      if (found < 2 || found < most) continue;
      const int64_t size = characters(place.at, n);
      longest = found > most ? size : std::max(longest, size);
      most = found;
    }
    return longest * most;
  }

  int64_t repeated(int n) {
    std::vector<bool> seen(times.size());
    int64_t total = 0;
    uint32_t covered = 0;
    for (const Place& place : places) {
      if (seen[place.gram]) {
        const uint32_t from = std::max(place.at, covered);
        covered = place.at + n;
        total += ends[covered] - ends[from];
      }
      seen[place.gram] = true;
    }
    return total;
  }
};

void count(const char* text, int64_t size, const uint8_t* flags, const char* stop, const int64_t* stop_sizes,
           int64_t stops, int64_t short_line, Counts& counts) {
  counts = Counts();
  Reader reader{flags, short_line, counts};
  bool is_new;
  for (int64_t i = 0; i < stops; stop += stop_sizes[i++])
    reader.words.number({stop, static_cast<uint32_t>(stop_sizes[i]), 0}, is_new);
  reader.read(reinterpret_cast<const uint8_t*>(text), reinterpret_cast<const uint8_t*>(text) + size);

  std::vector<int64_t> ends(reader.sequence.size() + 1);
  Grams grams{reader.sequence, ends, counts};
  // The stop words were given before the text: the characters of a word are counted from the text's own.
  std::vector<uint32_t> lengths(reader.words.kept.size());
  for (size_t i = 0; i < lengths.size(); ++i) {
    const Piece& piece = reader.words.kept[i];
    uint32_t characters = 0;
    for (uint32_t at = 0; at < piece.size; ++at) characters += (piece.data[at] & 0xc0) != 0x80;
    lengths[i] = characters;
  }
  for (size_t i = 0; i < reader.sequence.size(); ++i) ends[i + 1] = ends[i] + lengths[reader.sequence[i]];
  grams.start(lengths.size());
  for (int64_t i = 0; i < stops; ++i) counts.stop_words += grams.times[i] > 0;
  for (int n = 2; n <= kLongest; ++n) {
    grams.lengthen(n);
    if (n <= kTopLast) counts.top[n - kTop] = grams.top(n);
    if (n >= kRepeated) counts.repeated[n - kRepeated] = grams.repeated(n);
  }
}

}  // namespace

// `flags`: one byte for each code point. `stop`: `stops` different words, one after the other, with their sizes.
// -> 0; 1 where the text is too long (4 GiB) or the memory too small, and nothing is counted.
extern "C" int openbook_textstats(const char* text, int64_t size, const uint8_t* flags, const char* stop,
                                  const int64_t* stop_sizes, int64_t stops, int64_t short_line, Counts* out) {
  if (size >= (int64_t{1} << 32)) return 1;
  try {
    count(text, size, flags, stop, stop_sizes, stops, short_line, *out);
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}
