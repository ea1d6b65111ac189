"""What a case of the laws is: one configuration of a family, and the reference model made of it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch


@dataclass(frozen=True)
class Case:
    """One configuration: the names of its transformers classes, and its arguments."""

    name: str
    config: str
    architecture: str
    values: dict[str, Any] = field(hash=False)
    kind: str = "decoder"  # decoder | encoder | encoder-decoder
    marked: bool = False  # has patterns in which some tokens are global
    attention: str = "eager"  # which of the reference's implementations is held to
    idle: tuple[str, ...] = ()  # tensors of the reference that compute nothing
    core: bool = False  # every law runs on it in the quick gate; on the others only parity does

    def reference(self) -> Any:
        """The reference model: random weights, none of them at its default (norms, biases, decays included)."""
        return _reference(self)

    def marks(self, ids: torch.Tensor) -> torch.Tensor | None:
        """Global tokens for rows of ids: none in the first, more and more in the others."""
        if not self.marked:
            return None
        chance = torch.arange(len(ids)).unsqueeze(1) / (2 * len(ids))
        return (torch.rand(ids.shape, generator=torch.Generator().manual_seed(5)) < chance).long()

    def published(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors under the names and in the layout that the reference is saved with."""
        from transformers.core_model_loading import revert_weight_conversion

        return dict(revert_weight_conversion(self.reference(), tensors))

    def folder(self, root: Path) -> Path:
        """The reference model saved as a folder, once for each root."""
        folder = root / self.name
        if not (folder / "config.json").exists():
            self.reference().save_pretrained(folder)
        return folder


@cache
def _reference(case: Case) -> Any:
    import transformers

    torch.manual_seed(sum(map(ord, case.name)))
    config = getattr(transformers, case.config)(**case.values)
    config._attn_implementation = case.attention
    config._experts_implementation = "eager"  # the others want rows of whole 16 bytes
    model = getattr(transformers, case.architecture)(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:  # a fixed table, such as sinusoidal positions
                continue
            if name.endswith("A_log"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.copy_(torch.randn_like(parameter) * (0.6 / parameter.shape[-1] ** 0.5))
        for name, buffer in model.named_buffers():
            if name.endswith("logits_bias"):
                buffer.copy_(torch.randn_like(buffer) * 0.2)
            if name.endswith("e_score_correction_bias"):
                buffer.add_(torch.randn_like(buffer) * 0.2)
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                module.padding_idx = None
    return model


def each(cases: list[Case], *, fast: bool = False, quick: Collection[str] = ()) -> pytest.MarkDecorator:
    """Parametrise a test with these cases; those that are not core are left to the whole run, unless `fast`.

    `quick`: for a test that takes its time, only the core cases of these names are in the quick gate.
    """
    marks = {True: (), False: (pytest.mark.slow,)}
    rows = [(case, fast or (case.core and (not quick or case.name in quick))) for case in cases]
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.name, marks=marks[gate]) for case, gate in rows])


def names(cases: list[Case]) -> list[str]:
    """Test ids."""
    return [case.name for case in cases]


def tokens(case: Case, rows: int, count: int, seed: int = 0) -> torch.Tensor:
    """Random ids [rows,count] of the case's vocabulary, specials left out."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, case.values["vocab_size"], (rows, count), generator=generator)


Build = Callable[[Case], torch.nn.Module]
