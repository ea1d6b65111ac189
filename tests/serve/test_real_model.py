"""The official client and a real (tiny, random) model: what is said streamed and whole, cached, read, and adapted."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import BadRequestError, ConflictError, NotFoundError, OpenAI
from pydantic import BaseModel
from safetensors.torch import save_file

from openbook.chat.defaults import defaults_of
from openbook.chat.engine import Engine
from openbook.errors import CheckpointError
from openbook.serve.served import Served
from tests.serve.conftest import Serving, Start

ASK: list[Any] = [{"role": "user", "content": "The fox"}]
SYSTEM: Any = {"role": "system", "content": "The river was cold and the night was long. " * 40}


@pytest.fixture
def client(real: Serving) -> OpenAI:
    """The client of the server over the engine."""
    return OpenAI(base_url=real.v1, api_key="none", max_retries=0)


def test_streamed_is_whole_for_a_seed_and_seeds_repeat(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": ASK, "seed": 5, "max_tokens": 24, "n": 2}
    whole = client.chat.completions.create(**asked)
    again = client.chat.completions.create(**asked)
    texts = ["", ""]
    for chunk in client.chat.completions.create(**asked, stream=True):
        for one in chunk.choices:
            texts[one.index] += one.delta.content or ""
    assert [one.message.content for one in whole.choices] == [one.message.content for one in again.choices] == texts
    assert texts[0] != texts[1]
    other = client.chat.completions.create(**{**asked, "seed": 6})
    assert other.choices[0].message.content != texts[0]


def test_logprobs_stop_and_echo(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": "The fox", "max_tokens": 6, "temperature": 0}
    whole = client.completions.create(**asked, logprobs=2, echo=True)
    found = whole.choices[0].logprobs
    assert found is not None
    assert found.tokens is not None
    assert found.token_logprobs is not None
    assert found.top_logprobs is not None
    assert found.text_offset is not None
    assert whole.choices[0].text.startswith("The fox")
    assert found.token_logprobs[0] is None
    assert max(one for one in found.token_logprobs if one is not None) < 0
    assert all(len(tops) >= 2 for tops in found.top_logprobs[1:])
    assert found.text_offset == sorted(found.text_offset)
    heard = client.completions.create(**{**asked, "max_tokens": 0}, logprobs=2, echo=True)  # as lm-eval asks
    assert heard.choices[0].text == "The fox"
    assert heard.choices[0].logprobs is not None
    count = len(heard.choices[0].logprobs.tokens or ())
    assert heard.choices[0].logprobs.token_logprobs == found.token_logprobs[:count]

    odd = client.completions.create(**{**asked, "prompt": "🦊 né", "max_tokens": 0}, logprobs=1, echo=True).choices[0]
    assert odd.logprobs is not None
    assert len(set(odd.logprobs.text_offset or ())) == len(odd.text)  # of characters, whatever tokens they fall into
    assert max(odd.logprobs.text_offset or ()) == len(odd.text) - 1

    text = client.completions.create(**asked).choices[0].text
    stopped = client.completions.create(**asked, stop=text[2:4]).choices[0]
    assert (stopped.text, stopped.finish_reason) == (text[: text.index(text[2:4])], "stop")
    chat = client.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=3, temperature=0, logprobs=True, top_logprobs=2
    )
    assert chat.choices[0].logprobs is not None
    for one in chat.choices[0].logprobs.content or ():
        assert one.logprob == max(top.logprob for top in one.top_logprobs)


def test_special_tokens_take_no_place_in_the_text(client: OpenAI, engine: Engine) -> None:
    """Read or written: they have their log-probabilities, and the offsets of all others are where they are."""
    special = max(engine.tokenizer.specials.values())
    ids = [*engine.tokenizer.encode("The fox"), special, *engine.tokenizer.encode(" and")]
    for bias in ({}, {str(special): 7}):
        choice = client.completions.create(
            model="tiny", prompt=ids, max_tokens=24, seed=1, logprobs=0, echo=True, logit_bias=bias,
            extra_body={"ignore_eos": True},
        ).choices[0]  # fmt: skip
        said = choice.logprobs
        assert said is not None
        assert said.tokens is not None
        assert said.text_offset is not None
        names = set(engine.tokenizer.specials)
        assert names & {*said.tokens}
        assert len({*said.tokens} - names) > 3
        for token, offset in zip(said.tokens, said.text_offset, strict=True):
            if token not in names and token.isascii() and not token.startswith("bytes:"):
                assert (
                    choice.text[offset:].lstrip("\ufffd").startswith(token)
                )  # half a character ends with the next token


def test_a_schema_is_kept_to(client: OpenAI) -> None:
    pytest.importorskip("llguidance")

    class Answer(BaseModel):
        good: bool

    parsed = client.chat.completions.parse(model="tiny", messages=ASK, response_format=Answer, max_tokens=200, seed=1)
    assert isinstance(parsed.choices[0].message.parsed, Answer)
    one = client.chat.completions.create(
        model="tiny", messages=ASK, seed=2, extra_body={"structured_outputs": {"choice": ["yes", "no"]}}
    )
    assert one.choices[0].message.content in ("yes", "no")


def test_what_was_read_before_costs_less(client: OpenAI, real: Serving) -> None:
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 4}
    first = client.chat.completions.create(**asked, messages=[SYSTEM, *ASK]).usage
    second = client.chat.completions.create(**asked, messages=[SYSTEM, {"role": "user", "content": "A river"}]).usage
    assert first is not None
    assert second is not None
    assert first.prompt_tokens > 600
    assert first.prompt_tokens_details is not None
    assert second.prompt_tokens_details is not None
    cached = second.prompt_tokens_details.cached_tokens or 0
    assert first.prompt_tokens_details.cached_tokens == 0
    assert 600 * 0.8 < cached < second.prompt_tokens
    assert first.model_extra is not None
    assert second.model_extra is not None
    assert first.model_extra["billed_tokens"] == first.total_tokens
    price = real.server.settings.cached_price
    assert second.model_extra["billed_tokens"] == pytest.approx(second.total_tokens - cached * (1 - price), abs=1e-3)


def test_too_long_a_prompt_is_told_and_trimmed_only_on_request(client: OpenAI) -> None:
    turns: list[Any] = [{"role": "user", "content": "word " * 60} for _ in range(6)]
    asked: dict[str, Any] = {"model": "tiny", "messages": turns, "max_tokens": 4}
    with pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(**asked)
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.param == "messages"
    assert "`truncate`" in refused.value.message  # what a request calls it
    with pytest.raises(BadRequestError, match="`truncation`"):
        client.responses.create(model="tiny", input=turns)
    trimmed = client.chat.completions.create(**asked, extra_body={"truncate": "oldest"})
    assert trimmed.model_extra is not None
    assert trimmed.model_extra["dropped"][0] == 0
    with pytest.raises(BadRequestError) as refused:
        client.completions.create(model="tiny", prompt="word " * 3000)
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(BadRequestError) as refused:
        client.embeddings.create(model="tiny", input=["fox", "word " * 3000])
    assert refused.value.code == "context_length_exceeded"


def test_what_is_too_much_of_it_is_refused_before_it_is_work(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="at most 2048"):
        client.embeddings.create(model="tiny", input=["a"] * 2049)
    deep: Any = 1
    for _ in range(600):
        deep = {"a": deep}
    user: list[Any] = [{"role": "user", "content": "a"}]
    with pytest.raises(BadRequestError, match="nested"):
        client.chat.completions.create(model="tiny", messages=user, extra_body={"chat_template_kwargs": deep})


def test_embeddings_read_ids_as_they_are_and_count_what_they_read(client: OpenAI, engine: Engine) -> None:
    texts = ["The fox", "A longer text about a river"]
    ids = [list(row.ids) for row in engine.rows(texts)]
    by_text = client.embeddings.create(model="tiny", input=texts)
    by_ids = client.embeddings.create(model="tiny", input=ids)
    for one, other in zip(by_text.data, by_ids.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
    assert by_text.usage.prompt_tokens == by_ids.usage.prompt_tokens == sum(map(len, ids))
    half = client.embeddings.create(model="tiny", input=[[300, 301]])  # ids that no text gives alone
    assert half.usage.prompt_tokens == 2
    with pytest.raises(BadRequestError, match="dimensions"):
        client.embeddings.create(model="tiny", input="A", dimensions=33)


def test_texts_are_ranked_by_their_angle_where_there_is_no_cross_encoder(real: Serving) -> None:
    asked = {"model": "tiny", "query": "The fox", "documents": ["A river", "The fox", "Stones"]}
    reply = real.http.post("/v1/rerank", json=asked).json()
    assert reply["by"] == "embeddings"
    assert reply["results"][0]["index"] == 1
    assert reply["results"][0]["relevance_score"] == pytest.approx(1.0, abs=1e-5)
    assert len(reply["results"]) == 3
    refused = real.http.post("/v1/moderations", json={"model": "tiny", "input": "A"})
    assert refused.status_code == 400
    assert "It can: Chat" in refused.json()["error"]["message"]
    assert "Served: none" in real.http.post("/v1/moderations", json={"input": "A"}).json()["error"]["message"]


def test_adapters_come_and_go(client: OpenAI, real: Serving, engine: Engine, tmp_path: Path) -> None:
    write_lora(tmp_path / "poems", engine)
    asked = {"lora_name": "poems", "lora_path": str(tmp_path / "poems")}
    assert real.http.post("/v1/load_lora_adapter", json=asked).json()["parent"] == "tiny"
    assert {model.id for model in client.models.list()} == {"tiny", "poems"}
    assert real.http.post("/v1/load_lora_adapter", json=asked).status_code == 400  # the name is taken
    ask: dict[str, Any] = {"messages": ASK, "max_tokens": 12, "temperature": 0}
    said = [client.chat.completions.create(model=name, **ask).choices[0].message.content for name in ("tiny", "poems")]
    assert said[0] != said[1]
    long: dict[str, Any] = {"prompt": "A", "max_tokens": 900, "extra_body": {"ignore_eos": True}}
    with client.completions.create(model="poems", stream=True, **long) as stream:
        next(iter(stream))
        with pytest.raises(ConflictError, match="used by 1"):
            client.post("/unload_lora_adapter", body={"lora_name": "poems"}, cast_to=object)
    assert "poems" in real.server.models.all
    while engine.core.jobs:  # the caller has gone, and its work ends
        time.sleep(0.01)
    assert real.http.post("/v1/unload_lora_adapter", json={"lora_name": "poems"}).json()["stopped"] is True
    with pytest.raises(NotFoundError):
        client.chat.completions.create(model="poems", **ask)
    for name, path in (("tiny", "x"), ("new", str(tmp_path / "nothing")), ("new", "x" * 4000), ("new", "x\0y")):
        body = {"lora_name": name, "lora_path": path}
        assert real.http.post("/v1/load_lora_adapter", json=body).status_code == 400
    assert real.http.post("/v1/unload_lora_adapter", json={"lora_name": "tiny"}).status_code == 400


def write_lora(folder: Path, engine: Engine) -> None:
    """A random LoRA of the query projections."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 64, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    dim, made = engine.model.spec.embed.dim, torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(2):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_"
        tensors[name + "A.weight"] = torch.randn(2, dim, generator=made)
        tensors[name + "B.weight"] = torch.randn(dim, 2, generator=made)
    save_file(tensors, folder / "adapter_model.safetensors")


def test_a_folders_own_sampling_is_the_default(put: Start, tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    assert defaults_of(tmp_path).temperature == 1.0
    path.write_text(json.dumps({"temperature": 0.25, "top_p": 0.5, "top_k": 7, "repetition_penalty": 1.5, "other": 1}))
    found = defaults_of(tmp_path)
    assert (found.temperature, found.top_p, found.top_k, found.repetition_penalty) == (0.25, 0.5, 7, 1.5)
    path.write_text(json.dumps({"do_sample": False, "temperature": 0.25, "repetition_penalty": 1.5}))
    assert (defaults_of(tmp_path).temperature, defaults_of(tmp_path).repetition_penalty) == (1.0, 1.5)
    path.write_text(json.dumps({"top_p": 7}))
    with pytest.raises(CheckpointError, match=r"top_p.*generation-config none"):
        defaults_of(tmp_path)

    from openbook.chat import Scripted

    script = Scripted("A", "B")
    with OpenAI(base_url=put(tiny=Served(name="tiny", endpoint=script, defaults=found)).v1, api_key="-") as client:
        client.chat.completions.create(model="tiny", messages=ASK)
        client.chat.completions.create(model="tiny", messages=ASK, temperature=0.75)
    assert [(call.sampling.temperature, call.sampling.top_k) for call in script.calls] == [(0.25, 7), (0.75, 7)]
