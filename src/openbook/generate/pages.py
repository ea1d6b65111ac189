"""Pages and slots, counted: who has which, which are shared, which are kept for later prompts. No torch, no clock.

    one budget     pages of every group, source pages, slots and snapshots cost bytes of the same memory
    shared pages   carry a count of those who use them; who must write into one gets a copy first (`grow`)
    prefix cache   a full page is known by a digest of all that came before it and of its own ids; a hit compares the
                   ids too, so it is exact. Entries that nobody uses are forgotten in the order of their last use
    windows        pages that a window cannot see any more are given back; what the cache still has of them goes first
    snapshots      of recurrent state, at a page border: without one, keys alone are no hit for a model with slots
    loose          bytes that can be had without taking anything from a sequence: unused entries, then what used ones
                   have that no sequence looks at any more (`stale`), then their snapshots

Kwon et al. 2023 (paging, sharing, copy on write); Zheng et al. 2023 (prefixes in the order of their use).
"""

from __future__ import annotations

from collections import OrderedDict

from openbook.generate.entries import Entry, Numbers, digest_of
from openbook.generate.plan import Sequence, Shape

NEVER = 1 << 62


class Pool:
    """All pages and slots within `memory` bytes.

    `ttl`: seconds that entries nobody uses stay; `minimum`: shorter prompts are not kept.
    """

    def __init__(
        self, shape: Shape, memory: int, *, prefix_cache: bool = True, ttl: float | None = None, minimum: int = 0
    ) -> None:
        self.shape = shape
        self.memory = memory
        self.prefix_cache = prefix_cache
        self.ttl = ttl
        self.minimum = minimum
        self.bytes = 0  # of all that is handed out, entries included
        self.now = 0.0
        self.groups = [Numbers(group.nbytes, memory // group.nbytes) for group in shape.groups]
        source = shape.source.nbytes if shape.source else 1
        self.sources = Numbers(source, memory // source)
        self.slots = Numbers(shape.slot_bytes, memory // shape.slot_bytes if shape.slot_bytes else 0)
        self.entries: dict[bytes, Entry] = {}
        self.idle: OrderedDict[bytes, Entry] = OrderedDict()  # entries without users, the longest unused first
        self.stale: OrderedDict[tuple[bytes, int], Entry] = OrderedDict()  # (entry, group): behind every user's window
        self.snapshots: OrderedDict[bytes, Entry] = OrderedDict()  # entries with users that have one
        self.loose = 0
        self.copies: list[tuple[int, int, int]] = []
        self.slot_copies: list[tuple[int, int]] = []
        self.hits = 0  # tokens

    # -- memory -------------------------------------------------------------------------------------------------------

    def spare(self, nbytes: int) -> bool:
        """Makes room for `nbytes` by forgetting what nobody uses; False if all of it is too little."""
        if self.bytes - self.loose + nbytes > self.memory:
            return False
        while self.bytes + nbytes > self.memory:
            if self.idle:
                self._forget(next(iter(self.idle.values())))
            elif self.stale:
                (digest, group), entry = next(iter(self.stale.items()))
                self._fresh(digest, group)
                self._drop(self.groups[group], entry.pages[group])
                entry.pages[group] = -1
            else:
                _, entry = self.snapshots.popitem(last=False)
                self.loose -= self.shape.slot_bytes
                self._drop(self.slots, entry.snapshot)
                entry.snapshot = -1
        return True

    def _take(self, numbers: Numbers) -> int:
        self.bytes += numbers.nbytes
        return numbers.take()

    def _drop(self, numbers: Numbers, number: int) -> None:
        numbers.refs[number] -= 1
        if not numbers.refs[number]:
            numbers.free.append(number)
            self.bytes -= numbers.nbytes

    def _forget(self, entry: Entry) -> None:
        """Of an entry without users."""
        del self.idle[entry.digest], self.entries[entry.digest]
        self.loose -= self.weight(entry)
        for group, page in enumerate(entry.pages):
            if page >= 0:
                self._drop(self.groups[group], page)
        if entry.snapshot >= 0:
            self._drop(self.slots, entry.snapshot)

    def weight(self, entry: Entry) -> int:
        """Bytes that an entry has."""
        pages = sum(numbers.nbytes for numbers, page in zip(self.groups, entry.pages, strict=True) if page >= 0)
        return pages + (self.shape.slot_bytes if entry.snapshot >= 0 else 0)

    def _stale(self, entry: Entry, group: int) -> None:
        """A page of an entry with users may be one that none of them has: then it can go."""
        page, key = entry.pages[group], (entry.digest, group)
        if page >= 0 and self.groups[group].refs[page] == 1 and key not in self.stale:
            self.stale[key] = entry
            self.loose += self.groups[group].nbytes

    def _fresh(self, digest: bytes, group: int) -> None:
        if self.stale.pop((digest, group), None) is not None:
            self.loose -= self.groups[group].nbytes

    def expire(self, now: float) -> None:
        """Takes the time, and forgets what was unused for too long."""
        self.now = now
        if self.ttl is not None:
            while self.idle and (oldest := next(iter(self.idle.values()))).since + self.ttl <= now:
                self._forget(oldest)

    def forget_all(self) -> None:
        """Forgets every entry that nobody uses."""
        while self.idle:
            self._forget(next(iter(self.idle.values())))

    # -- a sequence's pages -------------------------------------------------------------------------------------------

    def cost(self, tokens: int, source: int = 0, chunk: int = 1) -> int:
        """Bytes that a sequence of `tokens` needs at most at one time, read `chunk` tokens at once."""
        page = self.shape.page
        total = self.shape.slot_bytes
        for group in self.shape.groups:
            span = tokens if group.window is None else min(tokens, group.window + chunk + page)
            total += -(-span // page) * group.nbytes
        if self.shape.source is not None:
            total += -(-source // page) * self.shape.source.nbytes
        return total

    def missing(self, sequence: Sequence) -> int:
        """Bytes of pages that a sequence still needs until all its ids are read, at most."""
        page = self.shape.page
        pages = -(-len(sequence.ids) // page) - len(sequence.tables[0]) if sequence.tables else 0
        total = 0
        for group in self.shape.groups:
            most = pages if group.window is None else min(pages, -(-group.window // page) + 2)
            total += max(0, most) * group.nbytes
        return total

    def grow(self, sequence: Sequence, end: int) -> bool:
        """Gives a sequence pages for tokens up to `end`, copies of shared ones it will write; or changes nothing."""
        if end <= sequence.ready:
            return True
        page = self.shape.page
        first, last = sequence.computed // page, (end - 1) // page
        need: list[tuple[int, int]] = []  # (group, place in its table)
        nbytes = 0
        for group, (numbers, table) in enumerate(zip(self.groups, sequence.tables, strict=True)):
            for place in range(first, last + 1):
                if place >= len(table) or numbers.refs[table[place]] > 1:
                    need.append((group, place))
                    nbytes += numbers.nbytes
        if not self.spare(nbytes):
            return False
        for group, place in need:
            numbers, table = self.groups[group], sequence.tables[group]
            number = self._take(numbers)
            if place >= len(table):
                table.append(number)
            else:
                if place * page < sequence.computed:  # something in it is still wanted
                    self.copies.append((group, table[place], number))
                self._drop(numbers, table[place])
                table[place] = number
        sequence.ready = (last + 1) * page
        return True

    def begin(self, sequence: Sequence) -> bool:
        """Gives a sequence that is to run its hit, its slot and its source pages; or changes nothing."""
        entries = self._match(sequence)
        self._hold(entries)  # so that making room does not forget them
        self._behind(entries)
        source = -(-sequence.ask.source // self.shape.page) if self.shape.source else 0
        if not self.spare(source * self.sources.nbytes + self.shape.slot_bytes):
            self._leave(entries)
            return False
        while entries and not self._usable(entries):  # what a window needs may be what was given up
            self._leave([entries.pop()])
        if self.shape.slot_bytes:
            snapshot = entries[-1].snapshot if entries else -1
            sequence.slot = self._take(self.slots)
            self.slot_copies.append((snapshot, sequence.slot))
        sequence.source_table = [self._take(self.sources) for _ in range(source)]
        self._stand(sequence, entries)
        return True

    def _stand(self, sequence: Sequence, entries: list[Entry]) -> None:
        page = self.shape.page
        sequence.entries = entries
        sequence.computed = len(entries) * page
        for group, table in enumerate(sequence.tables):
            begin = self._first_seen(group, sequence.computed)
            for place, entry in enumerate(entries):
                table.append(entry.pages[group] if place >= begin else -1)
                if place >= begin:
                    self._fresh(entry.digest, group)
                    self.groups[group].refs[entry.pages[group]] += 1

    def _behind(self, entries: list[Entry]) -> None:
        """Pages of a hit that its windows do not see can go."""
        for group in range(len(self.groups)):
            for entry in entries[: self._first_seen(group, len(entries) * self.shape.page)]:
                self._stale(entry, group)

    def _first_seen(self, group: int, computed: int) -> int:
        """The first page of a group that tokens from `computed` on can see."""
        window = self.shape.groups[group].window
        return 0 if window is None else max(0, computed - window + 1) // self.shape.page

    def _match(self, sequence: Sequence) -> list[Entry]:
        """The longest usable run of entries that a sequence's ids begin with; at least one token is left to read."""
        if not (self.prefix_cache and sequence.ask.share):
            return []
        page, ids = self.shape.page, sequence.ids
        found: list[Entry] = []
        digest = sequence.ask.root
        for place in range((len(ids) - 1) // page):
            part = ids[place * page : (place + 1) * page]
            digest = digest_of(digest, part)
            entry = self.entries.get(digest)
            if entry is None or entry.ids != part:
                break
            found.append(entry)
        while found and not self._usable(found):
            found.pop()
        return found

    def _usable(self, entries: list[Entry]) -> bool:
        if self.shape.slot_bytes and entries[-1].snapshot < 0:
            return False
        for group in range(len(self.groups)):
            begin = self._first_seen(group, len(entries) * self.shape.page)
            if any(entry.pages[group] < 0 for entry in entries[begin:]):
                return False
        return True

    def _hold(self, entries: list[Entry]) -> None:
        for entry in entries:
            entry.users += 1
            if entry.users == 1:
                if self.idle.pop(entry.digest, None) is not None:
                    self.loose -= self.weight(entry)
                if entry.snapshot >= 0:
                    self.snapshots[entry.digest] = entry
                    self.loose += self.shape.slot_bytes

    def _leave(self, entries: list[Entry]) -> None:
        for entry in reversed(entries):  # the beginning of a prompt is forgotten after its end
            entry.users -= 1
            if not entry.users:
                for group in range(len(self.groups)):
                    self._fresh(entry.digest, group)
                if self.snapshots.pop(entry.digest, None) is not None:
                    self.loose -= self.shape.slot_bytes
                entry.since = self.now
                self.idle[entry.digest] = entry
                self.loose += self.weight(entry)

    def settle(self, sequence: Sequence, computed: int) -> None:
        """Tokens up to `computed` are there: full pages are known from now on, windows move."""
        sequence.computed = computed
        if computed < sequence.event:
            return
        page, ask, event = self.shape.page, sequence.ask, NEVER
        if self.prefix_cache and ask.keep and len(ask.ids) >= self.minimum:
            while (len(sequence.entries) + 1) * page <= computed:
                if not self._register(sequence, len(sequence.entries)):
                    break
            event = (len(sequence.entries) + 1) * page
        for group, (table, of) in enumerate(zip(sequence.tables, self.shape.groups, strict=True)):
            if of.window is None:
                continue
            begin = self._first_seen(group, computed)
            event = min(event, (begin + 1) * page + of.window - 1)
            place = begin - 1
            while place >= 0 and table[place] >= 0:
                self._give_back(sequence, group, place)
                place -= 1
        sequence.event = event

    def _give_back(self, sequence: Sequence, group: int, place: int) -> None:
        number = sequence.tables[group][place]
        sequence.tables[group][place] = -1
        self._drop(self.groups[group], number)
        if place < len(sequence.entries):
            self._stale(sequence.entries[place], group)

    def _register(self, sequence: Sequence, place: int) -> bool:
        page = self.shape.page
        part = sequence.ids[place * page : (place + 1) * page]
        before = sequence.entries[-1].digest if sequence.entries else sequence.ask.root
        digest = digest_of(before, part)
        entry = self.entries.get(digest)
        if entry is None:
            entry = self.entries[digest] = Entry(digest, part, [-1] * len(self.groups))
        elif entry.ids != part:
            return False
        self._hold([entry])
        sequence.entries.append(entry)
        for group, table in enumerate(sequence.tables):
            if table[place] >= 0 and entry.pages[group] < 0:
                entry.pages[group] = table[place]
                self.groups[group].refs[table[place]] += 1
            self._stale(entry, group)  # of a prompt that was read twice
        return True

    # -- snapshots, forks, ends ---------------------------------------------------------------------------------------

    def snapshot(self) -> int:
        """A slot for a snapshot, if there is room without taking anything from anybody; else -1."""
        return self._take(self.slots) if self.spare(self.shape.slot_bytes) else -1

    def keep_snapshot(self, sequence: Sequence, border: int, number: int) -> None:
        """`number` holds a sequence's state after `border` tokens; an entry that has one already needs no other."""
        place = border // self.shape.page - 1
        if place < len(sequence.entries) and sequence.entries[place].snapshot < 0:
            entry = sequence.entries[place]
            entry.snapshot = number
            self.snapshots[entry.digest] = entry
            self.loose += self.shape.slot_bytes
        else:
            self.drop_snapshot(number)

    def drop_snapshot(self, number: int) -> None:
        """Gives a snapshot back."""
        self._drop(self.slots, number)

    def fork(self, parent: Sequence, child: Sequence) -> bool:
        """Lets `child` share all that `parent` has; False, and nothing changed, if there is no slot for it."""
        if not self.spare(self.shape.slot_bytes):
            return False
        if self.shape.slot_bytes:
            child.slot = self._take(self.slots)
            self.slot_copies.append((parent.slot, child.slot))
        for numbers, table, own in zip(self.groups, parent.tables, child.tables, strict=True):
            own += table
            for number in table:
                if number >= 0:
                    numbers.refs[number] += 1
        child.source_table = list(parent.source_table)
        for number in child.source_table:
            self.sources.refs[number] += 1
        child.entries = list(parent.entries)
        self._hold(child.entries)
        child.computed, child.started = parent.computed, True
        parent.ready = 0  # what both write next is one's own after a copy
        return True

    def release(self, sequence: Sequence) -> None:
        """Gives back all that a sequence has. What the cache knows stays until memory is wanted."""
        for group, table in enumerate(sequence.tables):
            for place, number in enumerate(table):
                if number >= 0:
                    self._give_back(sequence, group, place)
            table.clear()
        for number in sequence.source_table:
            self._drop(self.sources, number)
        sequence.source_table = []
        if sequence.slot >= 0:
            self._drop(self.slots, sequence.slot)
            sequence.slot = -1
        self._leave(sequence.entries)
        sequence.entries = []
        sequence.computed = sequence.ready = sequence.event = 0
