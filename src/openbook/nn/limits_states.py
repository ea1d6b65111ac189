"""What the values of layers with a state may be, beside the limits that all values have (limits.py)."""

from __future__ import annotations

from openbook.errors import ConfigError
from openbook.nn import spec


def check_state(layer: spec.StateSpaceDual | spec.Structured | spec.GatedDelta, dim: int) -> int:
    """The numbers of the layer's largest matrix. Raises ConfigError for parts that do not fit together."""
    match layer:
        case spec.StateSpaceDual():
            if layer.heads < 1 or layer.groups < 1 or layer.heads % layer.groups:
                raise ConfigError(
                    f"`groups` must divide `heads`: got heads={layer.heads}, groups={layer.groups}. Use 1 or a divisor."
                )
            if layer.step_least < 0 or (layer.step_most is not None and layer.step_most <= layer.step_least):
                raise ConfigError(
                    "The steps of a state space lie between `step_least`, not below 0, and a greater `step_most`: "
                    f"got {layer.step_least:g} and {layer.step_most}."
                )
            inner, shared = layer.heads * layer.head_dim, layer.groups * layer.state
            return (2 * inner + 2 * shared + layer.heads) * max(dim, layer.kernel)
        case spec.Structured():
            if layer.state % 2:
                raise ConfigError(f"The `state` of Structured holds pairs: got {layer.state}. Use an even one.")
            return dim * max(2 * dim, layer.state)
        case spec.GatedDelta():
            if layer.heads < 1 or layer.value_heads < 1 or layer.value_heads % layer.heads:
                raise ConfigError(
                    f"`heads` must divide `value_heads`: got heads={layer.heads}, value_heads={layer.value_heads}."
                )
            return (2 * layer.heads * layer.key_dim + layer.value_heads * layer.value_dim) * max(dim, layer.kernel)
