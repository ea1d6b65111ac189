"""An engine that reads: vectors, classes, scores of pairs and words for masks, with the words of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import openbook as ob
from openbook.chat import wait
from openbook.chat.engine import Engine
from openbook.errors import InputError, Refusal
from openbook.generate.encode import Pooling
from tests.text.kinds import wordpiece, write

TEXTS = ["The fox crossed the river.", "A fox", "When did the fox cross the river, and why did nobody see it?"]


def bert(root: Path, architecture: str, **more: Any) -> Path:
    """A tiny random encoder with a word-piece tokenizer, as transformers writes them."""
    import transformers

    tokenizer, _ = wordpiece()
    folder = root / architecture
    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=36,
        intermediate_size=70,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=64,
        **more,
    )
    model = getattr(transformers, architecture)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    write("wordpiece", folder)
    return folder


def engine_of(folder: Path) -> Engine:
    return Engine(ob.load(folder), ob.Tokenizer.load(folder), memory="8MiB")


def reference(folder: Path, architecture: str, first: str, second: str | None = None) -> Any:
    """Output of the reference for one text or pair, and its ids."""
    import transformers

    words = transformers.PreTrainedTokenizerFast.from_pretrained(folder)(
        first, second, return_tensors="pt", return_token_type_ids=True
    )
    model = getattr(transformers, architecture).from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**words, output_hidden_states=True), words["input_ids"][0].tolist()


def test_vectors_classes_and_what_cannot_be_read(tmp_path: Path) -> None:
    name = "BertForSequenceClassification"
    folder = bert(tmp_path, name, num_labels=3)
    with engine_of(folder) as engine:
        vectors = wait(engine.embed(TEXTS))
        assert wait(engine.embed([])) == []
        assert wait(engine.embed(TEXTS[::-1], exact=True)) == wait(engine.embed(TEXTS, exact=True))[::-1]
        plain = wait(engine.embed(TEXTS, pooling=Pooling(by="cls", normalise=False, dimensions=5), exact=True))
        found = wait(engine.classify([*TEXTS, ("A fox", "The river")]))
        for text, vector, first in zip(TEXTS, vectors, plain, strict=True):
            hidden = reference(folder, name, text)[0].hidden_states[-1][0]
            mean = torch.nn.functional.normalize(hidden.mean(0), dim=0)
            assert torch.allclose(torch.tensor(vector), mean, atol=1e-5)
            assert torch.allclose(torch.tensor(first), hidden[0, :5], atol=1e-4)
        expected = [reference(folder, name, text)[0].logits[0] for text in TEXTS]
        expected.append(reference(folder, name, "A fox", "The river")[0].logits[0])
        assert torch.allclose(torch.tensor(found), torch.stack(expected), atol=1e-4)
        with pytest.raises(InputError, match="64"):
            wait(engine.embed(["the fox " * 64]))
        with pytest.raises(Refusal, match="cannot write"):
            engine.generate(["The fox"])


def test_a_cross_encoder_ranks(tmp_path: Path) -> None:
    name = "BertForSequenceClassification"
    folder = bert(tmp_path, name, num_labels=1)
    with engine_of(folder) as engine:
        scores = wait(engine.rank("the fox", TEXTS))
        expected = [float(reference(folder, name, "the fox", text)[0].logits[0, 0]) for text in TEXTS]
        assert scores == pytest.approx(expected, abs=1e-4)
        assert wait(engine.rank("the fox", TEXTS[:1], sigmoid=True))[0] == pytest.approx(
            float(torch.tensor(expected[0]).sigmoid()), abs=1e-4
        )


def test_masks_are_filled(tmp_path: Path) -> None:
    folder = bert(tmp_path, "BertForMaskedLM")
    with engine_of(folder) as engine:
        (blanks,) = wait(engine.fill(["The [MASK] crossed the river."], top=3))
        output, ids = reference(folder, "BertForMaskedLM", "The [MASK] crossed the river.")
        logits = output.logits[0, ids.index(engine.tokenizer.mask)]
        logits[list(engine.tokenizer.specials.values())] = -torch.inf
        best = logits.softmax(-1).topk(3)
        assert [p for _, p in blanks[0]] == pytest.approx(best.values.tolist(), abs=1e-5)
