"""BERT's `vocab.txt`: a word piece on each line, its id the number of the line (Devlin et al. 2018).

How text is prepared stands in tokenizer_config.json (do_lower_case, strip_accents, tokenize_chinese_chars). Where it
does not say, a vocabulary without a single capital letter is for text in lower case: no other reading of text with
capitals would find its words in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from openbook.errors import TokenizerError
from openbook.text.folder import Added, Settings
from openbook.text.formats.found import Around, Asked, Found, State, added_tokens, damaged, read_text, state_of

_NAMES = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def read(path: Path, beside: Settings, asked: Asked) -> Found:
    """Read a vocab.txt."""
    lines = read_text(path).replace("\r\n", "\n").removesuffix("\n").split("\n")
    vocab = {token: number for number, token in enumerate(lines)}
    roles = {role: name for role, name in _NAMES.items() if name in vocab}
    roles |= {role: token.content for role, token in beside.roles.items()}
    if roles.get("unk") not in vocab:
        raise damaged(path, "it has no token for unknown words ([UNK], or `unk_token` of tokenizer_config.json)")
    lowercase = asked.lowercase if asked.lowercase is not None else beside.raw.get("do_lower_case")
    if lowercase is None:
        lowercase = not any(token != token.lower() for token in lines if token not in roles.values())
    accents, chinese = beside.raw.get("strip_accents"), beside.raw.get("tokenize_chinese_chars", True)
    for key, value in (("do_lower_case", lowercase), ("strip_accents", accents), ("tokenize_chinese_chars", chinese)):
        if not isinstance(value, bool) and (key != "strip_accents" or value is not None):
            raise TokenizerError(f"`{key}` must be true or false: got {value!r:.40} (beside '{path}'). Correct it.")
    specials = {name: vocab[name] for name in roles.values() if name in vocab}
    specials |= {token.content: number for number, token in beside.added.items()} | dict(asked.specials or {})
    described = {token.content: token for token in [*beside.roles.values(), *beside.added.values()]}
    state = pipeline(
        vocab,
        unk=roles["unk"],
        normalizer=bert_normalizer(lowercase=lowercase, strip_accents=accents, chinese=chinese),
        added=added_tokens(specials, described),
        around=around(specials, roles),
    )
    return Found(state=state, settings=Settings(roles={role: Added(content=name) for role, name in roles.items()}))


def bert_normalizer(*, lowercase: bool, strip_accents: bool | None, chinese: bool) -> State:
    """The preparation of BERT: no control characters, Chinese characters apart, lower case, no accents."""
    return {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": chinese,
        "strip_accents": strip_accents,
        "lowercase": lowercase,
    }


def around(specials: Mapping[str, int], roles: Mapping[str, str]) -> Around | None:
    """`cls` before a text and `sep` after it, where there are these tokens."""
    first, last = roles.get("cls"), roles.get("sep")
    if first is None or last is None or first not in specials or last not in specials:
        return None
    return Around(before={first: specials[first]}, after={last: specials[last]})


def pipeline(
    vocab: Mapping[str, int],
    *,
    unk: str,
    normalizer: State | None,
    added: list[State],
    around: Around | None,
    longest: int = 100,
    pre_tokenizer: State | None = None,
) -> State:
    """The state of a vocabulary of word pieces; a word of more than `longest` characters is unknown."""
    model = {
        "type": "WordPiece",
        "unk_token": unk,
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": longest,
        "vocab": dict(vocab),
    }
    return state_of(
        model,
        added=added,
        normalizer=normalizer,
        pre_tokenizer=pre_tokenizer or {"type": "BertPreTokenizer"},
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
        around=around,
    )
