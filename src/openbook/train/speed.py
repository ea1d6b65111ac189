"""What makes a step fast or small without changing what it computes: compiled blocks, recomputed blocks; and FLOPs.

Blocks are compiled one by one, because they are alike: the compiler works once and its result is cached on disk. The
loss of the head has its own fused pass (`head_loss.py`).
"""

from __future__ import annotations

from typing import Literal

import torch

from openbook.errors import ConfigError
from openbook.log import note
from openbook.nn import spec
from openbook.nn.model import LanguageModel
from openbook.nn.stack import Tower
from openbook.runtime import compile_obstacle

Compile = Literal["auto", "on", "off"]


def towers(model: LanguageModel) -> list[Tower]:
    """The stacks of a model: its own, and that of its encoder."""
    return [model.stack, *([model.source.stack] if model.source is not None else [])]


def compile_blocks(model: LanguageModel, choice: Compile = "auto") -> bool:
    """Compile every block in place; returns whether they are. `auto`: where a compiler is, one message where none is.

    Errors: ConfigError for `on` where nothing can be compiled.
    """
    obstacle = compile_obstacle() if model.device.type == "cpu" else None
    if choice == "off":
        return False
    if obstacle:
        if choice == "on":
            raise ConfigError(f"`train.compile on` is not possible here: {obstacle}")
        note(f"Training without torch.compile: {obstacle}", once="uncompiled")
        return False
    blocks = [block for tower in towers(model) for block in tower.blocks]
    # Layers of one kind share code but not their index, so each may need a version of its own.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * len(blocks) + 8)
    for block in blocks:
        block.compile()
    return True


def recompute_blocks(model: LanguageModel) -> None:
    """Keep only the input of each block for the backward pass (Chen et al. 2016): less memory, a third more work."""
    for tower in towers(model):
        tower.checkpoints = True


def flops_per_token(model: spec.Model, tokens: int) -> float:
    """Floating-point operations to train on one token in rows of `tokens`: 6 for each weight that multiplies it.

    Attention adds 12·H·K for each token it sees, which in causal rows is half of them (Chowdhery et al. 2022,
    appendix B).
    """
    total = 0.0
    dim = model.stack.dim
    stacks = [model.stack, *([model.source.stack] if model.source else [])]
    for layer in (branch.layer for stack in stacks for block in stack.blocks for branch in block.branches):
        total += 6.0 * _weights(layer, dim)
        if isinstance(layer, spec.Attention):
            seen = min(layer.pattern.window or tokens, tokens)
            total += 12.0 * layer.heads * layer.head_dim * (seen / 2 if layer.pattern.causal else seen)
        elif isinstance(layer, spec.CrossAttention):
            total += 12.0 * layer.heads * layer.head_dim * tokens
    if model.language is not None:
        total += 6.0 * model.embed.vocab * dim
    return total


def _weights(layer: spec.Layer, dim: int) -> int:
    """Weights of the matrices that one token is multiplied with."""
    match layer:
        case spec.Attention() | spec.CrossAttention():
            return dim * layer.head_dim * 2 * (layer.heads + layer.kv_heads)
        case spec.MLP():
            return dim * layer.hidden * (3 if layer.gated else 2)
        case spec.MoE():
            return dim * layer.experts + layer.top_k * _weights(layer.expert, dim)
        case spec.Selective():
            rank = layer.rank or -(-dim // 16)
            return dim * layer.inner * 3 + layer.inner * (rank + 2 * layer.state) + rank * layer.inner
