"""`openbook generate DIR --prompt TEXT`: continue prompts."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openbook.cli.filling import filled, refuse_others
from openbook.cli.loading import Machine, as_usage, load_both
from openbook.errors import InputError, UsageError
from openbook.options import Positional, Repeated, parse

if TYPE_CHECKING:
    from openbook.chat.prompts import Prompts
    from openbook.generate.grammars import Grammar
    from openbook.generate.sampling import Sampling
    from openbook.nn.model import LanguageModel
    from openbook.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How tokens are chosen."""

    max_tokens: int = 256
    """Tokens to write at most."""
    temperature: float | None = None
    """0 is greedy. Default: 1; with beams or masks 0."""
    top_k: int = 0
    """Choose among the k best; 0: all."""
    top_p: float = 1.0
    """Choose among the best that hold this share of the probability."""
    min_p: float = 0.0
    """Choose among those at least this probable, relative to the best."""
    typical_p: float = 1.0
    """Choose among the most typical that hold this share."""
    repetition_penalty: float = 1.0
    """Above 1: less of what is there already."""
    presence_penalty: float = 0.0
    """Subtracted from what was written already."""
    frequency_penalty: float = 0.0
    """Subtracted as often as it was written."""
    no_repeat_ngram: int = 0
    """No sequence of this many tokens twice; 0: off."""
    seed: int | None = None
    """The same seed gives the same text. Default: a new one every time."""
    stop: Repeated[tuple[str, ...]] = ()
    """End before this text."""
    beams: int = 1
    """Above 1: beam search instead of drawing."""
    length_penalty: float = 1.0
    """Of beam search."""
    n: int = 1
    """Continuations per prompt."""

    def given(self) -> dict[str, Any]:
        """These choices by name."""
        return {field.name: getattr(self, field.name) for field in fields(Drawing)}

    def sampling(self, **more: Any) -> Sampling:
        """These choices as the library's value, with `more` of its fields."""
        from openbook.generate.sampling import Sampling

        usual = 1.0 if self.beams == 1 else 0.0
        temperature = usual if self.temperature is None else self.temperature
        with as_usage():
            return Sampling(**{**self.given(), "temperature": temperature}, **more)


@dataclass(frozen=True, kw_only=True)
class Config(Drawing, Machine):
    """Continue prompts with a model, or fill their masks. Without --prompt, standard input is the prompt."""

    dir: Positional[str]
    """Model folder, or a name in the local Hugging Face cache."""
    prompt: Repeated[tuple[str, ...]] = ()
    """Text to continue; may be given several times."""
    logprobs: int | None = None
    """With --json: log-probabilities of the output, and of this many alternatives."""
    batch: Path | None = None
    """A JSONL file of requests, run together: `prompt` or `messages`, and options of its own on each line."""
    out: Path | None = None
    """With --batch: where the answers go, a line each; what is there already is not done again."""
    quantize: str | None = None
    """int8: matrices in int8 where they stand it."""
    adapter: Repeated[tuple[str, ...]] = ()
    """With --batch: NAME=DIR, a LoRA folder that lines may ask for by name; may be given several times."""
    memory: str | None = None
    """With --batch: for keys and values, such as 2GiB. Default: a share of what is free."""
    speculation: str | None = None
    """With --batch: lookup drafts tokens from the text itself."""
    schema: str | None = None
    """The output is a JSON document of this JSON schema: a file, or the schema itself."""
    regex: str | None = None
    """The output matches this regular expression."""
    choice: Repeated[tuple[str, ...]] = ()
    """The output is this text; given several times, one of them."""
    cached: bool = True
    """Off: the slow reference, a full forward pass for every token."""
    json: bool = False
    """Print one JSON object instead of text."""


def main(args: Sequence[str], prog: str) -> int:
    """The verb."""
    config = parse(Config, args, prog=prog)
    check(config)
    if config.batch is not None:
        return _batch(config)
    prompts = config.prompt or _from_standard_input()
    if config.logprobs is not None and not config.json:
        raise UsageError("--logprobs needs --json: there is no place for numbers in plain text.")
    sampling = config.sampling(logprobs=config.logprobs, grammar=grammar_of(config))
    model, tokenizer = load_both(config.dir, config, config.quantize)
    if not model.spec.causal and model.spec.source is None:
        _fill(model, tokenizer, list(prompts), config)
        return 0
    from openbook.chat.prompts import Prompts

    work = Prompts(model, tokenizer, list(prompts), sampling, config.cached)
    if config.json:
        _print_json(config.dir, _records(work))
    elif len(prompts) == 1 and sampling.n == 1 and sampling.beams == 1:
        _stream(work, _write)
        print()
    else:
        print("\n\n".join(_texts(work)))
    return 0


def check(config: Config) -> None:
    """Options that do not go together, and values that there are not."""
    if config.batch is None:
        for name in ("out", "adapter", "memory", "speculation"):
            if getattr(config, name):
                raise UsageError(f"--{name} is for --batch FILE.jsonl.")
    elif config.prompt:
        raise UsageError("Give --prompt or --batch, one of them: the prompts of a batch are in its file.")
    elif not config.cached or config.json:
        raise UsageError("--batch writes JSON lines and has no slow reference: leave out --json and --no-cached.")
    if config.speculation not in (None, "lookup"):
        raise UsageError(f"--speculation is lookup: got '{config.speculation}'.")
    from openbook.cli.loading import FORMATS

    if config.quantize is not None and config.quantize not in FORMATS:
        raise UsageError(f"--quantize is {' or '.join(FORMATS)}: got '{config.quantize}'.")
    if sum(map(bool, (config.schema, config.regex, config.choice))) > 1:
        raise UsageError("Give one of --schema, --regex and --choice.")


def grammar_of(config: Config) -> Grammar | None:
    """What the output must be, if anything."""
    if config.schema is not None:
        written = config.schema
        text = written if written.lstrip().startswith("{") else Path(written).read_text(encoding="utf-8")
    from openbook.generate import grammars

    with as_usage():
        if config.schema is not None:
            return grammars.Schema(text)
        if config.regex is not None:
            return grammars.Regex(config.regex)
        return grammars.Choice(config.choice) if config.choice else None


def _batch(config: Config) -> int:
    adapters = {}
    for word in config.adapter:
        name, equals, folder = word.partition("=")
        if not (name and equals and folder) or name in adapters:
            raise UsageError(f"--adapter is NAME=DIR, each name once: got '{word}'.")
        adapters[name] = folder
    assert config.batch is not None
    if not config.batch.is_file():
        raise UsageError(f"--batch is a file of JSON lines: there is none at '{config.batch}'.")
    sampling = config.sampling(logprobs=config.logprobs, grammar=grammar_of(config))
    model, tokenizer = load_both(config.dir, config, config.quantize)
    from openbook.chat.engine import Engine
    from openbook.cli import batch
    from openbook.generate.memory import memory_for
    from openbook.generate.settings import Settings

    with as_usage():
        memory = memory_for(config.memory)
    settings = Settings(speculation=config.speculation)
    with Engine(model, tokenizer, memory=memory, settings=settings, adapters=adapters) as engine:
        return batch.run(engine, config.batch, config.out, sampling)


def _fill(model: LanguageModel, tokenizer: Tokenizer, prompts: list[str], config: Config) -> None:
    refuse_others(config.given(), Drawing().given())
    if config.logprobs is not None or not config.cached:
        raise UsageError("--logprobs and --no-cached have no meaning for a model that fills masks.")
    records = filled(model, tokenizer, prompts, config.temperature or 0.0, config.seed)
    if config.json:
        _print_json(config.dir, records)
    else:
        print("\n\n".join(record["text"] for record in records))


def _print_json(name: str, records: Iterable[dict[str, Any]]) -> None:
    print(json.dumps({"model": name, "generations": list(records)}, indent=2, ensure_ascii=False))


def _from_standard_input() -> tuple[str, ...]:
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("There is no prompt: give --prompt TEXT, or pipe one in.")
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"Standard input is not UTF-8 text (byte {error.start}).") from error
    return (text.removesuffix("\n"),)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _stream(work: Prompts, write: Callable[[str], None]) -> None:
    """Write the one prompt and its continuation as it comes."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    tokens = work.tokens([])  # complains before anything is written
    if not work.two_sided:
        write(work.prompts[0])
    first = True
    for token in tokens:
        text = decoder.decode(token.text, final=token.finish is not None)
        write(text.lstrip() if first and work.two_sided else text)
        first = first and not text


def _texts(work: Prompts) -> Iterator[str]:
    """Every continuation with its prompt before it."""
    for prompt, _, text in work.finished():
        yield text if work.two_sided else prompt + text


def _records(work: Prompts) -> Iterator[dict[str, Any]]:
    """Every continuation as plain values."""
    for prompt, result, text in work.finished():
        record: dict[str, Any] = {"prompt": prompt, "text": text, "ids": result.ids, "finish": result.finish}
        if isinstance(result.stopped_by, bytes):
            record["stop"] = result.stopped_by.decode("utf-8", errors="replace")
        if result.score is not None:
            record["score"] = result.score
        if result.logprobs is not None:
            record["logprobs"] = [item.as_dict() for item in result.logprobs]
        yield record
