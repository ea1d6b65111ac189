"""What the decoders with LayerNorm and a plain feed-forward layer share: sizes, blocks, heads.

A family's own file says what is special about it: positions, layout, which branches run side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from openbook.errors import ConfigError
from openbook.models.config import Config, share_of, write_rope
from openbook.models.family import CannotSay, Heads, classes_of_last, labels, language, layers_of, none
from openbook.models.fields import Table
from openbook.models.names import Name
from openbook.models.parts import BLOCK, write_labels
from openbook.nn import spec
from openbook.nn.build import check_heads

# pre, post: one branch after the other. shared: side by side after one norm. each: side by side, each after its own.
Way = Literal["pre", "post", "shared", "each"]
Keys = Mapping[str, str]
Said = Mapping[type, dict[str, Any]]  # kind of spec value → its fields, as fields.py reads them
# Our words for the sizes, as the configurations that follow GPT-2's spell them.
GPT: Keys = {
    "vocab": "vocab_size",
    "dim": "n_embd",
    "layers": "n_layer",
    "heads": "n_head",
    "hidden": "n_inner",
    "context": "n_positions",
    "tied": "tie_word_embeddings",
}
# What their configurations say of a head that summarises a row, and of nothing that is computed here.
SUMMARY = (
    *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout"),
    "n_ctx",
)


class Sizes(NamedTuple):
    """What every such decoder has; a feed-forward layer is four times as wide unless a config.json says more."""

    vocab: int
    dim: int
    layers: int
    heads: int
    head_dim: int
    hidden: int
    context: int | None

    @property
    def attention(self) -> spec.Attention:
        """A key and value for each head, no biases, no positions."""
        return spec.Attention(heads=self.heads, kv_heads=self.heads, head_dim=self.head_dim)

    def kv_heads(self, config: Config) -> int:
        """As many as `num_key_value_heads` says, else one for each head."""
        count = config.size("num_key_value_heads", self.heads)
        check_heads(self.heads, count, config.where)
        return count

    def mlp(self, activation: str, bias: bool = True) -> spec.MLP:
        """The plain feed-forward layer."""
        return spec.MLP(hidden=self.hidden, activation=activation, gated=False, bias=bias)

    def embed(self, dropout: float = 0.0, learned: bool = False) -> spec.Embed:
        """Token vectors, with `learned` positions for the whole context."""
        positions = spec.Learned(count=self.context) if learned and self.context else None
        return spec.Embed(vocab=self.vocab, dim=self.dim, positions=positions, dropout=dropout)

    def model(
        self,
        blocks: spec.Block | tuple[spec.Block, ...],
        norm: spec.Norm | None,
        embed: spec.Embed | None = None,
        relative: spec.Alibi | None = None,
    ) -> spec.Model:
        """A decoder without heads of these blocks, or of this one for every layer, and `norm` after the last."""
        blocks = (blocks,) * self.layers if isinstance(blocks, spec.Block) else blocks
        stack = spec.Stack(dim=self.dim, blocks=blocks, final_norm=norm, relative=relative)
        return spec.Model(embed=embed or self.embed(), stack=stack, heads=(), context=self.context)


def plain(size: Sizes, attention: spec.Attention, said: Said, way: Way = "pre", *, learned: bool = False) -> spec.Model:
    """A decoder of equal blocks; `said` is what the family's table reads of norm, feed-forward layer and rates."""
    norm = spec.Norm(kind="layer", bias=True, **said[spec.Norm])
    layers = block(attention, size.mlp(**said[spec.MLP]), norm, way, **said[spec.Branch])
    return size.model(layers, norm, size.embed(**said[spec.Embed], learned=learned))


def read_sizes(config: Config, keys: Keys, context: int | None = None) -> Sizes:
    """Read the sizes under the family's `keys`; `context` is its default."""
    dim, heads = config.size(keys["dim"]), config.size(keys["heads"])
    if dim % heads:
        raise ConfigError(f"`{keys['heads']}` must divide `{keys['dim']}`: got {heads} and {dim} ({config.where}).")
    return Sizes(
        vocab=config.size(keys["vocab"]),
        dim=dim,
        layers=config.layers(keys["layers"]),
        heads=heads,
        head_dim=dim // heads,
        hidden=config.size(keys["hidden"], 4 * dim) if "hidden" in keys else 4 * dim,
        context=config.size(keys["context"], context) if "context" in keys else None,
    )


def write_sizes(model: spec.Model, keys: Keys) -> dict[str, Any]:
    """The sizes under the family's `keys`, and what its heads need. What it cannot say shows when it is read back."""
    attention, mlp = layers_of(model.stack, spec.Attention)[0], layers_of(model.stack, spec.MLP)[0]
    values = {
        "vocab": model.embed.vocab,
        "dim": model.stack.dim,
        "layers": len(model.stack.blocks),
        "heads": attention.heads,
        "hidden": mlp.hidden,
        "context": model.context,
        "tied": model.language is None or model.language.tied,
    }
    return {keys[word]: value for word, value in values.items() if word in keys} | write_heads(model)


def gpt_table(activation: tuple[str, str], rate: float) -> Table:
    """Where the configurations that follow GPT-2's say activation, norm and rates; `rate` is the default of these."""
    return {
        spec.Attention: {"dropout": ("attn_pdrop", rate)},
        spec.MLP: {"activation": activation},
        spec.Norm: {"eps": ("layer_norm_epsilon", 1e-5)},
        spec.Branch: {"dropout": ("resid_pdrop", rate)},
        spec.Embed: {"dropout": ("embd_pdrop", rate)},
    }


def write_turned(model: spec.Model) -> dict[str, Any]:
    """`rope_parameters` with the share of a head that is turned, whatever the family takes it for by default."""
    attention = layers_of(model.stack, spec.Attention)[0]
    if attention.rope is None:
        raise CannotSay("it needs rotary positions")
    share = {"partial_rotary_factor": share_of(attention.rope, attention.head_dim)}
    return {"rope_parameters": write_rope(attention.rope, attention.head_dim) | share}


def layer_norm(config: Config, key: str = "layer_norm_epsilon", default: float = 1e-5, bias: bool = True) -> spec.Norm:
    """The norm these families have."""
    return spec.Norm(kind="layer", eps=config.get(key, default), bias=bias)


def block(
    attention: spec.Attention,
    mlp: spec.MLP,
    norm: spec.Norm,
    way: Way = "pre",
    dropout: float = 0.0,
    attention_dropout: float | None = None,
) -> spec.Block:
    """Attention and feed-forward, one after the other or side by side."""
    own = None if way == "shared" else norm
    place: spec.Place = "pre" if way == "pre" else "post" if way == "post" else "plain"
    first = dropout if attention_dropout is None else attention_dropout
    branches = (
        spec.Branch(layer=attention, norm=own, place=place, dropout=first),
        spec.Branch(layer=mlp, norm=own, place=place, dropout=dropout),
    )
    return spec.Block(branches=branches, parallel=place == "plain", norm=norm if way == "shared" else None)


def way_of(model: spec.Model) -> Way:
    """How the first block runs its branches."""
    first = model.stack.blocks[0]
    if first.parallel:
        return "shared" if first.norm is not None else "each"
    return "post" if first.branches[0].place == "post" else "pre"


QKV = tuple(f"{BLOCK}.0.layer.{name}" for name in "qkv")

# ------------------------------------------------------------------------------------------------ heads


def head_dropout(config: Config) -> float:
    """What a head over tokens drops: its own rate, else that of the model."""
    return config.get("classifier_dropout", config.get("hidden_dropout", 0.1))


def classes_of_tokens(config: Config) -> Heads:
    """Labels of each token."""
    return (spec.Classes(count=labels(config), over="tokens", dropout=head_dropout(config)),)


def span(config: Config) -> Heads:  # noqa: ARG001
    """Start and end of an answer."""
    return (spec.Classes(count=2, over="tokens", name="span"),)


def biased_language(config: Config) -> Heads:
    """A language head with a bias, usually of its own."""
    return (spec.Language(tied=config.get("tie_word_embeddings", False), bias=True),)


def tied_language(config: Config) -> Heads:
    """A language head that usually is the embedding."""
    return language(config, default=True)


def heads_of(
    name: str, speak: Callable[[Config], Heads] = tied_language, *, tokens: bool = True, spans: bool = True
) -> dict[str, Callable[[Config], Heads]]:
    """The architectures a family is published as; `tokens`, `spans`: also with these heads."""
    found = {f"{name}ForCausalLM": speak, f"{name}Model": none, f"{name}ForSequenceClassification": classes_of_last}
    found |= {f"{name}ForTokenClassification": classes_of_tokens} if tokens else {}
    return found | ({f"{name}ForQuestionAnswering": span} if spans else {})


def write_heads(model: spec.Model) -> dict[str, Any]:
    """What the class heads need to be read back."""
    named = [head for head in model.heads if isinstance(head, spec.Classes) and head.name == "classes"]
    rates = [head.dropout for head in named if head.over == "tokens"]
    return write_labels(model) | ({"classifier_dropout": rates[0]} if rates else {})


def head_names(model: spec.Model, language: str = "lm_head", tokens: str = "classifier") -> tuple[Name, ...]:
    """Where the heads are published: the one over tokens by another name than the one over the last."""
    over = [head.over for head in model.heads if isinstance(head, spec.Classes) and head.name == "classes"]
    return (
        Name(language, "heads.language"),
        Name(tokens if "tokens" in over else "score", "heads.classes.linear"),
        Name("qa_outputs", "heads.span.linear"),
    )
