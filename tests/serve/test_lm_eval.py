"""lm-eval against the server: what it scores is what the engine scores.

The harness itself runs where the program `lm_eval` is found (in an environment of its own, LM_EVAL says where; it needs
transformers for the tokenizer). Its requests, as it makes them, are sent here too, by a client that fits a page.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import openbook as ob
from openbook.chat.engine import Engine
from openbook.chat.messages import Message
from openbook.generate.sampling import Sampling
from openbook.models.load import save
from openbook.models.make import make, spec_of
from tests.serve.conftest import SIZES, Serving, serving_of
from tests.text.kinds import write

HARNESS = os.environ.get("LM_EVAL") or shutil.which("lm_eval")
DOCS: list[dict[str, Any]] = [
    {"context": "The fox said:", "choices": ["don't wait", "the river", "no"], "gold": 0},
    {"context": "Once upon a time there was", "choices": ["a little girl", "a stone"], "gold": 0},
    {"context": "She counted 1, 2, 3,", "choices": ["45", "6789 and more", "4"], "gold": 1},
    {"context": "naïve", "choices": ["café", "中文 hier", "🦊"], "gold": 2},
    {"context": "The night was", "choices": ["long.", "cold and long", "\n", "x"], "gold": 0},
]
CHOICES = """
task: openbook_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
WRITING = """
task: openbook_writing
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{context}}}}"
doc_to_target: "{{{{choices[gold]}}}}"
generation_kwargs: {{until: ["\\n", "river"], max_gen_toks: 12, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


def scores(engine: Engine, begin: bool) -> list[list[tuple[float, bool]]]:
    """What the engine says of every choice; `begin`: behind the token that begins a text."""
    encode, rows = engine.tokenizer.encode, []
    before = list(engine.tokenizer.prefix) if begin else []
    asked = Sampling(max_tokens=0, prompt_logprobs=1)
    for doc in DOCS:
        start = len(before) + len(encode(doc["context"]))
        wholes = [before + encode(doc["context"] + " " + choice) for choice in doc["choices"]]
        heard = [(output.prompt_logprobs or ())[start:] for output in engine.generate(wholes, asked)]
        rows.append(
            [
                (sum(one.logprob for one in part if one), all(one.id == one.top[0][0] for one in part if one))
                for part in heard
            ]
        )
    return rows


def parsed(reply: dict[str, Any], starts: list[int]) -> list[tuple[float, bool]]:
    """The reading of lm-eval: a prompt's tokens and the one that was written, from where the continuation starts."""
    found = []
    for choice, start in zip(sorted(reply["choices"], key=lambda choice: choice["index"]), starts, strict=True):
        said = choice["logprobs"]["token_logprobs"][start:-1]
        tops = choice["logprobs"]["top_logprobs"][start:-1]
        greedy = all(one == max(top.values()) for one, top in zip(said, tops, strict=True))
        found.append((sum(said), greedy))
    return found


def same(found: list[tuple[float, bool]], wanted: list[tuple[float, bool]]) -> None:
    """Equal but for rounding."""
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    assert [one for one, _ in found] == pytest.approx([one for one, _ in wanted], abs=1e-4)


def loglikelihood(real: Serving, prompt: Any, starts: list[int]) -> list[tuple[float, bool]]:
    """The request that lm-eval makes."""
    body = {
        "model": "tiny", "prompt": prompt, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True,
    }  # fmt: skip
    reply = real.http.post("/v1/completions", json=body)
    assert reply.status_code == 200, reply.text
    return parsed(reply.json(), starts)


def test_its_requests_score_as_the_engine_does(real: Serving, engine: Engine) -> None:
    encode, before = engine.tokenizer.encode, list(engine.tokenizer.prefix)
    pairs = [(doc["context"], " " + choice) for doc in DOCS for choice in doc["choices"]]
    wanted = [(one.logprob, one.greedy) for one in asyncio.run(engine.score(pairs))]
    prompts = [before + encode(context + said) for context, said in pairs]
    starts = [len(before) + len(encode(context)) for context, _ in pairs]
    same(loglikelihood(real, prompts, starts), wanted)
    same(loglikelihood(real, prompts[0], starts[:1]), wanted[:1])
    texts = [context + said for context, said in pairs]  # as texts: the server begins them as the engine does
    same(loglikelihood(real, texts, starts), wanted)
    same(loglikelihood(real, texts[0], starts[:1]), wanted[:1])


def test_what_the_model_would_say_is_greedy(real: Serving, engine: Engine) -> None:
    prompt = engine.prompt_of("The night")
    (output,) = engine.generate([prompt], Sampling(max_tokens=4, temperature=0.0, ignore_eos=True))
    ids = list(output.ids)
    other = [*ids[:-1], (ids[-1] + 1) % engine.tokenizer.vocab]
    found = loglikelihood(real, [prompt + ids, prompt + other], [len(prompt)] * 2)
    assert [greedy for _, greedy in found] == [True, False]


def test_an_end_that_follows_is_a_token_of_its_own(real: Serving, engine: Engine) -> None:
    """lm-eval leaves out the last token, whatever it is: there must be one, also where the model ends at once."""
    body = {
        "model": "tiny", "prompt": "The night", "max_tokens": 1, "logprobs": 1, "echo": True,
        "logit_bias": {str(engine.tokenizer.stops[0]): 100},
    }  # fmt: skip
    choice = real.http.post("/v1/completions", json=body).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert len(choice["logprobs"]["token_logprobs"]) == len(engine.prompt_of("The night")) + 1


def test_a_chat_is_written_as_it_asks(real: Serving, engine: Engine) -> None:
    body = {
        "messages": [{"role": "user", "content": "The night", "type": "text"}], "model": "tiny", "max_tokens": 12,
        "temperature": 0, "stop": ["river", "<|eos|>"], "seed": 1234,
    }  # fmt: skip
    del body["messages"][0]["type"]  # type: ignore[index]  # the harness does, before it sends them
    reply = real.http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    (alone,) = engine.generate(
        [engine.prompt_of([Message.user("The night")])],
        Sampling(max_tokens=12, temperature=0.0, stop=("river", "<|eos|>")),
    )
    assert reply.json()["choices"][0]["message"]["content"] == alone.text


# -- the harness itself -----------------------------------------------------------------------------------------------


def run_harness(at: Path, model: str, arguments: dict[str, Any], task: str, *more: str) -> list[dict[str, Any]]:
    """Runs it offline; the samples, in their order."""
    assert HARNESS is not None
    data = at / "documents.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    for name, text in (("choices", CHOICES), ("writing", WRITING)):
        (at / f"{name}.yaml").write_text(text.format(data=data))
    done = subprocess.run(
        [
            HARNESS, "run", "--model", model, "--model_args", ",".join(f"{k}={v}" for k, v in arguments.items()),
            "--tasks", task, "--include_path", str(at), "--log_samples", "--output_path", str(at / "out"), *more,
        ],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(at / "home")},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    (samples,) = (at / "out").rglob(f"samples_{task}_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    return sorted(rows, key=lambda row: row["doc_id"])


def chosen(rows: list[dict[str, Any]], wanted: list[list[tuple[float, bool]]]) -> None:
    """Every choice of every document scored the same."""
    for row, scored in zip(rows, wanted, strict=True):
        same([(float(one), str(greedy) == "True") for one, greedy in row["filtered_resps"]], scored)


harness = pytest.mark.skipif(HARNESS is None, reason="needs lm-eval: LM_EVAL says where its program is")


@harness
@pytest.mark.soak
@pytest.mark.parametrize(("batch", "concurrent"), [(1, 1), (4, 1), (2, 3)])
def test_choices_as_ids(
    real: Serving, engine: Engine, folder: Path, tmp_path: Path, batch: int, concurrent: int
) -> None:
    arguments = {
        "model": "tiny", "base_url": f"{real.url}/v1/completions", "tokenizer": folder, "add_bos_token": True,
        "max_length": 1024, "num_concurrent": concurrent,
    }  # fmt: skip
    rows = run_harness(tmp_path, "local-completions", arguments, "openbook_choices", "--batch_size", str(batch))
    chosen(rows, scores(engine, begin=True))


@harness
@pytest.mark.soak
@pytest.mark.parametrize(("batch", "concurrent"), [(1, 1), (3, 2)])
def test_choices_as_texts(tmp_path: Path, batch: int, concurrent: int) -> None:
    """For a tokenizer that puts nothing before a text: the harness counts its own tokens, without a first one."""
    folder = write("byte_level", tmp_path / "plain")
    tokenizer = ob.Tokenizer.load(folder)
    save(make(spec_of("llama", SIZES | {"vocab": tokenizer.vocab}), 3), folder)
    with ob.Engine(ob.load(folder), tokenizer, memory="32MiB") as engine, serving_of({"tiny": engine}) as plain:
        arguments = {
            "model": "tiny", "base_url": f"{plain.url}/v1/completions", "tokenizer": folder, "max_length": 1024,
            "tokenized_requests": False, "num_concurrent": concurrent,
        }  # fmt: skip
        rows = run_harness(tmp_path, "local-completions", arguments, "openbook_choices", "--batch_size", str(batch))
        chosen(rows, scores(engine, begin=False))


@harness
@pytest.mark.soak
def test_chats_are_written(real: Serving, engine: Engine, tmp_path: Path) -> None:
    arguments = {"model": "tiny", "base_url": f"{real.url}/v1/chat/completions", "num_concurrent": 2}
    rows = run_harness(tmp_path, "local-chat-completions", arguments, "openbook_writing", "--apply_chat_template")
    asked = Sampling(max_tokens=12, temperature=0.0, stop=("\n", "river"))
    prompts = [engine.prompt_of([Message.user(doc["context"])]) for doc in DOCS]
    assert [row["resps"][0][0] for row in rows] == [one.text for one in engine.generate(prompts, asked)]


@harness
@pytest.mark.soak
def test_texts_are_written(real: Serving, engine: Engine, folder: Path, tmp_path: Path) -> None:
    arguments = {
        "model": "tiny", "base_url": f"{real.url}/v1/completions", "tokenizer": folder, "add_bos_token": True,
        "max_length": 1024, "num_concurrent": 1,
    }  # fmt: skip
    rows = run_harness(tmp_path, "local-completions", arguments, "openbook_writing", "--batch_size", "2")
    asked = Sampling(max_tokens=12, temperature=0.0, stop=("\n", "river"))
    prompts = [engine.prompt_of(doc["context"]) for doc in DOCS]
    assert [row["resps"][0][0] for row in rows] == [one.text for one in engine.generate(prompts, asked)]
