"""`openbook chat DIR`: talk with a model in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from openbook import log
from openbook.cli.loading import Machine, as_usage, load_both
from openbook.errors import OpenbookError, Refusal, UsageError
from openbook.options import Positional, parse

if TYPE_CHECKING:
    from openbook.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Config(Machine):
    """Talk with a model. A model without roles in its chat template continues what you write, turn by turn."""

    dir: Positional[str]
    """Model folder, or a name in the local Hugging Face cache."""
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
    if "://" in config.dir:
        raise Refusal(f"'{config.dir}' is an address, and this version talks with models in folders only.")
    from openbook.chat.local import Local
    from openbook.cli.dialogue import SETTINGS, Dialogue
    from openbook.generate.sampling import Sampling

    with as_usage():
        sampling = Sampling(**{name: getattr(config, name) for name in SETTINGS})
    if config.context is not None and config.context < 2:
        raise UsageError(f"`context` must be at least 2: got {config.context}.")
    model, tokenizer = load_both(config.dir, config)
    local = Local(model, tokenizer, context=config.context)
    dialogue = Dialogue(
        local, sampling, system=config.system, name=config.dir, continues=local.continues or only_continues(tokenizer)
    )
    if config.load:
        dialogue.take(f"/load {config.load}")
    if sys.stdin.isatty():
        _greet(config.dir, dialogue.continues)
    return dialogue.run()


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
