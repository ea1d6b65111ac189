"""What a chunk of a stream holds, on request: whole words, or whole sentences. Nothing is lost and nothing changed."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

from openbook.chat import Delta

# Where a text may be cut: behind a word's space, and behind a sentence's end and its space.
ENDS = {
    "word": re.compile(r".*\s", re.DOTALL),
    "sentence": re.compile(r".*(?:[.!?…。！？][\"'”’)\]]*\s|\n)", re.DOTALL),
}


async def buffered(stream: AsyncIterator[Delta], unit: str) -> AsyncIterator[Delta]:
    """The deltas of `stream`, texts held until their `unit` is whole; all else comes at once."""
    held: dict[int, Delta] = {}
    async with aclosing(stream) as deltas:  # type: ignore[type-var]  # all of ours are generators
        async for delta in deltas:
            before = held.pop(delta.choice, None)
            if before is not None:
                delta = replace(delta, text=before.text + delta.text, logprobs=before.logprobs + delta.logprobs)
            whole = ENDS[unit].match(delta.text)
            if delta.finish or delta.tool_calls or delta.reasoning or delta.heard or delta.dropped or not delta.text:
                yield delta
            elif whole is None:
                held[delta.choice] = delta
            else:
                cut = whole.end()
                yield replace(delta, text=delta.text[:cut])
                if delta.text[cut:]:
                    held[delta.choice] = Delta(choice=delta.choice, text=delta.text[cut:])
    for delta in held.values():
        yield delta
