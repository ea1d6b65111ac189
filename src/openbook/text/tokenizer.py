"""Text to ids and back: training, loading, encoding, decoding, chat.

    text ──normalise──▶ ──split──▶ pieces ──vocabulary, merges──▶ ids            (the `tokenizers` library, Rust)
    ids  ──tokens──▶ bytes ──UTF-8──▶ text

Two promises hold for every tokenizer that can be loaded: `encode(text)` gives the ids that transformers gives without
special tokens, and text never becomes a special token unless the caller allows that token (see `sealed.py` for how).
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenizers

from openbook.errors import InputError, TokenizerError, nearest
from openbook.files import explain_os_error, write_atomic
from openbook.text.algorithms.sampling import sample
from openbook.text.algorithms.whole import Whole
from openbook.text.backend import around, check_fits, declare, guarded, model_unk, place
from openbook.text.engine import Engine, Ids, Places
from openbook.text.folder import Settings, read_settings, tokenizer_file, write_settings
from openbook.text.formats import Asked
from openbook.text.formats import read as read_foreign
from openbook.text.sealed import Sealed, checked_text
from openbook.text.stream import Decoding
from openbook.text.template import CHAT_SPECIALS, CHAT_TEMPLATE, ChatTemplate, overlap
from openbook.text.training import LARGEST, Kind, roles_of, specials_for, train_backend


class Tokenizer:
    """A vocabulary with its pipeline and its special tokens. Immutable; safe to use from several threads.

    bos, eos, pad, unk, mask   id of the token with that role, or None
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
        declare(backend, self._settings, where)
        entries = backend.get_vocab(with_added_tokens=True)
        if not entries:
            raise TokenizerError(f"The vocabulary is empty{place(where)}. Fetch the file again, or train a tokenizer.")
        self.vocab: int = max(entries.values()) + 1
        if self.vocab > LARGEST:
            raise TokenizerError(f"A token has the id {self.vocab - 1}{place(where)}: {LARGEST} ids are the most.")
        self.specials: Mapping[str, int] = MappingProxyType(
            {token.content: number for number, token in backend.get_added_tokens_decoder().items() if token.special}
        )
        self.templates: Mapping[str, str] = MappingProxyType(dict(self._settings.templates))
        role = {name: backend.token_to_id(token.content) for name, token in self._settings.roles.items()}
        self.bos: int | None = role.get("bos")
        self.eos: int | None = role.get("eos")
        self.pad: int | None = role.get("pad")
        self.unk: int | None = role.get("unk", model_unk(backend))
        self.mask: int | None = role.get("mask")
        self.sep: int | None = role.get("sep")
        self.cls: int | None = role.get("cls")
        self.prefix, self.suffix = around(backend)
        self.decoding = Decoding(backend.decoder)
        self._compiled: dict[str, ChatTemplate] = {}
        self._seal: Sealed | None = None
        self._sealing = threading.Lock()

    # -- making one ---------------------------------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        pattern: str | None = None,
        specials: Mapping[str, int] | None = None,
        lowercase: bool | None = None,
    ) -> Tokenizer:
        """Read a Hugging Face folder with a tokenizer.json, or that file alone, or a vocabulary in an older layout.

        The other layouts are in `formats/`: tiktoken's ranks, vocab.json and merges.txt, vocab.txt, SentencePiece,
        tekken.json, GGUF. Where such a file does not say it: `pattern`, the regular expression that splits text;
        `specials`, content → id; `lowercase`, whether a vocab.txt is for lower case. TokenizerError: it cannot be used.
        """
        asked = Asked(pattern=pattern, specials=specials, lowercase=lowercase)
        if foreign := read_foreign(Path(path).expanduser(), asked):
            return cls(*foreign)
        file = tokenizer_file(path)
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise TokenizerError(str(explain_os_error(error, file, "read"))) from error
        except UnicodeDecodeError as error:
            raise TokenizerError(f"'{file}' is damaged: byte {error.start} is not UTF-8. Fetch it again.") from error
        backend = guarded(lambda: tokenizers.Tokenizer.from_str(text), f"'{file}' is damaged or not a tokenizer")
        return cls(backend, read_settings(file.parent), str(file))

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab: int,
        specials: Sequence[str] | None = None,
        *,
        kind: Kind = "bpe",
        chat_template: str | None = CHAT_TEMPLATE,
        closed: bool = False,
        lowercase: bool = False,
    ) -> Tokenizer:
        """Train a tokenizer on `texts`. Byte-level "bpe": every string can be encoded, and decodes to itself.

        `vocab` ids at most, the 256 bytes and the `specials` among them (specials first, from id 0; None: the usual
        ones of this kind); a small text may give fewer. "unigram" is lossless too, but for a ▁ in a text, which is read
        as a space; "wordpiece" reads text as BERT does, `lowercase` or not, and has no token for rare characters.

        Roles are read off the names: `<|bos|>`, `<s>`, `[PAD]`, `<|endoftext|>` … Openbook's own chat template is used
        where `specials` holds the tokens that it writes; None gives a tokenizer without one, as a model that only
        continues text should have. `closed` puts the end token after a text, as encoders read them ("wordpiece" always
        does). The same texts give the same tokenizer.
        """
        specials = specials_for(kind, specials)
        backend = train_backend(kind, texts, vocab, specials, closed=closed, lowercase=lowercase)
        usable = chat_template is not CHAT_TEMPLATE or set(CHAT_SPECIALS) <= set(specials)
        templates = {"default": chat_template} if chat_template is not None and usable else {}
        return cls(backend, Settings(roles=roles_of(specials), templates=templates))

    def with_chat_template(self, source: str | None) -> Tokenizer:
        """The same tokenizer with another chat template, or with none."""
        raw = {key: value for key, value in self._settings.raw.items() if key != "chat_template"}
        templates = {} if source is None else {"default": source}
        return Tokenizer(self._backend, replace(self._settings, templates=templates, raw=raw), self._where)

    def state(self) -> dict[str, Any]:
        """The content of tokenizer.json."""
        content: dict[str, Any] = json.loads(self._backend.to_str())
        return content

    def with_state(self, state: Mapping[str, Any], ids: Mapping[int, int]) -> Tokenizer:
        """The same roles and templates over another tokenizer.json; `ids` says what became of the ids."""
        text = json.dumps(state)
        backend = guarded(lambda: tokenizers.Tokenizer.from_str(text), "The changed tokenizer is damaged")
        raw = {key: value for key, value in self._settings.raw.items() if key != "added_tokens_decoder"}
        stops = tuple(ids[number] for number in self._settings.stops if number in ids)
        return Tokenizer(backend, replace(self._settings, added={}, stops=stops, raw=raw))

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

        The name of a special token in `text` is plain text, unless `allow_specials` is True (all of them) or names it.
        """
        before, after = self._ends(bos, eos)
        return before + self._plain(text, allow_specials) + after

    def encode_batch(
        self,
        texts: Sequence[str],
        *,
        bos: bool = False,
        eos: bool = False,
        allow_specials: bool | Collection[str] = False,
    ) -> list[list[int]]:
        """`encode` of many texts, in parallel."""
        before, after = self._ends(bos, eos)
        checked = [checked_text(text) for text in texts]
        if allow_specials:
            return [before + self._plain(text, allow_specials) + after for text in checked]
        return [before + ids + after for ids in self._sealed.encode_batch(checked)]

    def encode_arrays(self, texts: Sequence[str]) -> tuple[Ids, Places]:
        """The ids that `encode_batch` gives, of all `texts` one after the other, and where those of each begin.

        [number of ids] uint32 and [number of texts + 1] int64, the last of which is the number of ids.
        """
        return self._sealed.encode_arrays([checked_text(text) for text in texts])

    def sample(
        self, text: str, *, dropout: float | None = None, alpha: float | None = None, seed: int = 0
    ) -> list[int]:
        """Ids of `text` cut in another way than the best one, drawn from `seed`: see algorithms/sampling.py.

        `dropout` is for BPE vocabularies (0: as `encode`, 1: bytes), `alpha` for Unigram ones (0: all ways are equal).
        The ids decode to what `encode`'s decode to; special tokens in `text` are text.
        """
        return sample(self.whole, checked_text(text), dropout, alpha, seed)

    def prompt(self, text: str, *, allow_specials: bool | Collection[str] = False) -> list[int]:
        """Ids of `text` with what this tokenizer puts around a text: exactly transformers' `tokenizer(text).input_ids`.

        What is put around it are `prefix` and `suffix`, from the post-processor of tokenizer.json. (`add_bos_token` in
        tokenizer_config.json is an instruction for making that file; where the file exists, it has the last word.)
        """
        return [*self.prefix, *self._plain(text, allow_specials), *self.suffix]

    def decode(self, ids: Iterable[int], *, skip_specials: bool = True) -> str:
        """Text of `ids`. Bytes that are no UTF-8 become U+FFFD; ids without a token (padded models) give nothing."""
        numbers = [int(number) for number in ids]
        if numbers and (min(numbers) < 0 or max(numbers) >= 2**32):
            raise InputError(f"Token ids must be from 0 to {self.vocab - 1}: got {min(numbers)} … {max(numbers)}.")
        text: str = self._backend.decode(numbers, skip_special_tokens=skip_specials)
        return text

    def token_bytes(self, number: int) -> bytes:
        """The bytes that an id adds to a text in which something stands before it; none where there is no such token.

        In byte-level vocabularies the bytes of ids, joined, are exactly the bytes of their text.
        """
        spelling = self.token(number)
        return b"" if spelling is None else self.decoding.bytes(spelling)

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
    def stops(self) -> tuple[int, ...]:
        """Ids that end what a model says: the eos token, and eos_token_id of generation_config.json or, where that is
        missing, the special token that ends the assistant's turn in the chat template."""
        found = [*self._settings.stops] + ([] if self.eos is None else [self.eos])
        if not self._settings.stops and "default" in self.templates:
            with suppress(TokenizerError):  # a template that does not compile is an error of `chat`, not of this
                end = self._template(None).turn_end
                found += [] if end is None else [self.specials[end]]
        return tuple(dict.fromkeys(found))

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that change when any text could get other ids, and not otherwise between runs and machines."""
        state = self.state()
        for inert in ("version", "truncation", "padding"):
            state.pop(inert, None)
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:32]

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[Any, ...]]:
        return Tokenizer, (self._backend, self._settings, self._where)

    def __repr__(self) -> str:
        return f"Tokenizer(vocab={self.vocab}, specials={len(self.specials)}{place(self._where)})"

    def __len__(self) -> int:
        return self.vocab

    # -- chat ---------------------------------------------------------------------------------------------------------

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool | str = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> list[int]:
        """Ids of a conversation in this tokenizer's chat template, ready for the assistant's next turn.

        messages                 objects with `role` and `content`, and what else the template reads
        continue_final_message   instead of the next turn's beginning: end within the last message, after its content,
                                 or after the field named so
        tools                    JSON schemas of functions; the template named "tool_use" is used where there is one
        variables                what else the template reads, such as enable_thinking=False

        Whatever the messages contain, only the template writes special tokens. InputError when the template refuses
        the messages; TokenizerError when there is no template or it is damaged or hostile.
        """
        begins = add_generation_prompt and not continue_final_message
        variables |= {"add_generation_prompt": begins, "tools": tools}
        template = self._template(tools)
        return self._sealed.encode(template.render(messages, variables, continue_final_message=continue_final_message))

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool | str = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The text that `chat` encodes, for people to read: in it special tokens look like any text with their name."""
        begins = add_generation_prompt and not continue_final_message
        variables |= {"add_generation_prompt": begins, "tools": tools}
        template = self._template(tools)
        return self._sealed.conceal(template.render(messages, variables, continue_final_message=continue_final_message))

    def chat_ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> tuple[list[int], list[bool]]:
        """Ids of a whole conversation, and for each whether a model should learn to say it.

        True where the template marks it with `{% generation %}`; in a template without marks, for what each assistant
        message brings into the text and for the token that ends its turn.
        """
        text, learned = self._template(tools).render_learned(messages, {**variables, "tools": tools})
        ids, spans = self._sealed.encode_spans(text)
        return ids, overlap(spans, learned)

    def _template(self, tools: object) -> ChatTemplate:
        if not self.templates:
            raise TokenizerError(
                f"This tokenizer{place(self._where)} has no chat template: its model continues text. Encode text with "
                "`encode`, or give it a template with `with_chat_template`."
            )
        name = "tool_use" if tools is not None and "tool_use" in self.templates else "default"
        if name not in self.templates:
            known = nearest(name, self.templates)
            raise TokenizerError(f"This tokenizer{place(self._where)} has no default chat template.{known}")
        if name not in self._compiled:
            roles = {f"{role}_token": token.content for role, token in self._settings.roles.items()}
            called = f"The chat template {'' if name == 'default' else repr(name)}".rstrip() + place(self._where)
            self._compiled[name] = ChatTemplate(self.templates[name], self._sealed, roles, called)
        return self._compiled[name]

    # -- inside -------------------------------------------------------------------------------------------------------

    @property
    def _sealed(self) -> Sealed:
        """Made once whatever the threads: a template that was compiled for one has the secret names of that one."""
        if self._seal is None:
            with self._sealing:
                self._seal = self._seal or Sealed(self._backend, self.specials)
        return self._seal

    @cached_property
    def _open(self) -> Engine:
        return Engine(self._backend)  # text that may name any special token

    @cached_property
    def whole(self) -> Whole:
        """How a text is split into words, and the algorithm that cuts them; no text is a special token there."""
        return Whole(self._sealed.twin)

    def _plain(self, text: str, allow_specials: bool | Collection[str]) -> list[int]:
        text = checked_text(text)
        if allow_specials is True:
            return self._open.encode(text)
        sealed = self._sealed
        if allow_specials:
            allowed = {allow_specials} if isinstance(allow_specials, str) else set(allow_specials)
            for name in sorted(allowed - self.specials.keys()):
                hint = nearest(name, self.specials)
                raise TokenizerError(f"{name!r} is not a special token of this tokenizer.{hint}")
            text = sealed.reveal(text, allowed)
        return sealed.encode(text)

    def _ends(self, bos: bool, eos: bool) -> tuple[list[int], list[int]]:
        if (bos and self.bos is None) or (eos and self.eos is None):
            role = "bos" if bos and self.bos is None else "eos"
            raise TokenizerError(
                f"This tokenizer{place(self._where)} has no {role} token: do not ask for `{role}=True`."
            )
        return [self.bos] if bos and self.bos is not None else [], [self.eos] if eos and self.eos is not None else []
