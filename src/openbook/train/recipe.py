"""The recipe of a pretraining run: one typed tree, read from TOML and changed from the command line.

[data]       which text or texts, in rows of so many tokens  [loss]        smoothing, z-loss
[tokenizer]  made from the text, or one that is there        [optimizer]   how parameters move
[model]      a family and its sizes                          [schedule]    the learning rate over the run
[train]      how long, how large a step, on what             [checkpoint]  how often to save
[experts]    how a mixture of experts is kept balanced

`objective` says what is learned: the next word, hidden words ([masking]), or which words were replaced ([generator]).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from dataclasses import field as field_
from pathlib import Path
from typing import Any, Literal

from openbook.errors import ConfigError
from openbook.train.checkpoint import Cadence
from openbook.train.experts import ExpertPart
from openbook.train.optim import Optimisation
from openbook.train.schedules import Schedule
from openbook.train.sources import MixPart, SourcePart, check_sources
from openbook.train.speed import Compile


@dataclass(frozen=True, kw_only=True)
class DataPart:
    """Which text, and how it is laid out in rows."""

    text: tuple[str, ...] = ()
    """Files, folders or patterns of .txt and .jsonl, also gzipped."""
    sources: tuple[SourcePart, ...] = ()
    """In place of `text`: several, each in a table [[data.sources]], mixed by weight."""
    temperature: float = 1.0
    """Of the mixture: a source's share ~ (weight or tokens) ^ (1 / temperature)."""
    schedule: MixPart = field_(default_factory=MixPart)
    """How the weights of the mixture change over the run."""
    field: str = "text"
    """Field of a .jsonl record that holds the text."""
    held_out: float = 0.02
    """Part of the text that is kept from training, chosen by hash."""
    held_out_tokens: int = 50_000
    """Tokens of it that are measured at most."""
    block: int = 256
    """Tokens of a row."""
    packing: Literal["best-fit", "stream"] = "stream"
    """best-fit: whole documents, padding at the end; stream: all text in one stream."""
    document_mask: bool = False
    """Whether documents packed into a row are hidden from each other. Without it attention is plain and fastest."""
    curriculum: Literal["none", "length"] = "none"
    """length: the first epoch goes from short documents to long ones."""
    blur: float = 0.3
    """How much chance is in the curriculum's order: 0 none, 1 nothing else."""

    dropout: float | None = None
    """Train on `copies` of the text, cut by BPE with this dropout (0.1 is usual), in turn."""
    alpha: float | None = None
    """The same for a Unigram tokenizer, cut with probability to this power (0.1 to 0.5)."""
    copies: int = 4
    """In how many ways the text is cut then; each costs its place on the disk."""

    @property
    def sampled(self) -> bool:
        """Whether the text is cut in several ways."""
        return self.dropout is not None or self.alpha is not None

    def __post_init__(self) -> None:
        if self.sampled and (self.sources or (self.dropout is not None and self.alpha is not None) or self.copies < 1):
            raise ConfigError(
                "`data.dropout` or `data.alpha`, one of the two, cuts `data.text` into 1 or more `data.copies`; it is "
                "not for [[data.sources]]."
            )
        if bool(self.text) == bool(self.sources):
            raise ConfigError("Say what to read: `data.text`, or [[data.sources]] for several that are mixed.")
        check_sources(self.sources, self.schedule)
        if not self.sources and (self.temperature != 1 or self.schedule.changes):
            raise ConfigError("`data.temperature` and [data.schedule] mix [[data.sources]]: there are none.")

    def groups(self) -> list[tuple[str, ...]]:
        """The paths of each source, or of the one text."""
        return [(source.path,) for source in self.sources] or [self.text]


@dataclass(frozen=True, kw_only=True)
class TokenizerPart:
    """A tokenizer that is there (`path`), or one made from the text."""

    path: str | None = None
    """Folder or file of a tokenizer. None: train one."""
    vocab: int = 4096
    """Ids at most, of one that is trained."""
    megabytes: float = 200.0
    """Text it is trained on at most."""
    chat: Literal["continue", "turns", "none"] = "continue"
    """Chat template of one that is trained. continue: messages are one text that goes on, as a model that was only
    pretrained can; turns: roles and end marks, for a model that will be tuned to talk."""


@dataclass(frozen=True, kw_only=True)
class ModelPart:
    """A family and its sizes; what is None is the family's own rule."""

    family: str
    """A `model_type`, as in config.json; openbook: what `spec` says."""
    dim: int | None = None
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    hidden: int | None = None
    """Width of the feed-forward layers."""
    context: int | None = None
    """Longest row the model is made for. None: data.block."""
    vocab: int | None = None
    """None: the tokenizer's. More leaves room for tokens that come later."""
    tied: bool | None = None
    """Whether the head is the token embedding."""
    dropout: float = 0.0
    """While training: of embeddings, attention weights and what layers add; many passes over little text need it."""
    more: dict[str, float | int | bool | str] = field_(default_factory=dict)
    """Further keys of the family's config.json."""
    spec: dict[str, Any] = field_(default_factory=dict)
    """A whole model of your own, for family openbook: see recipes/lstm.toml. `embed.vocab` may be left out."""

    def __post_init__(self) -> None:
        if (self.family == "openbook") != bool(self.spec):
            raise ConfigError("A model of your own is family = 'openbook' and a table [model.spec]: give both.")
        absent = [name for name in ("dim", "layers", "heads") if getattr(self, name) is None]
        if absent and not self.spec:
            names = " and ".join(f"`model.{name}`" for name in absent)
            raise ConfigError(f"{names} must be given for a '{self.family}'.")
        if self.spec and (len(absent) < 3 or self.dropout or self.more):
            raise ConfigError("[model.spec] says all sizes and the dropout itself: leave them out of [model].")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"`model.dropout` must be from 0 to below 1: got {self.dropout}.")

    def sizes(self, vocab: int, block: int) -> dict[str, Any]:
        """The sizes in our words, open ones settled."""
        other = ("family", "more", "dropout", "spec")
        given = {name: value for name, value in asdict(self).items() if name not in other}
        return {**given, "vocab": self.vocab or vocab, "context": self.context or block}


@dataclass(frozen=True, kw_only=True)
class TrainPart:
    """How long, how large a step, and on what. `steps`, `minutes`, or both: the shorter one."""

    steps: int | None = None
    minutes: float | None = None
    """A time budget: speed is measured first, then the number of steps is fixed and kept, for a resumed run too."""
    rows: int = 16
    """Rows of a step, however they are split."""
    ramp: tuple[tuple[int, int], ...] = ()
    """(from step, rows): the batch grows; before the first of them a step has `rows`."""
    micro_rows: int = 0
    """Rows of one forward pass; 0: all rows of the step at once. Gradients of the parts are added up."""
    clip: float = 1.0
    """Limit of the gradient's norm; 0: none."""
    seed: int = 0
    dtype: str = "auto"
    """What layers compute in, over fp32 parameters: bfloat16, float32, or auto."""
    device: str = "auto"
    threads: int | None = None
    compile: Compile = "auto"
    recompute: bool = False
    """Recompute blocks in the backward pass: less memory, a third more work."""
    heldout_every: int | None = None
    """Steps between held-out measurements. None: a tenth of the run."""
    patience: int = 0
    """Measurements without improvement before the run stops early; 0: never."""
    improvement: float = 0.0
    """Nats by which the held-out loss must fall to count as better."""
    divergence: float = 2.0
    """Nats the smoothed loss may climb above its lowest before the run is stopped; 0: any."""
    prompt: str = "Once upon a time"
    """What samples begin with; empty: no samples."""
    tensorboard: bool = False
    """Also write TensorBoard events (extra `tensorboard`)."""

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise ConfigError(
                "Say how long to train: give `train.steps`, `train.minutes`, or both for the shorter of them."
            )
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"`train.steps` must be 1 or more: got {self.steps}.")
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            raise ConfigError(f"`train.minutes` must be above 0: got {self.minutes}.")
        for name, least in (("rows", 1), ("micro_rows", 0), ("patience", 0), ("heldout_every", 1), ("threads", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"`train.{name}` must be {least} or more: got {value}.")

    def rows_of(self, steps: int) -> int:
        """Rows of a run of so many steps."""
        edges = [*(start for start, _ in self.course()), steps]
        return sum(
            rows * (max(start, min(steps, end)) - start)
            for (start, rows), end in zip(self.course(), edges[1:], strict=True)
            if start < steps
        )

    def course(self) -> tuple[tuple[int, int], ...]:
        """(from step, rows) from step 0 on."""
        return self.ramp if self.ramp and self.ramp[0][0] == 0 else ((0, self.rows), *self.ramp)


@dataclass(frozen=True, kw_only=True)
class LossPart:
    """What is added to the plain cross-entropy."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    """Weight of the squared log of the softmax's sum; PaLM used 1e-4."""
    ahead: float = 0.3
    """Weight of predictions beyond the next token, in models that make some; DeepSeek-V3 used 0.3, then 0.1."""


@dataclass(frozen=True, kw_only=True)
class MaskingPart:
    """How words are hidden: of those chosen, `random` become any word, `keep` stay, the rest become the mask."""

    rate: float = 0.15
    random: float | None = None
    """None: 0.1, and 0 for replaced words."""
    keep: float | None = None
    """None: 0.1, and 0 for replaced words."""

    def __post_init__(self) -> None:
        random, keep = self.random or 0.0, self.keep or 0.0
        if not 0 < self.rate < 1 or min(random, keep) < 0 or random + keep > 1:
            raise ConfigError(
                "`masking.rate` is between 0 and 1, and `masking.random` and `masking.keep` are shares of it: got "
                f"{self.rate}, {random} and {keep}."
            )


@dataclass(frozen=True, kw_only=True)
class GeneratorPart:
    """The generator that a discriminator is trained against."""

    share: float = 0.25
    """Of the discriminator's heads and hidden features."""
    weight: float = 50.0
    """Of the discriminator's loss, beside the generator's."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or not 0 < self.weight < float("inf"):
            raise ConfigError(
                f"`generator.share` is above 0 to 1 and `generator.weight` above 0: got {self.share} and {self.weight}."
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A pretraining run."""

    out: Path
    """Folder that the run works in and that becomes the model."""
    objective: Literal["next", "masked", "replaced"] = "next"
    """next: the next word, for models that write; masked: hidden words (Devlin et al. 2018); replaced: which words a
    generator put in the place of others (Clark et al. 2020)."""
    data: DataPart
    model: ModelPart
    train: TrainPart
    tokenizer: TokenizerPart = field_(default_factory=TokenizerPart)
    loss: LossPart = field_(default_factory=LossPart)
    masking: MaskingPart = field_(default_factory=MaskingPart)
    generator: GeneratorPart = field_(default_factory=GeneratorPart)
    experts: ExpertPart = field_(default_factory=ExpertPart)
    optimizer: Optimisation = field_(default_factory=Optimisation)
    schedule: Schedule = field_(default_factory=Schedule)
    checkpoint: Cadence = field_(default_factory=Cadence)
    export_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the finished weights are written in."""

    def __post_init__(self) -> None:
        context = self.model.context
        if context is not None and context < self.data.block:
            raise ConfigError(f"`data.block` is {self.data.block}, longer than `model.context`, {context}.")


# What may change between a run and its continuation: where and when, not what.
FREE = {
    "": ("out", "checkpoint", "export_dtype"),
    "train": ("device", "threads", "compile", "recompute", "prompt", "tensorboard"),
}


def identity(recipe: Recipe) -> dict[str, Any]:
    """What a checkpoint must agree with: everything in the recipe that decides the outcome."""
    tree = asdict(recipe)
    for table, names in FREE.items():
        place = tree[table] if table else tree
        for name in names:
            del place[name]
    tree["data"]["text"] = list(recipe.data.text)
    if not recipe.data.sources:  # as runs from before there were mixtures
        for name in ("sources", "temperature", "schedule"):
            del tree["data"][name]
    if not recipe.data.sampled:
        del tree["data"]["dropout"], tree["data"]["alpha"], tree["data"]["copies"]
    if recipe.data.curriculum == "none":
        del tree["data"]["curriculum"], tree["data"]["blur"]
    for name, objectives in (("masking", ("masked", "replaced")), ("generator", ("replaced",))):
        if recipe.objective not in objectives:
            del tree[name]
    if recipe.objective == "next":  # as runs from before there were others
        del tree["objective"]
    return tree
