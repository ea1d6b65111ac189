"""Law 6, asserted: every page, slot and byte of a pool is accounted for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openbook.generate.entries import Numbers
    from openbook.generate.pages import Pool
    from openbook.generate.plan import Sequence


def audit(pool: Pool, sequences: list[Sequence], snapshots: list[int]) -> None:
    """Asserts that every page and slot is accounted for. `snapshots`: those that a plan under way has taken."""
    total = 0
    for group, numbers in enumerate(pool.groups):
        held = [0] * len(numbers.refs)
        for pages in [s.tables[group] for s in sequences] + [[entry.pages[group]] for entry in pool.entries.values()]:
            for page in pages:
                if page >= 0:
                    held[page] += 1
        total += _agree(numbers, held)
    held = [0] * len(pool.sources.refs)
    for sequence in sequences:
        for page in sequence.source_table:
            held[page] += 1
    total += _agree(pool.sources, held)
    held = [0] * len(pool.slots.refs)
    taken = [s.slot for s in sequences] + [entry.snapshot for entry in pool.entries.values()] + snapshots
    for slot in taken:
        if slot >= 0:
            held[slot] += 1
    assert max(held, default=0) <= 1, "a slot belongs to one"
    total += _agree(pool.slots, held)
    assert total == pool.bytes <= pool.memory, "the bytes are those of what is handed out"
    users = dict.fromkeys(pool.entries, 0)
    for sequence in sequences:
        for entry in sequence.entries:
            users[entry.digest] += 1
    assert all(users[d] == entry.users for d, entry in pool.entries.items()), "entries know their users"
    loose = sum(pool.weight(entry) for entry in pool.idle.values())
    loose += sum(pool.groups[group].nbytes for _, group in pool.stale) + len(pool.snapshots) * pool.shape.slot_bytes
    assert loose == pool.loose, "the loose bytes are those of what can go"
    for (digest, group), entry in pool.stale.items():
        assert pool.entries[digest] is entry
        assert entry.users, "stale pages are those of entries with users"
        assert pool.groups[group].refs[entry.pages[group]] == 1, "a stale page is nobody's but the cache's"
    for entry in pool.entries.values():
        assert (entry.digest in pool.snapshots) == (entry.users > 0 and entry.snapshot >= 0)
        if entry.users:
            for group, page in enumerate(entry.pages):
                alone = page >= 0 and pool.groups[group].refs[page] == 1
                assert alone == ((entry.digest, group) in pool.stale), "what no sequence has can go"
    assert all((d in pool.idle) == (not entry.users) for d, entry in pool.entries.items()), "unused ones wait"


def _agree(numbers: Numbers, held: list[int]) -> int:
    assert held == numbers.refs, "the counts are those of who holds them"
    assert sorted(numbers.free) == [n for n, count in enumerate(held) if not count], "free is what nobody holds"
    return numbers.used * numbers.nbytes
