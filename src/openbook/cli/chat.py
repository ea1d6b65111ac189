"""`openbook chat DIR|URL`: talk with a model in the terminal, one in this process or one behind an address."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from openbook import log
from openbook.cli.loading import Machine, as_usage, load_both
from openbook.errors import OpenbookError, UsageError
from openbook.options import Positional, parse

if TYPE_CHECKING:
    from openbook.chat.remote import Remote
    from openbook.cli.dialogue import Dialogue
    from openbook.generate.sampling import Sampling
    from openbook.text.tokenizer import Tokenizer

KEY = "OPENBOOK_API_KEY"  # the variable that holds the key of an endpoint
KEYS = {"api.openai.com": "OPENAI_API_KEY"}  # and of those whose own clients look elsewhere
FOR_FOLDERS = ("device", "dtype", "threads", "context")
FOR_ADDRESSES = ("model", "key_env")


@dataclass(frozen=True, kw_only=True)
class Config(Machine):
    """Talk with a model. A model without roles in its chat template continues what you write, turn by turn."""

    dir: Positional[str]
    """Model folder, a name in the local Hugging Face cache, or the address of an endpoint: http://127.0.0.1:8000."""
    model: str | None = None
    """Of an endpoint: which of its models. Default: the only one."""
    key_env: str | None = None
    """Of an endpoint: the environment variable that holds its key. Default: OPENBOOK_API_KEY, if it is set."""
    system: str = ""
    """The system message."""
    temperature: float = 0.8
    """0 is greedy."""
    top_p: float = 0.95
    """Choose among the best that hold this share of the probability."""
    top_k: int = 0
    """Choose among the k best; 0: all."""
    max_tokens: int = 256
    """Tokens of an answer at most."""
    seed: int | None = None
    """Make the answers repeatable."""
    context: int | None = None
    """Tokens the model is shown at most. Default: what it was made for."""
    load: str | None = None
    """Go on with a conversation that was saved with /save."""


def main(args: Sequence[str], prog: str) -> int:
    """The verb."""
    config = parse(Config, args, prog=prog)
    remote = "://" in config.dir
    for name in FOR_FOLDERS if remote else FOR_ADDRESSES:
        if getattr(config, name) != Config.__dataclass_fields__[name].default:
            kind = "a folder, not of an address" if remote else "an address, not of a folder"
            raise UsageError(f"`{name}` is an option of {kind}: got {config.dir}.")
    from openbook.cli.dialogue import SETTINGS
    from openbook.generate.sampling import Sampling

    with as_usage():
        sampling = Sampling(**{name: getattr(config, name) for name in SETTINGS})
    dialogue = _far(config, sampling) if remote else _near(config, sampling)
    if config.load:
        dialogue.take(f"/load {config.load}")
    if sys.stdin.isatty():
        _greet(config.dir, dialogue.continues)
    return dialogue.run()


def _near(config: Config, sampling: Sampling) -> Dialogue:
    """With a model in this process."""
    from openbook.chat.local import Local
    from openbook.cli.dialogue import Dialogue

    if config.context is not None and config.context < 2:
        raise UsageError(f"`context` must be at least 2: got {config.context}.")
    model, tokenizer = load_both(config.dir, config)
    local = Local(model, tokenizer, context=config.context)
    continues = local.continues or only_continues(tokenizer)
    return Dialogue(local, sampling, system=config.system, name=config.dir, continues=continues)


def _far(config: Config, sampling: Sampling) -> Dialogue:
    """With a model behind an address; it need not be there yet."""
    from openbook.cli.dialogue import Dialogue

    return Dialogue(endpoint(config.dir, config.model, config.key_env), sampling, config.system, name=config.dir)


def endpoint(url: str, model: str | None, key_env: str | None, retries: int = 2) -> Remote:
    """The endpoint at `url`, its key from the environment: from `key_env`, or from where a key for it usually is."""
    from openbook.chat.remote import Remote
    from openbook.chat.wire.connection import base_of

    if key_env is not None and not os.environ.get(key_env):
        raise UsageError(f"`key_env` names the environment variable that holds the key: {key_env!r:.60} is not set.")
    with as_usage():
        host = urlsplit(base_of(url)).hostname or ""
        source = key_env or (KEY if os.environ.get(KEY) else KEYS.get(host, KEY))
        key = os.environ.get(source, "").strip() or None
        return Remote(url, model, key, key_from=f"the environment variable {source}", retries=retries)


def only_continues(tokenizer: Tokenizer) -> bool:
    """Whether the chat template only joins the messages, as that of a model that was never tuned to talk."""
    user, assistant = "\ue000", "\ue001"
    try:
        text = tokenizer.render_chat([{"role": "user", "content": user}, {"role": "assistant", "content": assistant}])
    except OpenbookError:
        return False
    begin = tokenizer.token(tokenizer.bos) if tokenizer.bos is not None else None
    return text.removeprefix(begin or "") == user + assistant


def _greet(name: str, continues: bool) -> None:
    how = (
        "It continues what you write, turn by turn; an empty line lets it go on." if continues else "Ask it something."
    )
    log.note(f"{name}. {how} /help lists commands, Ctrl-C stops an answer, Ctrl-D leaves.")
