"""Text to ids and back: training, loading, encoding, decoding, chat.

    text ──normalise──▶ ──split──▶ pieces ──vocabulary, merges──▶ ids            (the `tokenizers` library, Rust)
    ids  ──tokens──▶ bytes ──UTF-8──▶ text

Two promises hold for every tokenizer that can be loaded: `encode(text)` gives the ids that transformers gives without
special tokens, and text never becomes a special token unless the caller allows that token (see `sealed.py` for how).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from openbook.errors import InputError, OpenbookWarning, TokenizerError, nearest
from openbook.files import explain_os_error, write_atomic
from openbook.text.folder import Added, Settings, read_settings, tokenizer_file, write_settings
from openbook.text.sealed import Sealed

SPECIALS = ("<|bos|>", "<|eos|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")

# Where training splits text before it merges, so that no token crosses a word: contractions; a word with the one space
# or sign before it (marks belong to the letters they sit on); up to three digits; signs; line ends; runs of space.
SPLIT = (
    r"'(?i:s|t|re|ve|m|ll|d)(?!\p{L})"
    r"|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+"
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)

_ROLE_NAMES = {
    "bos": ("bos", "s", "startoftext", "beginoftext"),
    "eos": ("eos", "/s", "endoftext"),
    "pad": ("pad",),
    "unk": ("unk",),
    "mask": ("mask",),
}


class Tokenizer:
    """A vocabulary with its pipeline and its special tokens. Immutable; safe to use from several threads.

    bos, eos, pad, unk, mask   id of the token with that role, or None
    stops                      ids that end what a model says: eos, generation_config.json's list, the end of a chat turn
    specials                   all special tokens, content → id
    vocab                      how many rows an embedding needs: largest id + 1
    templates                  chat templates by name; the usual one is "default"
    """

    def __init__(self, backend: tokenizers.Tokenizer, settings: Settings | None = None, where: str = "") -> None:
        self._settings = settings or Settings()
        self._where = where
        self._backend = backend
        backend.no_truncation()
        backend.no_padding()
        _declare(backend, self._settings, where)
        entries = backend.get_vocab(with_added_tokens=True)
        if not entries:
            raise TokenizerError(f"The vocabulary is empty{_at(where)}. Fetch the file again, or train a tokenizer.")
        self.vocab: int = max(entries.values()) + 1
        self.specials: Mapping[str, int] = MappingProxyType(
            {token.content: number for number, token in backend.get_added_tokens_decoder().items() if token.special}
        )
        self.templates: Mapping[str, str] = MappingProxyType(dict(self._settings.templates))
        role = {name: backend.token_to_id(token.content) for name, token in self._settings.roles.items()}
        self.bos: int | None = role.get("bos")
        self.eos: int | None = role.get("eos")
        self.pad: int | None = role.get("pad")
        self.unk: int | None = role.get("unk", _model_unk(backend))
        self.mask: int | None = role.get("mask")
        self.sep: int | None = role.get("sep")
        self.cls: int | None = role.get("cls")
        self.prefix, self.suffix = self._around()
        self.stops: tuple[int, ...] = self._find_stops()

    # -- making one ---------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a Hugging Face folder with a tokenizer.json, or that file alone. TokenizerError when it cannot be used."""
        file = tokenizer_file(path)
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise TokenizerError(str(explain_os_error(error, file, "read"))) from error
        except UnicodeDecodeError as error:
            raise TokenizerError(f"'{file}' is not UTF-8 text (byte {error.start}): it is damaged. Fetch it again.") from error
        backend = _guarded(lambda: tokenizers.Tokenizer.from_str(text), f"'{file}' is damaged or not a tokenizer")
        return cls(backend, read_settings(file.parent), str(file))

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab: int,
        specials: Sequence[str] = SPECIALS,
        *,
        chat_template: str | None = None,
    ) -> Tokenizer:
        """Train byte-level BPE on `texts`: every string can be encoded, and decodes to itself.

        `vocab` ids at most, the 256 bytes and the `specials` among them (specials first, from id 0); a small text may
        give fewer. Roles are read off the names: `<|bos|>`, `<s>`, `[PAD]`, `<|endoftext|>` … Where `specials` holds
        `<|user|>`, `<|assistant|>`, `<|system|>` and `<|end|>`, the tokenizer gets Openbook's chat template unless
        another is given. The same texts give the same tokenizer.
        """
        smallest = 256 + len(set(specials))
        if vocab < smallest:
            raise TokenizerError(
                f"`vocab` is too small: got {vocab}, but 256 bytes and {len(set(specials))} special tokens need "
                f"{smallest}. Use {smallest} or more."
            )
        if "" in specials or len(set(specials)) != len(specials):
            raise TokenizerError(f"`specials` must be different, non-empty strings: got {list(specials)!r}.")
        backend = tokenizers.Tokenizer(models.BPE())
        split = pre_tokenizers.Split(tokenizers.Regex(SPLIT), behavior="isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab,
            min_frequency=2,
            special_tokens=list(specials),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        counter = _Counted(texts)
        backend.train_from_iterator(counter, trainer)
        if counter.characters == 0:
            raise TokenizerError("There is no text to train a tokenizer on: every document was empty. Give some text.")
        return cls(backend, Settings(roles=_roles_of(specials), templates=_default_templates(specials, chat_template)))

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json (and the stop ids into generation_config.json) to `folder`.

        transformers' AutoTokenizer loads it with the same ids and the same chat template. Other files there are kept.
        """
        folder = Path(folder)
        write_atomic(folder / "tokenizer.json", self._backend.to_str(pretty=True))
        roles = {name: token.content for name, token in self._settings.roles.items()}
        ids = {"bos_token_id": self.bos, "pad_token_id": self.pad}
        ends: dict[str, Any] = {key: number for key, number in ids.items() if number is not None}
        if self.stops:
            ends["eos_token_id"] = list(self.stops) if len(self.stops) > 1 else self.stops[0]
        write_settings(folder, self._settings.raw, roles, self.templates, ends)

    # -- text and ids -------------------------------------------------------------------------------------------------

    def encode(
        self, text: str, *, bos: bool = False, eos: bool = False, allow_specials: bool | Collection[str] = False
    ) -> list[int]:
        """Ids of `text`, with the bos id before and the eos id after where asked.

        The name of a special token in `text` is ordinary text, unless `allow_specials` is True (any of them) or names it.
        """
        before, after = self._ends(bos, eos)
        return before + self._plain(text, allow_specials) + after

    def encode_batch(
        self, texts: Sequence[str], *, bos: bool = False, eos: bool = False, allow_specials: bool | Collection[str] = False
    ) -> list[list[int]]:
        """`encode` of many texts, in parallel."""
        before, after = self._ends(bos, eos)
        checked = [_text(text) for text in texts]
        if allow_specials:
            return [before + self._plain(text, allow_specials) + after for text in checked]
        return [before + ids + after for ids in self._sealed.encode_batch(checked)]

    def prompt(self, text: str, *, allow_specials: bool | Collection[str] = False) -> list[int]:
        """Ids of `text` with what this tokenizer puts around a text: exactly transformers' `tokenizer(text).input_ids`.

        What is put around it are `prefix` and `suffix`: `add_bos_token`/`add_eos_token` of tokenizer_config.json where
        they are written, else the post-processor of tokenizer.json.
        """
        return [*self.prefix, *self._plain(text, allow_specials), *self.suffix]

    def decode(self, ids: Iterable[int], *, skip_specials: bool = True) -> str:
        """Text of `ids`. Bytes that are no UTF-8 become U+FFFD; ids that no token has (padded vocabularies) give nothing."""
        numbers = [int(number) for number in ids]
        if numbers and not (0 <= min(numbers) and max(numbers) < 2**32):
            raise InputError(f"Token ids must be from 0 to {self.vocab - 1}: got {min(numbers)} … {max(numbers)}.")
        text: str = self._backend.decode(numbers, skip_special_tokens=skip_specials)
        return text

    def token(self, number: int) -> str | None:
        """The vocabulary's spelling of an id (`Ġthe`, `▁the`, `##ing`, `<|end|>`), or None where there is none."""
        spelling: str | None = self._backend.id_to_token(number) if 0 <= number < self.vocab else None
        return spelling

    def token_id(self, spelling: str) -> int | None:
        """The id of the token that is spelled so in the vocabulary, or None."""
        number: int | None = self._backend.token_to_id(spelling)
        return number

    def check_fits(self, model_vocab: int) -> None:
        """Raise TokenizerError when this tokenizer has ids that a model with `model_vocab` rows does not have."""
        check_fits(self.vocab, model_vocab)

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that change when any text could get other ids, and not otherwise between runs and machines."""
        state = json.loads(self._backend.to_str())
        for inert in ("version", "truncation", "padding"):
            state.pop(inert, None)
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:32]

    def __repr__(self) -> str:
        return f"Tokenizer(vocab={self.vocab}, specials={len(self.specials)}{_at(self._where)})"

    def __len__(self) -> int:
        return self.vocab

    # -- inside -------------------------------------------------------------------------------------------------------

    @cached_property
    def _sealed(self) -> Sealed:
        return Sealed(self._backend, self.specials)

    def _plain(self, text: str, allow_specials: bool | Collection[str]) -> list[int]:
        text = _text(text)
        if allow_specials is True:
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
            return ids
        sealed = self._sealed
        if allow_specials:
            allowed = {allow_specials} if isinstance(allow_specials, str) else set(allow_specials)
            for name in sorted(allowed - self.specials.keys()):
                raise TokenizerError(f"{name!r} is not a special token of this tokenizer.{nearest(name, self.specials)}")
            text = sealed.reveal(text, allowed)
        return sealed.encode(text)

    def _ends(self, bos: bool, eos: bool) -> tuple[list[int], list[int]]:
        if (bos and self.bos is None) or (eos and self.eos is None):
            role = "bos" if bos and self.bos is None else "eos"
            raise TokenizerError(f"This tokenizer{_at(self._where)} has no {role} token: do not ask for `{role}=True`.")
        return [self.bos] if bos and self.bos is not None else [], [self.eos] if eos and self.eos is not None else []

    def _around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids put before and after a text by `prompt`."""
        if self._settings.add_bos is not None:
            return (
                (self.bos,) if self._settings.add_bos and self.bos is not None else (),
                (self.eos,) if self._settings.add_eos and self.eos is not None else (),
            )
        for probe in ("a", "A", "1", ".", "的"):
            encoding = self._backend.encode(probe)
            if 0 in encoding.special_tokens_mask:
                inner = encoding.special_tokens_mask
                first, last = inner.index(0), len(inner) - inner[::-1].index(0)
                return tuple(encoding.ids[:first]), tuple(encoding.ids[last:])
        return (), ()

    def _find_stops(self) -> tuple[int, ...]:
        found = list(self._settings.stops)
        if self.eos is not None and self.eos not in found:
            found.append(self.eos)
        return tuple(found)


def check_fits(tokenizer_vocab: int, model_vocab: int) -> None:
    """Raise TokenizerError when a tokenizer has ids for which a model has no row in its embedding."""
    if tokenizer_vocab > model_vocab:
        raise TokenizerError(
            f"The tokenizer does not fit the model: it has ids up to {tokenizer_vocab - 1}, the model has {model_vocab} "
            f"rows. Use the tokenizer this model was trained with, or a model with `vocab` of {tokenizer_vocab} or more."
        )


class _Counted:
    """An iterator over texts that counts their characters and names the one that is not text."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = iter(texts)
        self.characters = 0

    def __iter__(self) -> _Counted:
        return self

    def __next__(self) -> str:
        text = _text(next(self._texts))
        self.characters += len(text)
        return text


def _declare(backend: tokenizers.Tokenizer, settings: Settings, where: str) -> None:
    """Tell the backend of the tokens that the configuration names; flags come from the most specific place."""
    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    listed = {token.content: token for token in settings.added.values()}
    for number, token in sorted(settings.added.items()):
        given = _added_token(token)
        if token.content not in known or repr(known[token.content]) != repr(given):
            (backend.add_special_tokens if token.special else backend.add_tokens)([given])
        if (got := backend.token_to_id(token.content)) != number:
            raise TokenizerError(
                f"`added_tokens_decoder` gives {token.content!r} the id {number}, tokenizer.json gives it {got}{_at(where)}. "
                "The two files belong to different models: fetch both again."
            )
    for token in [*settings.roles.values(), *settings.extra]:
        named = listed.get(token.content)
        given = _added_token(named) if named else known.get(token.content, _added_token(token))
        given.special = True
        backend.add_special_tokens([given])


def _added_token(token: Added) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(
        token.content,
        special=token.special,
        normalized=token.normalized,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        single_word=token.single_word,
    )


def _model_unk(backend: tokenizers.Tokenizer) -> int | None:
    """The id of the vocabulary's own unknown token."""
    if isinstance(backend.model, models.Unigram):
        number: int | None = json.loads(backend.to_str())["model"].get("unk_id")
        return number
    spelling = backend.model.unk_token
    return None if spelling is None else backend.token_to_id(spelling)


def _roles_of(specials: Sequence[str]) -> dict[str, Added]:
    """Roles read off the names of special tokens: what is left of the name without brackets, bars and underscores."""
    bare = {content: "".join(c for c in content.lower() if c.isalnum() or c == "/") for content in specials}
    return {
        role: Added(content=content)
        for role, names in _ROLE_NAMES.items()
        for content in [next((content for content in specials if bare[content] in names), None)]
        if content is not None
    }


def _default_templates(specials: Sequence[str], chosen: str | None) -> dict[str, str]:
    return {"default": chosen} if chosen is not None else {}


def _text(value: str) -> str:
    """`value`, when it is text that has a UTF-8 form; else InputError."""
    if not isinstance(value, str):
        raise InputError(f"A text must be a string: got {type(value).__name__}.")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"The text holds half a character (U+{ord(value[error.start]):04X}, a lone surrogate, at position "
                f"{error.start}): it has no UTF-8 form. Repair it: text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')."
            ) from error
    return value


def _guarded(build: Callable[[], tokenizers.Tokenizer], what: str) -> tokenizers.Tokenizer:
    """Call into the Rust library and turn whatever it throws, panics included, into a TokenizerError."""
    try:
        return build()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in Rust arrives as a BaseException of its own
        raise TokenizerError(
            f"{what} ({str(error)[:200]}). It may be half written by an interrupted copy: fetch it again."
        ) from error


def _at(where: str) -> str:
    return f" ('{where}')" if where else ""
