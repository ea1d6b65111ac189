"""A model that reads, behind the waist."""

from __future__ import annotations

import pytest
import torch

from openbook.chat import Chat, Embed, Tokenize, capabilities, require, wait
from openbook.chat.encoder import Encoder
from openbook.errors import InputError, Refusal
from openbook.generate.encode import Pooling, embed
from openbook.models.make import make, spec_of
from openbook.text import Tokenizer
from tests.text.kinds import SENTENCES


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    sizes = {"vocab": 410, "dim": 32, "layers": 2, "heads": 4, "hidden": 48, "context": 64}
    return Encoder(make(spec_of("bert", sizes)), Tokenizer.train(SENTENCES * 3, 400), exact=True)


def test_it_embeds_and_nothing_else(encoder: Encoder) -> None:
    assert capabilities(encoder) == ("Embed", "Tokenize")
    assert require(encoder, Embed) is encoder
    assert wait(require(encoder, Tokenize).tokenize("fox")) == encoder.tokenizer.encode("fox")
    texts = ["Who crossed the river?", "🦊", "The fox."]
    vectors = torch.tensor(wait(encoder.embed(texts)))
    ids = [encoder.tokenizer.prompt(text) for text in texts]
    assert torch.equal(vectors, embed(encoder.model, ids, exact=True))
    assert vectors.norm(dim=1).tolist() == pytest.approx([1.0] * 3)
    assert wait(encoder.embed(texts[::-1])) == vectors.flip(0).tolist()
    assert wait(encoder.embed([])) == []


def test_what_it_cannot_do_is_said(encoder: Encoder) -> None:
    with pytest.raises(InputError, match=r"Text 1 has .* shorten it"):
        wait(encoder.embed(["a", "river " * 200]))
    with pytest.raises(InputError, match="length 1"):
        Encoder(encoder.model, encoder.tokenizer, Pooling(normalise=False))
    with pytest.raises(Refusal, match="cannot Chat"):
        require(encoder, Chat)
