"""Activations by their field names; one table of references, and one choice of what computes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from openbook.nn import rows


def quick_gelu(x: Tensor) -> Tensor:
    """x · sigmoid(1.702 x) (Hendrycks & Gimpel 2016, §2)."""
    return x * torch.sigmoid(1.702 * x)


def squared_relu(x: Tensor) -> Tensor:
    """relu(x)² (So et al. 2021)."""
    return F.relu(x).square()


REFERENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "squared_relu": squared_relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "exp": torch.exp,
}


def activate(name: str, x: Tensor) -> Tensor:
    """The function `name` of each number: by the row-exact operator where it can be, else by its reference."""
    exact = rows.activate(name, x)
    return REFERENCES[name](x) if exact is None else exact


# What a spec may name.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    name: partial(activate, name) for name in REFERENCES if name not in ("softplus", "exp")
}
