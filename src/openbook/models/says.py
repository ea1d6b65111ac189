"""Parts of a model in a few words: what the page of a description says beside their shapes."""

from __future__ import annotations

from openbook.models.cost import LAYER_PARTS
from openbook.nn import spec

NORMS = {"rms": "RMSNorm", "layer": "LayerNorm"}
PLACES = {"pre": "before", "post": "after", "both": "before and after", "after": "of what is added", "plain": "before"}


def embed_says(embed: spec.Embed) -> str:
    match embed.positions:
        case spec.Learned(count=count):
            said = [f"{count:,} learned positions"]
        case spec.Sinusoidal():
            said = ["sinusoidal positions"]
        case None:
            said = []
    said += [f"{embed.types} segment types"] if embed.types else []
    said += [f"tokens of {embed.inner:,} widened"] if embed.inner else []
    said += [f"scaled by {embed.scale:.4g}"] if embed.scale != 1.0 else []
    said += [f"{NORMS[embed.norm.kind]} after"] if embed.norm else []
    return " · ".join(said)


def layer_says(layer: spec.Layer) -> str:
    """A layer in a few words."""
    match layer:
        case spec.Attention():
            return _attention_says(layer)
        case spec.GlobalAttention():
            return f"{layer.heads} heads of {layer.head_dim} · both ways · window {layer.window:,} and global tokens"
        case spec.DisentangledAttention():
            return _disentangled_says(layer)
        case spec.Convolution():
            return f"{layer.kernel} tokens wide · {layer.activation}" + f" · {layer.groups} groups" * (layer.groups > 1)
        case spec.LatentAttention():
            return _latent_says(layer)
        case spec.CrossAttention():
            return f"{layer.heads} heads of {layer.head_dim} over the source"
        case spec.MLP():
            return f"{layer.activation}{' gated' if layer.gated else ''} · hidden {layer.hidden:,}"
        case spec.MoE():
            return _experts_say(layer)
        case spec.Selective():
            return f"{layer.inner:,} channels of {layer.state} states · kernel {layer.kernel} · rank {layer.rank}"
        case spec.Recurrent():
            ways = {"forward": "", "both": " · both ways", "apart": " · both ways apart"}[layer.direction]
            to = f" · projected to {layer.projection:,}" if layer.projection else ""
            return f"{layer.cell} of {layer.hidden:,}{to}{ways}"
        case spec.Attentive():
            cells = f"{layer.layers} × {layer.cell}" if layer.layers > 1 else layer.cell
            return f"{cells} of {layer.hidden:,} · looks at the source {layer.look} · {layer.score} score"
        case spec.StateSpaceDual():
            shared = f" · {layer.groups} groups" if layer.groups > 1 else ""
            return f"{layer.heads} heads of {layer.head_dim} · {layer.state} states · kernel {layer.kernel}{shared}"
        case spec.Structured():
            gated = " gated" if layer.gated else ""
            return f"{layer.state} states a feature, S4D-{layer.start} · {layer.activation}{gated}"
        case spec.GatedDelta():
            values = f"{layer.value_heads} heads of {layer.key_dim} keys and {layer.value_dim} values"
            return f"delta rule · {values} · {layer.heads} of q and k · kernel {layer.kernel}"


def _experts_say(layer: spec.MoE) -> str:
    rule = layer.routing
    said = [f"{layer.top_k} of {layer.experts} experts", f"each {layer_says(layer.expert)}"]
    said += [f"in the {rule.top_groups} best of {rule.groups} groups"] if rule.groups > 1 else []
    said += ["sigmoid scores"] if rule.score == "sigmoid" else []
    said += ["balanced by a bias"] if rule.correction else []
    said += ["experts choose tokens"] if rule.choice == "expert" else []
    said += [f"shared {layer.shared.hidden:,}"] if layer.shared is not None else []
    return " · ".join(said)


def _attention_says(layer: spec.Attention) -> str:
    said = [f"{layer.heads} heads of {layer.head_dim}"]
    said += [f"{layer.kv_heads} kv"] if layer.kv_heads != layer.heads else []
    said += [] if layer.pattern.causal else ["both ways"]
    said += [f"window {layer.pattern.window:,}"] if layer.pattern.window else []
    said += [f"chunks of {layer.pattern.chunk:,}"] if layer.pattern.chunk else []
    said += [_rope_says(layer.rope, layer.head_dim)] if layer.rope else []
    said += ["position bias"] if layer.relative else []
    said += [f"q, k and v within ±{layer.clip:g}"] if layer.clip else []
    said += [_norm_says(layer.norm)] if layer.norm else []
    said += [f"sharper every {layer.temperature.every:,} tokens"] if layer.temperature else []
    said += ["sinks"] if layer.sinks else []
    said += ["gated"] if layer.gate else []
    said += [f"scores capped at {layer.softcap:g}"] if layer.softcap else []
    return " · ".join(said)


def _norm_says(norm: spec.Norm | spec.QueryKeyNorm) -> str:
    rule = spec.QueryKeyNorm(norm=norm) if isinstance(norm, spec.Norm) else norm
    how = {"head": "", "heads": ", a weight for each head", "width": " over all heads"}[rule.over]
    return f"q and k normalised{how}" + (", once turned" if rule.rotated else "")


def _disentangled_says(layer: spec.DisentangledAttention) -> str:
    terms = ["content to position"] * layer.content_to_position + ["position to content"] * layer.position_to_content
    said = [f"{layer.heads} heads of {layer.head_dim}", "both ways", *terms]
    return " · ".join(said + ["positions through q and k"] * layer.shared)


def _latent_says(layer: spec.LatentAttention) -> str:
    said = [f"{layer.heads} heads of {layer.nope_dim} + {layer.rope.dim}, values of {layer.value_dim}"]
    said += [f"latent of {layer.kv_rank:,}"]
    said += [f"queries from {layer.q_rank:,}"] if layer.q_rank else []
    said += [f"window {layer.pattern.window:,}"] if layer.pattern.window else []
    said += [_rope_says(layer.rope, layer.rope.dim)]
    return " · ".join(said)


def _rope_says(rope: spec.Rope, head_dim: int) -> str:
    part = "" if rope.dim == head_dim else f" on {rope.dim}"
    part += " in neighbours" if rope.neighbours else ""
    match rope.scaling:
        case None:
            how = ""
        case spec.LinearScaling(factor=factor):
            how = f", linear × {factor:g}"
        case spec.DynamicScaling(factor=factor, original=original):
            how = f", dynamic × {factor:g} beyond {original:,}"
        case spec.YarnScaling(factor=factor, original=original):
            how = f", yarn × {factor:g} of {original:,}"
        case spec.WavelengthScaling(factor=factor, original=original):
            how = f", by wavelength × {factor:g} of {original:,}"
        case spec.LongRopeScaling(original=original):
            how = f", longrope beyond {original:,}"
        case spec.NtkScaling(factor=factor):
            how = f", ntk × {factor:g}"
        case spec.ProportionalScaling(share=share, factor=factor):
            how = f", {share:.0%} of the frequencies × {factor:g}"
    return f"rope{part} θ {rope.theta:,.0f}{how}"


def head_says(head: spec.Head) -> str:
    match head:
        case spec.Language():
            cap = f" · logits capped at {head.softcap:g}" if head.softcap else ""
            return ("tied to the embedding" if head.tied else "a matrix of its own") + cap
        case spec.Pooler():
            return "tanh of the first token"
        case spec.Sentence(by=by, longest=longest):
            return f"the vector of a row, by {', '.join(by)}" + (f", of {longest:,} tokens" if longest else "")
        case spec.Classes():
            return f"{head.count} labels of " + ("each token" if head.over == "tokens" else "a row")
        case spec.MultiToken():
            tokens = "the token" if head.depth == 1 else f"the {head.depth} tokens"
            layers = " and ".join(LAYER_PARTS[type(branch.layer)] for branch in head.block.branches)
            return f"{tokens} after the next · {layers} each"
        case spec.Mix():
            return "a weighted mean of all layers"


def bias_says(rule: spec.Relative | spec.Alibi | spec.RelativeVectors) -> str:
    if isinstance(rule, spec.Relative):
        return f"{rule.buckets} buckets up to distance {rule.distance}"
    if isinstance(rule, spec.RelativeVectors):
        says = f"{2 * rule.span:,} vectors of relative positions"
        says += "" if rule.distance is None else f" · buckets up to distance {rule.distance:,}"
        return says + (f" · {NORMS[rule.norm.kind]}" if rule.norm else "")
    return f"ALiBi · slopes down to 2^-{rule.most:g}" + (f" · × {rule.scale:.4g}" if rule.scale != 1.0 else "")
