"""GPT-2's pair of files: `vocab.json` (token → id) and `merges.txt` (a pair on each line, the first merged first).

They are also published as `encoder.json` and `vocab.bpe`. Entries that no merge makes and that stand in brackets are
the special tokens. Where there are a `<s>`, a `</s>` and a `<mask>`, or the configuration names `cls` and `sep`, the
files are an encoder's, as RoBERTa's: those two stand around a text.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex, pre_tokenizers

from openbook.errors import OpenbookWarning, TokenizerError
from openbook.text.engine import ALPHABET
from openbook.text.folder import Added, Settings
from openbook.text.formats import byte_level
from openbook.text.formats.found import Around, Asked, Found, added_tokens, damaged, read_text
from openbook.text.split import WORDS
from openbook.text.training import roles_of

_SIBLINGS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
_BRACKETS = {"<": ">", "[": "]"}


def pair_of(file: Path) -> tuple[Path, Path] | None:
    """The two files, where `file` is one of them by its name and the other lies beside it."""
    for vocab, merges in _SIBLINGS:
        for this, other in ((vocab, merges), (merges, vocab)):
            if file.name.endswith(this) and (mate := file.with_name(file.name.removesuffix(this) + other)).is_file():
                return (file, mate) if this == vocab else (mate, file)
    return None


def read(files: tuple[Path, Path], beside: Settings, asked: Asked) -> Found:
    """Read the pair."""
    vocab = _vocab(files[0])
    merges = _merges(files[1], vocab)
    _check_alphabet(vocab, merges, files[0])
    made = {left + right for left, right in merges}
    if asked.pattern is None:
        _check_words(made, files[0])
    specials = _specials(vocab, made, beside, asked)
    roles = roles_of(list(specials))
    named = {
        **{role: token.content for role, token in roles.items()},
        **{r: t.content for r, t in beside.roles.items()},
    }
    around = _encoder(named, specials)
    if around is not None:
        roles = roles | {
            "cls": Added(content=next(iter(around.before))),
            "sep": Added(content=next(iter(around.after))),
        }
    described = [*beside.extra, *beside.roles.values(), *beside.added.values()]
    patterns = (WORDS if asked.pattern is None else byte_level.translate(asked.pattern, files[0]),)
    state = byte_level.pipeline(
        vocab | specials,
        merges,
        patterns=patterns,
        added=added_tokens(specials, {token.content: token for token in described}),
        prefix_space=beside.raw.get("add_prefix_space") is True,
        around=around,
    )
    return Found(state=state, settings=Settings(roles=roles))


def _vocab(path: Path) -> dict[str, int]:
    try:
        value: Any = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise damaged(path, f"it is not JSON ({error})") from error
    if not isinstance(value, dict) or not all(
        type(number) is int and 0 <= number < 1 << 31 for number in value.values()
    ):
        raise damaged(path, "it must be an object of tokens and their ids")
    if len(set(value.values())) < len(value):
        raise damaged(path, "two tokens have the same id")
    return value


def _merges(path: Path, vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    merges: dict[tuple[str, str], None] = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise damaged(path, f"line {number} is not a pair of tokens: {line[:60]!r}")
        for token in (left, right, left + right):
            if token not in vocab:
                raise damaged(path, f"line {number} has {token!r:.60}, which is no token of the vocabulary beside it")
        merges.setdefault((left, right))
    return list(merges)


def _check_alphabet(vocab: Mapping[str, int], merges: list[tuple[str, str]], path: Path) -> None:
    """TokenizerError when the tokens are not bytes; a warning when some bytes have no token."""
    alphabet = set(ALPHABET)
    bytewise = all(alphabet.issuperset(left + right) and not right.endswith("</w>") for left, right in merges)
    if not merges or not bytewise:
        raise TokenizerError(
            f"'{path}' is not a byte-level vocabulary, and its layout is not read here. Load it with the library that "
            "made it and save a tokenizer.json."
        )
    if missing := alphabet - vocab.keys():
        warnings.warn(
            f"{len(missing)} of the 256 bytes have no token in '{path}': what is written with them is left out.",
            OpenbookWarning,
            stacklevel=2,
        )


def _specials(vocab: Mapping[str, int], made: set[str], beside: Settings, asked: Asked) -> dict[str, int]:
    alphabet = set(ALPHABET)
    found = {
        token: number
        for token, number in vocab.items()
        if len(token) > 2 and token not in made and token not in alphabet and _BRACKETS.get(token[0]) == token[-1]
    }
    found |= {token.content: number for number, token in beside.added.items()}
    return found | dict(asked.specials or {})


def _encoder(named: Mapping[str, str], specials: Mapping[str, int]) -> Around | None:
    first, last = named.get("cls"), named.get("sep")
    if first is None and last is None and {"<s>", "</s>", "<mask>"} <= specials.keys():
        first, last = "<s>", "</s>"
    if first is None or last is None or first not in specials or last not in specials:
        return None
    end = {last: specials[last]}
    return Around(before={first: specials[first]}, after=end, between=end)


def _check_words(made: set[str], path: Path) -> None:
    """TokenizerError when the vocabulary was trained with another split pattern than GPT-2's.

    Its tokens then reach across the words of that pattern, and would never be made.
    """
    back = {character: byte for byte, character in enumerate(ALPHABET)}
    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    texts = []
    for token in sorted(made)[:: max(1, len(made) // 5000)]:
        try:
            texts.append(bytes(back[character] for character in token).decode("utf-8"))
        except (KeyError, UnicodeDecodeError):
            continue
    across = [text for text in texts if len(words.pre_tokenize_str(text)) > 1]
    if len(across) > max(2, len(texts) // 100):
        raise TokenizerError(
            f"The vocabulary in '{path}' was not made with GPT-2's split pattern: tokens like {across[0]!r} reach "
            "across its words. These files do not say which one it was: give `pattern=`, or take the tokenizer.json."
        )
