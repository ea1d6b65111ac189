"""A loaded model in a quantised form, by the name that users give: `quantize="int8"`."""

from __future__ import annotations

from collections.abc import Sequence

from openbook.errors import ConfigError, nearest
from openbook.nn.model import LanguageModel
from openbook.nn.serving import serve_form
from openbook.quant.int8 import plan_int8

KINDS = ("int8",)


def check_quantize(kind: str | None) -> None:
    """The kind must be one there is."""
    if kind is not None and kind not in KINDS:
        allowed = ", ".join(map(repr, KINDS))
        raise ConfigError(f"`quantize` is None or {allowed}: got {kind!r}.{nearest(str(kind), KINDS)}")


def quantised(
    model: LanguageModel, kind: str | None, sample_ids: Sequence[Sequence[int]] | None = None
) -> LanguageModel:
    """The model rewritten in place; None leaves it. `sample_ids`: text to measure on, else the model writes its own."""
    check_quantize(kind)
    if kind is None:
        return model
    if model.device.type != "cpu":
        raise ConfigError(f"`quantize='{kind}'` is for the CPU: this model is on {model.device.type}.")
    return serve_form(model, kind, plan_int8(model, sample_ids))
