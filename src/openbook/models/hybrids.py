"""What families that mix attention with layers that keep a state share: which layer stands where, and its names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from openbook.errors import ConfigError
from openbook.models.config import Config
from openbook.models.family import CannotSay
from openbook.models.names import Name
from openbook.nn import spec


def every(config: Config, what: str, layers: int, period: int, offset: int) -> list[bool]:
    """Which of the layers are `what`: one in `{what}_layer_period`, from `{what}_layer_offset` on."""
    period = config.size(f"{what}_layer_period", period)
    offset = config.get(f"{what}_layer_offset", offset)
    if not 0 <= offset < period:
        raise ConfigError(
            f"`{what}_layer_offset` must be 0 to {period - 1}, below `{what}_layer_period`: got {offset} "
            f"({config.where})."
        )
    return [number % period == offset for number in range(layers)]


def say_every(found: Sequence[bool], what: str) -> dict[str, int]:
    """The keys that `every` reads; raises CannotSay where the layers have no period."""
    for period in range(1, len(found) + 2):
        for offset in range(period):
            if all(one == (number % period == offset) for number, one in enumerate(found)):
                return {f"{what}_layer_period": period, f"{what}_layer_offset": offset}
    raise CannotSay(f"its layers of kind '{what}' do not stand at equal distances")


def by_layer(model: spec.Model, names: Callable[[spec.Layer], tuple[Name, ...]]) -> tuple[Name, ...]:
    """The names of each block's first layer, `{i}` filled in: what is published under one name may be two of ours."""
    return tuple(
        replace(name, theirs=name.theirs.replace("{i}", str(i)), ours=name.ours.replace("{i}", str(i)))
        for i, block in enumerate(model.stack.blocks)
        for name in names(block.branches[0].layer)
    )
