"""Rerank, score and moderations: by a cross-encoder, by embeddings, by a classifier; and by nobody."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from openbook.chat import Scripted
from openbook.chat.rows import Row, Text
from openbook.serve.routes.scores import safe
from tests.serve.conftest import Start


class Sorter:
    """A classifier: each 'x' of a text adds 4 (k - 1/2) to the logit of label k; one label alone begins at 1."""

    def __init__(self, labels: tuple[str, ...], activation: str = "softmax") -> None:
        self.labels = labels
        self.activation = activation
        self.read: list[Row] = []

    def rows(self, texts: Sequence[Text]) -> list[Row]:
        """Bytes."""
        joined = ["".join(text) if isinstance(text, tuple) else str(text) for text in texts]
        return [Row(tuple(text.encode()), ()) for text in joined]

    async def classify(self, texts: Sequence[Row]) -> list[list[float]]:
        """Numbers of a row."""
        self.read += texts
        places = range(len(self.labels))
        return [
            [row.ids.count(ord("x")) * (place - 0.5) * 4 + (len(self.labels) == 1) for place in places] for row in texts
        ]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_a_cross_encoder_ranks_and_scores(put: Start) -> None:
    http = put(cross=Sorter(("LABEL_0",), "sigmoid"), raw=Sorter(("LABEL_0",), "none")).http
    asked: dict[str, Any] = {"model": "cross", "query": "q", "documents": ["xx", "a", "xxx", "x"], "top_n": 3}
    reply = http.post("/v1/rerank", json=asked | {"return_documents": True}).json()
    assert reply["by"] == "cross-encoder"
    assert [one["index"] for one in reply["results"]] == [1, 3, 0]
    assert [one["document"]["text"] for one in reply["results"]] == ["a", "x", "xx"]
    assert reply["results"][0]["relevance_score"] == pytest.approx(sigmoid(1.0))
    assert reply["usage"]["total_tokens"] == 4 + 7  # the query is read with every document
    assert http.post("/rerank", json=asked).json()["results"][0] == {
        "index": 1, "relevance_score": pytest.approx(sigmoid(1.0)), "document": None,
    }  # fmt: skip
    scores = http.post("/v1/score", json={"model": "raw", "text_1": "a", "text_2": ["b", "x"]}).json()
    assert [one["score"] for one in scores["data"]] == [1.0, -1.0]  # logits, where the folder says so
    one = http.post("/score", json={"model": "raw", "text_1": ["a", "x"], "text_2": ["b", "x"]}).json()
    assert [one["score"] for one in one["data"]] == [1.0, -3.0]
    assert http.post("/score", json={"model": "raw", "text_1": ["a", "x"], "text_2": ["b"]}).status_code == 400


def test_without_a_cross_encoder_the_angle_of_embeddings_counts(put: Start) -> None:
    http = put(tiny=Scripted()).http
    texts = ["the fox", "a river", "the stone"]
    reply = http.post("/v1/score", json={"model": "tiny", "text_1": "the fox", "text_2": texts}).json()
    assert reply["by"] == "embeddings"
    assert [one["score"] for one in reply["data"]] == [pytest.approx(x, abs=1e-6) for x in (1.0, 0.0, 0.5)]
    assert reply["usage"]["prompt_tokens"] == len("".join(texts))  # a text that stands in several pairs is read once


def test_moderations_of_classes_that_exclude_each_other_and_of_several(put: Start) -> None:
    serving = put(one=Sorter(("safe", "toxic")))
    with OpenAI(base_url=serving.v1, api_key="-") as client:
        reply = client.moderations.create(input=["fine", "xx"])
        assert [result.flagged for result in reply.results] == [False, True]
    asked = {"input": "xx"}
    (found,) = serving.http.post("/v1/moderations", json=asked).json()["results"]
    assert sum(found["category_scores"].values()) == pytest.approx(1.0)
    assert found["categories"] == {"safe": False, "toxic": True}

    many = put(one=Sorter(("a", "b", "c"), "sigmoid"), two=Sorter(("ok", "bad")), cross=Sorter(("LABEL_0",))).http
    (found,) = many.post("/v1/moderations", json=asked | {"model": "one"}).json()["results"]
    assert found["category_scores"]["b"] == pytest.approx(sigmoid(4.0))
    assert found["categories"] == {"a": False, "b": True, "c": True}
    unnamed = many.post("/v1/moderations", json=asked)
    assert (unnamed.status_code, unnamed.json()["error"]["param"]) == (400, "model")
    assert "one, two" in unnamed.text
    listed = {one["id"]: one["capabilities"] for one in many.get("/v1/models").json()["data"]}
    assert listed["one"] == ["classify"]


def test_words_for_nothing_to_say() -> None:
    assert all(map(safe, ("SAFE", "Non_Toxic", "not toxic", "benign")))
    assert not any(map(safe, ("unsafe", "toxic", "LABEL_0", "hate")))


@pytest.mark.slow
def test_a_real_classifier_and_a_real_cross_encoder(put: Start, tmp_path: Path) -> None:
    """Labels of the folder, chances as the reference has them."""
    import torch
    import transformers

    from tests.chat.test_reading import TEXTS, bert, engine_of, reference

    name = "BertForSequenceClassification"
    names = {0: "clean", 1: "rude", 2: "spam"}
    sorter = bert(tmp_path / "sorter", name, num_labels=3, id2label=names, problem_type="multi_label_classification")
    cross = bert(tmp_path / "cross", name, num_labels=1)
    assert transformers.__version__
    with engine_of(sorter) as one, engine_of(cross) as other:
        assert (one.labels, one.activation) == (("clean", "rude", "spam"), "sigmoid")
        assert (other.labels, other.activation) == (("LABEL_0",), "sigmoid")
        http = put(sorter=one, cross=other).http
        found = http.post("/v1/moderations", json={"input": TEXTS[0]}).json()["results"][0]
        expected, ids = reference(sorter, name, TEXTS[0])
        chances = torch.sigmoid(expected.logits[0]).tolist()
        assert list(found["category_scores"].values()) == pytest.approx(chances, abs=1e-5)
        scores = http.post("/v1/score", json={"model": "cross", "text_1": "the fox", "text_2": TEXTS}).json()
        wanted = [reference(cross, name, "the fox", text) for text in TEXTS]
        assert [one["score"] for one in scores["data"]] == pytest.approx(
            [float(torch.sigmoid(output.logits[0, 0])) for output, _ in wanted], abs=1e-5
        )
        assert scores["usage"]["prompt_tokens"] == sum(len(ids) for _, ids in wanted)
        usage = http.post("/v1/embeddings", json={"model": "sorter", "input": TEXTS[0]}).json()["usage"]
        assert usage["prompt_tokens"] == len(ids)  # with what stands around a text
        long = http.post("/v1/rerank", json={"model": "cross", "query": "the fox " * 40, "documents": TEXTS})
        assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")
        chat: dict[str, Any] = {"messages": [{"role": "user", "content": "A"}]}
        for path, body in (("chat/completions", chat), ("completions", {"prompt": "A"})):
            refused = http.post("/v1/" + path, json={"model": "sorter"} | body)
            assert (refused.status_code, "cannot write" in refused.text) == (400, True)
        listed = http.get("/v1/models/sorter").json()
        assert listed["capabilities"] == ["embed", "tokenize", "classify"]
