"""What the values of recurrent specs may be, and that widths fit."""

from __future__ import annotations

from openbook.errors import ConfigError
from openbook.nn import spec


def check_recurrent(layer: spec.Recurrent, dim: int) -> None:
    """An output as wide as the stack; a projection only where there is one; halves that are halves."""
    if layer.activation not in ("tanh", "relu"):
        raise ConfigError(f"The `activation` of a recurrent layer is 'tanh' or 'relu': got '{layer.activation}'.")
    if layer.activation != "tanh" and layer.cell != "rnn":
        raise ConfigError(f"Only cell='rnn' has another `activation` than tanh: got cell='{layer.cell}'.")
    if layer.projection is not None and (layer.cell != "lstm" or layer.projection >= layer.hidden):
        raise ConfigError(
            "A `projection` makes an LSTM's output narrower than `hidden`: "
            f"got cell='{layer.cell}', projection={layer.projection}, hidden={layer.hidden}."
        )
    ways = 1 if layer.direction == "forward" else 2
    width = ways * (layer.projection or layer.hidden)
    if width != dim:
        raise ConfigError(
            f"A recurrent layer gives {width} numbers ({'both directions together' if ways == 2 else '`hidden`'}), and "
            f"the stack's `dim` is {dim}. Make them equal{', or give an LSTM a `projection`' if ways == 1 else ''}."
        )


def check_attentive(layer: spec.Attentive, dim: int, source_dim: int, both: bool) -> None:
    """Scores that can be taken, a readout of what there is, a start that the source has."""
    if layer.score == "dot" and layer.hidden != source_dim:
        raise ConfigError(
            f"A dot score needs `hidden` as wide as the source: got {layer.hidden} and {source_dim}. Use 'general'."
        )
    if layer.align is not None and layer.score != "additive":
        raise ConfigError(f"`align` is the width of an additive score: got score='{layer.score}'.")
    if layer.readout == "state" and (layer.look != "before" or layer.hidden != dim):
        raise ConfigError(
            "readout='state' is for look='before' and `hidden` as wide as the stack: "
            f"got look='{layer.look}', hidden={layer.hidden}, dim={dim}. Use 'tanh'."
        )
    if layer.start in ("first", "ends") and not both:
        raise ConfigError(f"start='{layer.start}' needs an encoder whose last layer reads both ways.")
