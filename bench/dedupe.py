"""Near duplicates beside datasketch, planted copies, and the search for evaluation items.

    python bench/dedupe.py [--rounds 5] [--megabytes 8] [--corpus FILE.jsonl] [--against FOLDER]

Speed: from texts to the clusters of those that share a band, 128 permutations in 32 bands of 4, shingles of five words;
both contenders in turn, one thread each. In the case `shingles ready` both are handed the hashes of the shingles, and
so find no words and hash none; their clusters are equal then, which is checked. Then precision and recall on planted
copies of the same documents, kind by kind, and the MB/s in which documents are searched for the items of `--against`.
Without `--corpus` the texts are made up of random words.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from _harness import Case, Contender, Round, arguments, compare_cases, report, serve_cases
from openbook.data.dedupe import near as module
from openbook.data.dedupe.contamination import Index
from openbook.data.dedupe.evaluation import evaluations
from openbook.data.dedupe.near import Near, clusters, shingles, signatures, sketch
from openbook.data.dedupe.planted import plant, score

CASES = ("texts to clusters", "shingles ready")
LENGTH = 3000  # characters of a document
ABOUT = "Near duplicates beside datasketch, planted copies, and the search for evaluation items."


def documents(corpus: str, megabytes: float) -> list[str]:
    """Pieces of the corpus's documents, without two of the same place."""
    wanted, found = int(megabytes * 1e6), list[str]()
    if not corpus:
        draw = random.Random(0)
        words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 9))) for _ in range(20_000)]
        return [" ".join(draw.choices(words, k=LENGTH // 6)) for _ in range(wanted // LENGTH)]
    with Path(corpus).open(encoding="utf-8") as file:
        for line in file:
            text = json.loads(line)["text"]
            found += [text[at : at + LENGTH] for at in range(0, min(len(text), 30 * LENGTH), LENGTH)]
            if sum(map(len, found)) > wanted:
                break
    return [text for text in found if len(text.split()) >= 30]


def setup(which: str, corpus: str, megabytes: float) -> tuple[Case, dict[str, Any]]:
    near = Near(threshold=0)
    texts = plant(documents(corpus, megabytes), seed=1, share=0.3).texts
    size = sum(len(text.encode()) for text in texts) / 1e6
    sets = [shingles(text, near) for text in texts]
    ready = [one.tolist() for one in sets]

    def ours(case: str) -> Any:
        return clusters(sketch(sets, near) if case == CASES[1] else signatures(texts, near), near)

    def theirs(case: str) -> Any:
        from datasketch import MinHash, MinHashLSH

        made = ready if case == CASES[1] else [_shingles(text, near) for text in texts]
        known = {"num_perm": near.permutations, "seed": near.seed}
        if case == CASES[1]:
            sketches = MinHash.bulk(made, hashfunc=lambda hashed: hashed, **known)
        else:
            sketches = MinHash.bulk(made, **known)
        index = MinHashLSH(num_perm=near.permutations, params=(near.bands, near.rows))
        parents = np.arange(len(texts))
        for number, one in enumerate(sketches):
            pairs = np.array([[other, number] for other in index.query(one)], np.int64).reshape(-1, 2)
            module.unite(parents, pairs)
            index.insert(number, one)
        return np.array([module.root(parents, i) for i in range(len(parents))])

    contender = ours if which == "ours" else theirs
    if which != "ours" and not np.array_equal(theirs(CASES[1]), ours(CASES[1])):
        raise SystemExit("datasketch's clusters are not ours")

    def work(case: str) -> Round:
        start = time.perf_counter()
        contender(case)
        return Round(size, time.perf_counter() - start)

    return work, {"documents": len(texts), "megabytes": size}


def _shingles(text: str, near: Near) -> list[bytes]:
    """As one writes it for datasketch."""
    words = text.lower().split()
    count = max(1, len(words) - near.shingle + 1)
    return [" ".join(words[at : at + near.shingle]).encode() for at in range(count)]


def planted(texts: list[str]) -> dict[str, Any]:
    """Precision and recall with the defaults."""
    found = plant(texts, seed=2)
    result = score(found, clusters(signatures(found.texts, Near()), Near()))
    print(f"\nPlanted copies of {len(texts):,} documents: precision {result.precision:.4f}, recall {result.recall:.4f}")
    for name, share in result.by_change.items():
        print(f"  {name:<22} {share:.4f} found")
    return {"precision": result.precision, "recall": result.recall, "by_change": dict(result.by_change)}


def searched(texts: list[str], against: str, rounds: int) -> dict[str, Any]:
    """MB/s of the search for evaluation items; the best of the rounds, in processor time."""
    size = sum(len(text.encode()) for text in texts) / 1e6
    rates = {}
    with tempfile.TemporaryDirectory() as folder:
        for n in (13, 8):
            index = Index.build(evaluations([against]), Path(folder, str(n)), n=n)
            taken = []
            for _ in range(rounds):
                start = time.process_time()
                for text in texts:
                    index.find(text)
                taken.append(time.process_time() - start)
            rates[str(n)] = size / min(taken)
            print(f"Search for {len(index):,} n-grams, n={n}: {rates[str(n)]:.1f} MB/s a core")
    return rates


def main() -> None:
    given = arguments(ABOUT, rounds=5, megabytes=8.0, corpus="", against="")
    if given.child:
        serve_cases(lambda which: setup(which, given.corpus, given.megabytes), given.child)
        return
    more = ["--corpus", given.corpus, "--megabytes", str(given.megabytes)]
    single = {"OMP_NUM_THREADS": "1"}
    contenders = {
        name: Contender([sys.argv[0], "--child", name, *more][1:], environment=single)
        for name in ("ours", "datasketch")
    }
    results = compare_cases(contenders, CASES, given.rounds)
    texts = documents(given.corpus, given.megabytes)
    found = {"planted": planted(texts)}
    if given.against:
        found["search"] = searched(texts, given.against, given.rounds)
    report("dedupe", "Near duplicates", "MB/s of text", results, given.out, "datasketch", **found)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
