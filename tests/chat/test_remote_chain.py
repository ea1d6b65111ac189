"""Law: a remote endpoint is the endpoint behind it, over our own server, and over a server of a server."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from openbook.chat import (
    Answer,
    Call,
    Delta,
    Logprob,
    Message,
    Sampling,
    Scored,
    Scripted,
    Tool,
    ToolCallPart,
    ToolUse,
    Usage,
    collect,
    collect_all,
    iterate,
    wait,
)
from openbook.chat.local import Local
from openbook.chat.remote import Remote
from openbook.chat.wire.reply import Reply
from openbook.errors import Busy, InputError, RemoteError, TooLong
from openbook.generate.grammars import Choice, Schema
from openbook.models.make import make, spec_of
from openbook.serve.run import background
from openbook.serve.served import Served
from openbook.text.tokenizer import Tokenizer

HELLO = [Message.system("be brief"), Message.user("é🙂")]
TOOL = Tool(name="look", description="up", parameters={"type": "object"}, strict=True)


@dataclass
class Chain:
    """A script, a server of it, and a server of that server."""

    behind: Likely
    near: Remote
    far: Remote

    def says(self, *replies: Any) -> None:
        """What the script says next; nothing else is left of before."""
        self.behind.replies, self.behind._used = list(replies), 0
        self.behind.calls.clear()


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    """Both servers."""
    behind = Likely()
    with background([Served(name="m", endpoint=behind)]) as first:
        near = Remote(f"http://127.0.0.1:{first.port}", retries=0)
        with background([Served(name="m", endpoint=near)]) as second:
            yield Chain(behind, near, Remote(f"http://127.0.0.1:{second.port}", retries=0))


def logprob(token: str, value: float, *top: Logprob) -> Logprob:
    return Logprob(token=token, bytes=token.encode(), logprob=value, top=top)


def likely(call: Call) -> list[Any]:
    """Letters, each less likely than the one before; every other one the best. The prompt's too."""

    def one(place: int, letter: str) -> Logprob:
        best = logprob("?", -0.25) if place % 2 else logprob(letter, -place / 4)
        return logprob(letter, -place / 4, best)

    heard = (None, *(one(place, letter) for place, letter in enumerate(call.prompt) if place))
    said = [] if call.sampling.prompt_logprobs is None else [Delta(heard=heard)]
    return [*said, Delta(text="x" * min(1, call.sampling.max_tokens), finish="length", usage=Usage(prompt_tokens=3))]


class Likely(Scripted):
    """Scores what it hears as it says it."""

    async def score(self, pairs: Any) -> list[Scored]:
        """From the letters' own numbers."""
        found = []
        for context, said in pairs:
            places = range(len(context), len(context + said))
            total = sum(-place / 4 for place in places)
            found.append(Scored(logprob=total, tokens=len(said), greedy=all(place % 2 == 0 for place in places)))
        return found


REPLIES: list[Any] = [
    "one",
    ["wo", "rds é", "🙂"],
    [Delta(reasoning="hm"), Delta(text="so"), Delta(finish="length", usage=Usage(prompt_tokens=9, cached_tokens=4))],
    [
        Delta(tool_calls=(ToolCallPart(index=0, id="a", name="look"), ToolCallPart(index=1, id="b", name="look"))),
        Delta(tool_calls=(ToolCallPart(index=1, arguments="{}"), ToolCallPart(index=0, arguments='{"x":1}'))),
        Delta(finish="tool_calls"),
    ],
    [Delta(text="a", logprobs=(logprob("a", -1.5, logprob("b", -0.5), logprob("a", -1.5)),))],
    [Delta(choice=1, text="b"), Delta(text="a", finish="stop"), Delta(choice=1, finish="length")],
]
TEXTS = [REPLIES[0], REPLIES[1], REPLIES[4], REPLIES[5]]  # what a completion can hold


def differing(chain: Chain, remote: Remote) -> list[int]:
    """Which replies are not what the script itself gives."""
    sampling = Sampling(n=2, logprobs=2)
    chain.says(*REPLIES, *TEXTS)
    direct = Scripted(*REPLIES, *TEXTS)
    ours = [direct.chat(HELLO, sampling) for _ in REPLIES] + [direct.complete("é", sampling) for _ in TEXTS]
    theirs = [remote.chat(HELLO, sampling) for _ in REPLIES] + [remote.complete("é", sampling) for _ in TEXTS]
    pairs = [(wait(collect_all(one)), wait(collect_all(other))) for one, other in zip(ours, theirs, strict=True)]
    return [place for place, (one, other) in enumerate(pairs) if one != other]


def test_answers_are_those_of_the_endpoint_behind(chain: Chain) -> None:
    for remote in (chain.near, chain.far):
        assert differing(chain, remote) == []
        assert all(call.ended == "done" for call in chain.behind.calls)


@pytest.mark.parametrize("fault", ["_last", "_choice"])
def test_a_seeded_fault_is_found(chain: Chain, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held back for the usage is lost; all choices are taken for the first."""
    last, choice = Reply._last, Reply._choice
    broken = {"_last": lambda self: last(self)[1:], "_choice": lambda self, value: choice(self, {**value, "index": 0})}
    monkeypatch.setattr(Reply, fault, broken[fault])
    assert differing(chain, chain.near)


def test_what_is_asked_arrives(chain: Chain) -> None:
    sampling = Sampling(
        max_tokens=7, temperature=0.5, top_p=0.5, top_k=3, min_p=0.1, typical_p=0.8, repetition_penalty=1.1,
        presence_penalty=0.5, frequency_penalty=0.25, min_tokens=1, stop=("a", "b"), stop_ids=(5,), ignore_eos=True,
        seed=3, n=2, logprobs=1, logit_bias={1: 2.0, 2: -math.inf}, grammar=Schema.of({"type": "object"}),
    )  # fmt: skip
    use = ToolUse(mode="required", name="look", parallel=False)
    chain.says("a", "b", "c")
    wait(collect_all(chain.far.chat(HELLO, sampling, tools=[TOOL], use=use, variables={"think": False})))
    wait(collect_all(chain.far.complete([104, 105], replace(sampling, grammar=Choice(("a",)), banned=(9,)))))
    wait(collect(chain.far.chat(HELLO)))
    chat, complete, plain = chain.behind.calls
    assert chat.messages == tuple(HELLO)
    assert (chat.sampling, chat.tools, chat.use, chat.variables) == (sampling, (TOOL,), use, {"think": False})
    forbidden = {1: 2.0, 2: -math.inf, 9: -math.inf}
    assert complete.sampling == replace(sampling, grammar=Choice(("a",)), logit_bias=forbidden)
    assert complete.prompt == "hi"
    assert plain.sampling == Sampling()


def test_scores_vectors_and_tokens(chain: Chain) -> None:
    pairs = [("ab", "cd"), ("ab", "c"), ("abc", "d"), ("ab", "ü🙂")]
    asked = Sampling(prompt_logprobs=1, max_tokens=1)
    for remote in (chain.near, chain.far):
        chain.says(*[likely] * 20)
        assert wait(remote.score(pairs)) == wait(chain.behind.score(pairs))
        deltas = list(iterate(remote.complete("abc", asked)))
        assert deltas[0].heard == likely(Call("complete", prompt="abc", sampling=asked))[0].heard
        assert "".join(delta.text for delta in deltas) == "x"
        assert wait(remote.embed(["the red fox", "a"])) == wait(chain.behind.embed(["the red fox", "a"]))
        ids = wait(remote.tokenize("é🙂"))
        assert ids == wait(chain.behind.tokenize("é🙂"))
        assert wait(remote.detokenize(ids)) == "é🙂"


@pytest.mark.slow
def test_a_model_says_and_scores_the_same() -> None:
    """Bit for bit, where tokens span the border and characters span tokens too."""
    tokenizer = Tokenizer.train(["Once upon a time the cat sat on the mat. The dog was warm."] * 20, 300)
    sizes = {"vocab": tokenizer.vocab, "dim": 16, "layers": 1, "heads": 2, "hidden": 32, "context": 64}
    local = Local(make(spec_of("llama", sizes), 0), tokenizer)
    pairs = [("Once upon", " a time"), ("Once up", "on a time"), ("the ca", "t sat"), ("", "The dog"), ("é", "🙂ü")]
    with background([Served(name="m", endpoint=local)]) as server:
        remote = Remote(f"http://127.0.0.1:{server.port}")
        assert wait(remote.score(pairs)) == wait(local.score(pairs))
        asked = Sampling(max_tokens=9, seed=3, logprobs=2)
        for prompt in ("The cat", tokenizer.encode("The cat")):
            assert (
                wait(collect(remote.complete(prompt, asked))).text == wait(collect(local.complete(prompt, asked))).text
            )
        assert wait(collect(remote.chat(HELLO, asked))) == wait(collect(local.chat(HELLO, asked)))


@pytest.mark.parametrize("error", [TooLong("long"), InputError("`x` is wrong"), Busy("full", 7.0), RemoteError("lost")])
@pytest.mark.parametrize("before", [[], ["a "]])
def test_errors_are_those_of_the_endpoint_behind(chain: Chain, error: Exception, before: list[str]) -> None:
    """Before the first delta, and after it."""
    chain.says([*before, error])
    with pytest.raises(type(error), match=str(error)) as caught:
        wait(collect(chain.far.chat(HELLO)))
    if isinstance(caught.value, Busy) and not before:
        assert caught.value.retry_after == 7.0


def test_hanging_up_goes_through(chain: Chain) -> None:
    chain.says(["a", *["b"] * 1000])
    chain.behind.pace = 0.01
    stream = iterate(chain.far.chat(HELLO))
    assert next(stream).text == "a"
    stream.close()  # type: ignore[attr-defined]
    chain.behind.pace = 0.0
    end = time.monotonic() + 10
    while chain.behind.calls[0].ended is None and time.monotonic() < end:
        time.sleep(0.01)
    assert chain.behind.calls[0].ended == "closed"


def test_trim_goes_through(chain: Chain) -> None:
    def short(call: Call) -> Any:
        return TooLong("long") if len(call.messages) > 2 else "fits"

    talk = [Message.user("1"), Message.assistant("1"), Message.user("2"), Message.assistant("2"), Message.user("3")]
    chain.says(*[short] * 9)
    usage = Usage(prompt_tokens=1, completion_tokens=4)
    answer = wait(collect(chain.far.chat(talk, trim=True)))
    assert answer == Answer(text="fits", finish="stop", usage=usage, dropped=(0, 1, 2, 3))
