"""How many threads a step has: the faster way is taken, whichever it is at the time, and tries cost little."""

from __future__ import annotations

from openbook.generate.threads import Threads


def run(threads: Threads, steps: int, seconds: dict[int, float], tokens: int = 8) -> tuple[float, list[int]]:
    """Time of some steps in a world where a step takes `seconds` by its number of threads."""
    chosen = []
    for _ in range(steps):
        count = threads.choose(tokens)
        threads.note(tokens, count, seconds[count])
        chosen.append(count)
    return sum(seconds[count] for count in chosen), chosen


def test_the_faster_way_is_found_and_tries_cost_little() -> None:
    for seconds in ({2: 1.0, 1: 1.8}, {2: 40.0, 1: 1.0}, {2: 1.0, 1: 1.01}):
        spent, _ = run(Threads(2), 2000, seconds)
        assert spent < 2000 * min(seconds.values()) * 1.12 + 10 * max(seconds.values())


def test_when_the_machine_changes_so_does_the_choice() -> None:
    threads = Threads(2)
    run(threads, 500, {2: 1.0, 1: 1.8})
    _, busy = run(threads, 500, {2: 40.0, 1: 1.9})
    assert busy[-100:].count(1) > 95
    _, quiet = run(threads, 3000, {2: 1.0, 1: 1.8})
    assert quiet[-100:].count(2) > 90


def test_sizes_learn_apart_and_one_thread_has_no_choice() -> None:
    threads = Threads(2)
    run(threads, 200, {2: 5.0, 1: 1.0}, tokens=1)
    _, large = run(threads, 200, {2: 1.0, 1: 1.9}, tokens=512)
    assert large.count(2) > 180
    assert run(Threads(1), 5, {1: 1.0})[1] == [1] * 5
