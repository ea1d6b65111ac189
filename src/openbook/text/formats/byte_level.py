"""Byte-level vocabularies: a token is some bytes, written one character for each byte (Radford et al. 2019).

Here is how split patterns are written for the backend, and how the parts become a pipeline.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import tokenizers

from openbook.errors import TokenizerError
from openbook.text.engine import ALPHABET
from openbook.text.formats.found import Around, State, bpe, sequence, split, state_of
from openbook.text.split import WORDS

_COUNTED = re.compile(r"((?:\\[pP]\{[^}]*\}|\\.|\[(?:\\.|[^\]\\])*\]|[^\\()\[\]{}|?*+]))(\{\d+(?:,\d*)?\})\+")
_PIECES = re.compile(r"\\[pP]\{[^}]*\}|\\.|\[\^?\]?(?:\\.|\[[^\]]*\]|[^\]\\\[])*\]|.", re.DOTALL)


def spell(data: bytes) -> str:
    """`data` in the alphabet of byte-level vocabularies."""
    return "".join([ALPHABET[byte] for byte in data])


def translate(pattern: str, where: Path | str) -> str:
    """A pattern in tiktoken's syntax (Rust) as the backend's library (Oniguruma) understands it; TokenizerError.

    There `$` is the end of the text, here of a line; there `{1,3}+` gives nothing back, here it repeats.
    """
    counted = _COUNTED.sub(_kept, pattern)
    text = "".join({"$": r"\z", "^": r"\A"}.get(piece, piece) for piece in _PIECES.findall(counted))
    if "}+" in re.sub(r"\\[pP]\{[^}]*\}", "p", text):
        raise TokenizerError(
            f"The split pattern of '{where}' has a counted group that is followed by `+`: got {pattern!r:.200}. "
            "Write it as (?>…) instead."
        )
    try:
        tokenizers.Regex(text)
    except BaseException as error:  # a panic in Rust arrives as a BaseException of its own
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise TokenizerError(
            f"The split pattern of '{where}' is no regular expression: {error}. Got {pattern!r:.200}."
        ) from error
    return text


def _kept(match: re.Match[str]) -> str:
    """A counted group that gives nothing back; at the end of an alternative no group is asked to."""
    before = re.sub(r"\\.|\[(?:\\.|[^\]\\])*\]", "", match.string[: match.start()])
    last = match.string[match.end() :][:1] in ("", "|") and before.count("(") == before.count(")")
    return match[1] + match[2] if last else f"(?>{match[1]}{match[2]})"


def pipeline(
    vocab: Mapping[str, int],
    merges: Iterable[tuple[str, str]],
    *,
    patterns: Sequence[str] = (WORDS,),
    whole_first: bool = False,
    added: Sequence[State] = (),
    prefix_space: bool = False,
    around: Around | None = None,
) -> State:
    """The state of a byte-level vocabulary.

    patterns      each splits what the ones before it left
    added         tokens that are looked for in the text before; they are entries of `vocab` too
    prefix_space  a text that does not begin with a space is given one
    """
    plain = patterns == (WORDS,)  # GPT-2's, which the last step can do alone
    level = {"type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": True, "use_regex": plain}
    steps = [level] if plain else [*map(split, patterns), level]
    return state_of(
        bpe(vocab, merges, whole_first=whole_first),
        added=added,
        pre_tokenizer=sequence("pretokenizers", steps),
        decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        around=around,
    )
