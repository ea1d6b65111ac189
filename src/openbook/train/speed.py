"""What makes a step fast or small without changing what it computes: compiled blocks, recomputed blocks.

Blocks are compiled one by one, because they are alike: the compiler works once and its result is cached on disk. The
loss of the head has its own fused pass (`head_loss.py`).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from openbook.errors import ConfigError
from openbook.log import note
from openbook.nn.model import LanguageModel
from openbook.nn.recurrent import Cell
from openbook.nn.stack import Tower
from openbook.runtime import compile_obstacle

Compile = Literal["auto", "on", "off"]


def towers(model: LanguageModel) -> list[Tower]:
    """The stacks of a model: its own, that of its encoder, that of a generator beside it."""
    return [module for module in model.modules() if isinstance(module, Tower)]


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
    blocks = [block for tower in towers(model) for block in tower.blocks if not _steps(block)]
    # Layers of one kind share code but not their index, so each may need a version of its own.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * len(blocks) + 8)
    for block in blocks:
        block.compile()
    return True


def _steps(block: nn.Module) -> bool:
    """Whether a block is a loop over tokens: the compiler would unroll it, or find one operator and nothing else."""
    return any(isinstance(module, Cell) for module in block.modules())


def recompute_blocks(model: LanguageModel) -> None:
    """Keep only the input of each block for the backward pass (Chen et al. 2016): less memory, a third more work."""
    for tower in towers(model):
        tower.checkpoints = True
