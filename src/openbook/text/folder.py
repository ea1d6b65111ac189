"""A tokenizer's files, in the layout of the Hugging Face hub: what is read from a folder, and what is written to one.

`tokenizer.json` holds the vocabulary and the whole pipeline. The files beside it say what the tokens are for:

    tokenizer_config.json     bos_token …, added_tokens_decoder, chat_template (a string or a named list)
    special_tokens_map.json   the older place for the names of special tokens; tokenizer_config.json wins
    chat_template.jinja       the newer place for the chat template; it wins over tokenizer_config.json
    additional_chat_templates/*.jinja
    generation_config.json    eos_token_id: an id or a list, the ids that end a turn

A special token is written as a string or as an object with a `content`; both are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openbook.errors import OpenbookError, TokenizerError
from openbook.files import read_json, write_json

ROLES = ("bos", "eos", "pad", "unk", "mask", "sep", "cls")


@dataclass(frozen=True, kw_only=True)
class Added:
    """One added token as a configuration describes it."""

    content: str
    special: bool = True
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the files beside `tokenizer.json` say. `raw` keeps every key of tokenizer_config.json for saving."""

    roles: Mapping[str, Added] = field(default_factory=dict)  # "bos" … "cls", as far as named
    extra: tuple[Added, ...] = ()  # further special tokens
    added: Mapping[int, Added] = field(default_factory=dict)  # added_tokens_decoder
    templates: Mapping[str, str] = field(default_factory=dict)  # "default" and others
    stops: tuple[int, ...] = ()  # generation_config.json
    raw: Mapping[str, Any] = field(default_factory=dict)


def tokenizer_file(path: str | Path) -> Path:
    """The `tokenizer.json` that `path` (a folder, or the file itself) means; TokenizerError when there is none."""
    path = Path(path).expanduser()
    if path.is_file():
        if path.suffix != ".json":
            raise TokenizerError(
                f"'{path}' is not a tokenizer.json, nor one of the other layouts that are read: ranks of tiktoken, "
                "SentencePiece, GGUF, vocab.json with merges.txt, vocab.txt, tekken.json. Give one, or its folder."
            )
        return path
    if not path.is_dir():
        raise TokenizerError(f"There is no tokenizer at '{path}': no such file or folder. Check the path.")
    file = path / "tokenizer.json"
    if file.is_file():
        return file
    hint = "Copy tokenizer.json there, or train one with `openbook tokenizer train`."
    for other, reason in _UNREAD.items():
        if (path / other).is_file():
            hint = f"It has '{other}', but {reason}."
    raise TokenizerError(f"There is no tokenizer.json in '{path}'. {hint}")


_DAMAGED = "it is damaged or of another kind: fetch it again"
_UNREAD = {
    "vocab.json": "not the 'merges.txt' that belongs to it: copy it there",
    "tekken.json": _DAMAGED,
    "tokenizer.model": _DAMAGED,
    "spiece.model": _DAMAGED,
}


def read_settings(folder: Path) -> Settings:
    """Read what stands beside `tokenizer.json` in `folder`; every file may be missing, none may be damaged."""
    raw = _read_object(folder / "tokenizer_config.json")
    older = _read_object(folder / "special_tokens_map.json")
    where = str(folder / "tokenizer_config.json")
    named = {**older, **{key: value for key, value in raw.items() if value is not None}}
    roles = {role: token for role in ROLES if (token := _added(named.get(f"{role}_token"), f"{role}_token", where))}
    extra = _extra_tokens(named, where)
    added = {
        _integer(key, "added_tokens_decoder", where): token
        for key, value in _mapping(raw.get("added_tokens_decoder"), "added_tokens_decoder", where).items()
        if (token := _added(value, f"added_tokens_decoder[{key}]", where))
    }
    return Settings(
        roles=roles,
        extra=extra,
        added=added,
        templates=_templates(folder, raw, where),
        stops=_stops(folder / "generation_config.json"),
        raw=raw,
    )


def write_settings(
    folder: Path,
    raw: Mapping[str, Any],
    roles: Mapping[str, str],
    templates: Mapping[str, str],
    ends: Mapping[str, Any],
) -> None:
    """Write tokenizer_config.json, and put `ends` (eos_token_id …) into generation_config.json beside what it holds."""
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config.update({key: value for key, value in raw.items() if key not in ("chat_template", "added_tokens_decoder")})
    config.update({f"{role}_token": token for role, token in roles.items()})
    if set(templates) == {"default"}:
        config["chat_template"] = templates["default"]
    elif templates:
        config["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    write_json(folder / "tokenizer_config.json", config)
    (folder / "chat_template.jinja").unlink(missing_ok=True)  # one of an earlier tokenizer would win over this one's
    if ends:
        path = folder / "generation_config.json"
        write_json(path, {**_read_object(path), **ends})


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, or an empty one where there is no such file."""
    if not path.exists():
        return {}
    try:
        value = read_json(path)
    except OpenbookError as error:
        raise TokenizerError(str(error)) from error
    if not isinstance(value, dict):
        raise TokenizerError(f"'{path}' must hold a JSON object, got {type(value).__name__}. Fetch the file again.")
    return value


def _added(value: object, key: str, where: str) -> Added | None:
    """A special token given as a string or as an AddedToken object; None for null and the empty string."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return Added(content=value)
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        flags = {
            flag: value[flag]
            for flag in ("special", "normalized", "lstrip", "rstrip", "single_word")
            if isinstance(value.get(flag), bool)
        }
        return Added(content=value["content"], **flags) if value["content"] else None
    raise TokenizerError(
        f"`{key}` must be a string or an object with `content`: got {value!r:.80} ('{where}'). Correct it or remove it."
    )


def _extra_tokens(named: Mapping[str, Any], where: str) -> tuple[Added, ...]:
    """`additional_special_tokens` and `extra_special_tokens` (a list, or names to tokens)."""
    found: list[Added] = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        value = named.get(key) or []
        if not isinstance(value, list | dict):
            raise TokenizerError(f"`{key}` must be a list: got {value!r:.80} ('{where}'). Correct it or remove it.")
        members = value.values() if isinstance(value, dict) else value
        found.extend(token for member in members if (token := _added(member, key, where)))
    return tuple(found)


def _mapping(value: object, key: str, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise TokenizerError(f"`{key}` must be an object: got {value!r:.80} ('{where}'). Correct it or remove it.")
    return value


def _integer(value: object, key: str, where: str) -> int:
    try:
        number = int(str(value))
    except ValueError:
        number = -1
    if isinstance(value, bool) or number < 0:
        raise TokenizerError(f"`{key}` must hold token ids: got {value!r:.80} ('{where}'). Correct it or remove it.")
    return number


def _templates(folder: Path, raw: Mapping[str, Any], where: str) -> dict[str, str]:
    """All chat templates by name; the unnamed one is "default"."""
    value = raw.get("chat_template")
    templates: dict[str, str] = {}
    if isinstance(value, str):
        templates["default"] = value
    elif isinstance(value, dict) and all(isinstance(text, str) for text in value.values()):
        templates.update(value)
    elif isinstance(value, list):
        for entry in value:
            name, text = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
            if not isinstance(name, str) or not isinstance(text, str):
                raise TokenizerError(
                    f"`chat_template` needs `name` and `template` in each entry: got {entry!r:.80} ('{where}')."
                )
            templates[name] = text
    elif value is not None:
        raise TokenizerError(
            f"`chat_template` must be a string or a list of named templates: got {value!r:.80} ('{where}')."
        )
    files = {"default": folder / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    for name, path in files.items():
        if path.is_file():
            try:
                templates[name] = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise TokenizerError(
                    f"The chat template '{path}' cannot be read: {error}. Fetch the file again."
                ) from error
    return templates


def _stops(path: Path) -> tuple[int, ...]:
    value = _read_object(path).get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(dict.fromkeys(_integer(one, "eos_token_id", str(path)) for one in ids))
