"""The test double, the protocols and the synchronous face."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys

import pytest

from openbook.chat import (
    Call,
    Chat,
    Complete,
    Delta,
    Embed,
    Message,
    Sampling,
    Score,
    Scripted,
    Tokenize,
    Tool,
    ToolCallPart,
    Usage,
    capabilities,
    collect,
    iterate,
    require,
    wait,
)
from openbook.errors import InputError, Refusal, UsageError

HELLO = [Message.user("hello")]


class TestReplies:
    def test_in_order(self) -> None:
        script = Scripted("one", ["t", "w", "o"], [])
        assert [wait(collect(script.chat(HELLO))).text for _ in range(3)] == ["one", "two", ""]
        with pytest.raises(InputError, match="has 3 replies"):
            wait(collect(script.chat(HELLO)))

    def test_in_pieces(self) -> None:
        script = Scripted(["a", "b"], [Delta(text="x"), Delta(tool_calls=(ToolCallPart(index=0, id="1", name="f"),))])
        deltas = list(iterate(script.complete("hm")))
        usage = Usage(prompt_tokens=2, completion_tokens=2)
        assert deltas == [Delta(text="a"), Delta(text="b", finish="stop", usage=usage)]
        assert wait(collect(script.chat(HELLO))).tool_calls[0].name == "f"

    def test_errors(self) -> None:
        script = Scripted(TimeoutError("slow"), ["a", "b", ConnectionError("gone")])
        with pytest.raises(TimeoutError, match="slow"):
            wait(collect(script.chat(HELLO)))
        stream = iterate(script.chat(HELLO))
        assert [next(stream).text, next(stream).text] == ["a", "b"]
        with pytest.raises(ConnectionError, match="gone"):
            next(stream)
        assert [call.ended for call in script.calls] == ["failed", "failed"]

    def test_functions(self) -> None:
        script = Scripted(lambda call: (call.messages[-1].content or "").upper(), lambda _: ValueError("no"))
        assert wait(collect(script.chat(HELLO))).text == "HELLO"
        with pytest.raises(ValueError, match="no"):
            wait(collect(script.chat(HELLO)))

    def test_calls_are_recorded(self) -> None:
        script = Scripted("a", "b")
        sampling, tool = Sampling(temperature=0.0), Tool(name="f")
        wait(collect(script.chat([{"role": "user", "content": "x"}], sampling, tools=[tool], trim=True)))
        wait(collect(script.complete("y")))
        first = Call("chat", (Message.user("x"),), sampling=sampling, tools=(tool,), trim=True, ended="done")
        assert script.calls == [first, Call("complete", prompt="y", ended="done")]


class TestTheRest:
    def test_vectors(self) -> None:
        script = Scripted()
        fox, same, other, nothing = wait(script.embed(["the red fox", "red fox the", "a cold night", ""]))
        assert fox == same
        assert all(math.isclose(sum(x * x for x in vector), 1.0) for vector in (fox, other, nothing))
        assert abs(sum(a * b for a, b in zip(fox, other, strict=True))) < 0.9

    def test_scores(self) -> None:
        assert [scored.logprob for scored in wait(Scripted().score([("a", "bc"), ("a", "é")]))] == [-2, -2]
        assert wait(Scripted(score=lambda context, _: len(context) / 2).score([("ab", "c")]))[0].logprob == 1.0

    def test_tokens(self) -> None:
        script = Scripted()
        assert wait(script.tokenize("é")) == [0xC3, 0xA9]
        assert wait(script.detokenize([0xC3, 0xA9, 0xFF])) == "é\ufffd"


class TestProtocols:
    def test_what_has_the_method_has_the_capability(self) -> None:
        script = Scripted()
        assert capabilities(script) == ("Chat", "Complete", "Embed", "Score", "Tokenize")
        for protocol in (Chat, Complete, Embed, Score, Tokenize):
            assert require(script, protocol) is script

    def test_what_lacks_it_refuses(self) -> None:
        class Parrot:
            def complete(self, prompt: str, sampling: Sampling = Sampling()) -> object:  # noqa: B008
                return iter((prompt, sampling))

        with pytest.raises(Refusal, match=r"Parrot cannot Chat\. It can: Complete\."):
            require(Parrot(), Chat)
        with pytest.raises(Refusal, match="It can: nothing"):
            require(object(), Embed)


class TestBlocking:
    def test_closing_early_closes_the_stream(self) -> None:
        script = Scripted(["a", "b", "c"])
        stream = iterate(script.chat(HELLO))
        assert next(stream).text == "a"
        stream.close()  # type: ignore[attr-defined]
        assert script.calls[0].ended == "closed"

    def test_leaving_an_async_loop_closes_the_stream(self) -> None:
        script = Scripted(["a", "b", "c"])

        async def leave() -> None:
            stream = script.chat(HELLO)
            async for _ in stream:
                break
            await stream.aclose()  # type: ignore[attr-defined]

        asyncio.run(leave())
        assert script.calls[0].ended == "closed"

    def test_not_inside_a_loop(self) -> None:
        async def inside() -> None:
            with pytest.raises(UsageError, match="event loop is running"):
                iterate(Scripted("a").chat(HELLO))
            with pytest.raises(UsageError, match="event loop is running"):
                wait(collect(Scripted("a").chat(HELLO)))

        asyncio.run(inside())


def test_the_waist_needs_no_torch() -> None:
    code = "import sys, openbook.chat; sys.exit('torch' in sys.modules or 'tokenizers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
