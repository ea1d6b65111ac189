"""What recurrent networks start from: uniform within 1/√width, as torch.nn's, and a forget gate that is open."""

from __future__ import annotations

import torch

from openbook.nn.attentive import AttentiveLayer
from openbook.nn.recurrent import Cell


def initialise_cell(cell: Cell, generator: torch.Generator) -> None:
    """An LSTM forgets nothing at first (Jozefowicz et al. 2015, §2.2)."""
    bound = cell.hidden**-0.5
    for part in (cell.input, cell.state, cell.project):
        if part is not None:
            part.weight.uniform_(-bound, bound, generator=generator)
    if cell.kind == "lstm" and cell.input.bias is not None:
        cell.input.bias[cell.hidden : 2 * cell.hidden] = 1.0


def initialise_attentive(layer: AttentiveLayer, generator: torch.Generator) -> None:
    """Everything but the cells: scores that differ from the beginning, or nothing is learned from them for long."""
    for part in (layer.memory.key, layer.memory.query, layer.memory.score, layer.bridge, layer.out):
        if part is not None:
            bound = part.weight.shape[1] ** -0.5
            part.weight.uniform_(-bound, bound, generator=generator)
