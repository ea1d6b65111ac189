"""A model quantised as it is loaded: the formats by name, and the one call that rewrites."""

from __future__ import annotations

from openbook.errors import ConfigError, nearest
from openbook.nn.model import LanguageModel
from openbook.nn.serving import serve_form
from openbook.quant.int8 import plan_int8

FORMATS = ("int8",)


def check_format(name: str | None) -> None:
    """Raises `ConfigError` for a format that there is not."""
    if name is not None and name not in FORMATS:
        raise ConfigError(
            f"Unknown format {name!r} for `quantize`: it is 'int8', or None.{nearest(str(name), FORMATS)}"
        )


def quantized(model: LanguageModel) -> LanguageModel:
    """Rewritten in place into its int8 form for serving; on the CPU only."""
    if model.device.type != "cpu":
        raise ConfigError(f"`quantize='int8'` is for the CPU: this model is on {model.device.type}.")
    return serve_form(model, "int8", plan_int8(model))
