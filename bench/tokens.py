"""Text to ids, beside `tokenizers`, `tiktoken` and `datasets`: encoding on one thread, training, preparing a corpus.

    python bench/tokens.py [--corpus DIR] [--megabytes 30] [--training 110] [--vocab 32000] [--rounds 5]
                           [--parts encode,train,prepare]

The corpus is read by every contender before its rounds. In `encode` all have the same vocabulary, trained once on the
same text, use one thread and make lists (`ours, arrays`: one array); the number of ids stands beside each round. In
`train` and `prepare` all cores work. `prepare` is the whole way from a file to shards (reading, hashing and writing
among it), `ours, ids only` the tokenising alone, and the peer is `datasets.map` over a data set that is already loaded,
in batches, with as many processes as there are cores.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _harness import Case, Contender, Round, arguments, compare_cases, report, serve_cases
from openbook import runtime
from openbook.data.documents import documents
from openbook.data.prepare import prepare
from openbook.text import Tokenizer

ONE_THREAD = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Given:
    """What a contender is told on its command line."""

    corpus: Path
    folder: Path
    megabytes: float
    vocab: int

    def texts(self) -> list[str]:
        return list(until(documents(self.corpus), self.megabytes * 1e6))

    @property
    def source(self) -> Path:
        return self.folder / "source.jsonl"


def until(texts: Iterator[str], most: float) -> Iterator[str]:
    """The first of some texts, together at least `most` bytes."""
    size = 0
    for text in texts:
        yield text
        size += len(text.encode())
        if size >= most:
            return


def encode(who: str, given: Given) -> Callable[[], float]:
    """A round of encoding on one thread: the number of ids."""
    tokenizer, texts = Tokenizer.load(given.folder), given.texts()
    if who == "ours":
        return lambda: sum(map(len, tokenizer.encode_batch(texts)))
    if who == "ours, arrays":
        return lambda: len(tokenizer.encode_arrays(texts)[0])
    if who == "tokenizers":
        import tokenizers

        backend = tokenizers.Tokenizer.from_file(str(given.folder / "tokenizer.json"))
        return lambda: sum(len(one.ids) for one in backend.encode_batch_fast(texts, add_special_tokens=False))
    import tiktoken

    from openbook.text.training import SPLIT

    special = set(tokenizer.specials.values())
    ranks = {tokenizer.token_bytes(number): number for number in range(tokenizer.vocab) if number not in special}
    peer = tiktoken.Encoding("trained", pat_str=SPLIT, mergeable_ranks=ranks, special_tokens={})
    return lambda: sum(len(peer.encode_ordinary(text)) for text in texts)


def train(who: str, given: Given) -> Callable[[], float]:
    """A round of training: the size of the vocabulary."""
    texts = given.texts()
    if who == "ours":
        return lambda: Tokenizer.train(texts, given.vocab).vocab
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    from openbook.text.training import SPECIALS, SPLIT

    def work() -> float:
        peer = tokenizers.Tokenizer(models.BPE())
        split = pre_tokenizers.Split(tokenizers.Regex(SPLIT), behavior="isolated")
        peer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=given.vocab,
            min_frequency=2,
            special_tokens=list(SPECIALS),
            initial_alphabet=alphabet,
            show_progress=False,
        )
        peer.train_from_iterator(texts, trainer)
        return float(peer.get_vocab_size())

    return work


def prepared(who: str, given: Given) -> Callable[[], float]:
    """A round of preparing: the number of ids."""
    tokenizer = Tokenizer.load(given.folder)
    if who == "ours":

        def anew() -> float:
            shutil.rmtree(given.folder / "prepared", ignore_errors=True)
            return prepare(given.source, tokenizer, given.folder / "prepared").tokens

        return anew
    if who == "ours, ids only":
        texts = given.texts()
        return lambda: len(tokenizer.encode_arrays(texts)[0])
    import datasets
    import tokenizers

    datasets.disable_progress_bars()
    datasets.disable_caching()
    loaded = datasets.load_dataset(
        "json", data_files=str(given.source), split="train", cache_dir=str(given.folder / "cache")
    )
    backend = tokenizers.Tokenizer.from_file(str(given.folder / "tokenizer.json"))

    def ids(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"ids": [one.ids for one in backend.encode_batch_fast(batch["text"], add_special_tokens=False)]}

    def work() -> float:
        made = loaded.map(ids, batched=True, num_proc=runtime.default_threads(), remove_columns=loaded.column_names)
        return float(len(made))

    return work


PARTS = {
    "encode": (encode, ("ours", "ours, arrays", "tokenizers", "tiktoken"), ONE_THREAD),
    "train": (train, ("ours", "tokenizers"), {}),
    "prepare": (prepared, ("ours", "ours, ids only", "datasets"), {}),
}


def setup(which: str) -> tuple[Case, dict[str, Any]]:
    """Part, who, and what is given."""
    part, who, corpus, folder, megabytes, vocab = which.split("|")
    given = Given(Path(corpus), Path(folder), float(megabytes), int(vocab))
    work = PARTS[part][0](who, given)
    size = sum(len(text.encode()) for text in until(documents(given.corpus), given.megabytes * 1e6)) / 1e6

    def case(_: str) -> Round:
        start = time.perf_counter()
        made = work()
        return Round(size, time.perf_counter() - start, {"made": made})

    work()  # warm
    return case, {"megabytes": round(size, 1)}


def main() -> None:
    beside = Path(os.environ.get("OPENBOOK_DATA") or Path(__file__).resolve().parents[2] / "data") / "pretrain"
    options = arguments(
        __doc__ or "",
        rounds=5,
        corpus=str(beside),
        megabytes=30.0,
        training=110.0,
        vocab=32_000,
        parts="encode,train,prepare",
    )
    if options.child:
        serve_cases(setup, options.child)
        return
    with tempfile.TemporaryDirectory(prefix="openbook-tokens-") as name:
        measure(options, Path(name))


def measure(options: Namespace, folder: Path) -> None:
    """All parts, in `folder`."""
    sizes = {"encode": options.megabytes, "train": options.training, "prepare": options.megabytes}
    texts = list(until(documents(options.corpus), options.megabytes * 1e6))
    Tokenizer.train(texts, options.vocab).save(folder)
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    (folder / "source.jsonl").write_text("".join(lines), encoding="utf-8")
    for part in options.parts.split(","):
        _, contenders, environment = PARTS[part]
        started = {
            who: Contender(
                ["--child", f"{part}|{who}|{options.corpus}|{folder}|{sizes[part]}|{options.vocab}"],
                environment=environment,
            )
            for who in contenders
        }
        cases = compare_cases(started, [part], options.rounds)
        title = {"encode": "Encoding, one thread", "train": "Training", "prepare": "Preparing, all cores"}[part]
        report(f"tokens_{part}", title, "MB/s", cases, options.out, "best", vocab=options.vocab)


if __name__ == "__main__":
    main()
