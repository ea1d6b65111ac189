"""Law 4, vocabularies: from whatever layout, load → save → load gives the same ids, here and in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from openbook.text import Tokenizer
from tests.text.formats import layouts

LAYOUTS = [
    "gpt2",
    "roberta",
    "bert",
    "spm",
    "spm_unigram",
    "spm_table",
    "tekken",
    "gpt2.gguf",
    "llama.gguf",
    "ranks.tiktoken",
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return layouts.write_all(tmp_path_factory.mktemp("layouts"))


def same_ids(ours: Tokenizer, again: Tokenizer, theirs: Any) -> bool:
    """Ids, what stands around a text, roles and size are the same in all three."""
    # A name of a special token is text here and the token in transformers; that is a law of its own.
    texts = [text for text in layouts.texts(1, 60) if not any(name in text for name in ours.specials)]
    roles = all(
        getattr(ours, role) == getattr(again, role) == getattr(theirs, f"{role}_token_id")
        for role in ("bos", "eos", "pad", "mask", "cls", "sep")
    )
    return (
        roles
        and ours.vocab == again.vocab == len(theirs)
        and all(ours.prompt(text) == again.prompt(text) == theirs(text).input_ids for text in texts)
        and all(ours.encode(text, allow_specials=True) == again.encode(text, allow_specials=True) for text in texts)
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_saved_folder_loads_in_both(name: str, written: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    ours = layouts.load(name, written[name])
    ours.save(tmp_path)
    assert same_ids(ours, Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path))


@pytest.mark.parametrize("fault", ["merge", "normalizer"])
def test_a_lost_detail_breaks_the_law(fault: str, written: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    ours = layouts.load("spm", written["spm"])
    ours.save(tmp_path)
    state = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    if fault == "merge":
        del state["model"]["merges"][3]
    else:
        state["normalizer"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    assert not same_ids(ours, Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path))
