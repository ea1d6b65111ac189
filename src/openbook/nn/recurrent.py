"""Recurrent layers: the plain network, LSTM and GRU, one way or both; equal to torch.nn.RNN, LSTM and GRU of one layer.

Elman 1990; Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000; Cho et al. 2014; projected output,
Sak et al. 2014. Gates stand in torch's order (i, f, g, o and r, z, n), so weights move either way under other names:

    weight_ih bias_ih   input.weight input.bias          weight_hh bias_hh   state.weight state.bias
    weight_hr           project.weight                   *_reverse           of `back` instead of `ahead`

`Cell.loop` is the definition, one token after another, and what runs wherever a matrix has another form (serving,
adapters); `recurrence.py` is the same as one operator. Padding (segment 0) leaves the state as it is; a new segment
starts from zeros. Symbols: B rows, T tokens, D inputs, H hidden, P outputs, G gates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from openbook.errors import ConfigError
from openbook.nn import spec
from openbook.nn.activation import activate
from openbook.nn.causal import marks
from openbook.nn.linear import Linear, cast
from openbook.nn.recurrence import recurrence
from openbook.nn.state import Context, PerSequence, Stateful

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
Kept = tuple[Tensor, ...]  # h [B,P], and c [B,H] of an LSTM; fp32


class Cell(nn.Module):
    """One network: input [G·H,D], state [G·H,P], project [P,H] if the output is projected."""

    def __init__(
        self,
        kind: spec.Cell,
        inputs: int,
        hidden: int,
        bias: bool = True,
        activation: str = "tanh",
        projection: int | None = None,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.activation = activation
        self.hidden = hidden
        self.width = projection or hidden
        self.input = Linear(inputs, GATES[kind] * hidden, bias)
        self.state = Linear(self.width, GATES[kind] * hidden, bias)
        self.project = Linear(hidden, projection) if projection else None

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of what is kept for each row."""
        return ((self.width,), (self.hidden,)) if self.kind == "lstm" else ((self.width,),)

    def step(self, given: Tensor, kept: Kept) -> Kept:
        """One token: `given` [B,G·H] is what the input's map made of it."""
        said = self.state(kept[0].to(given.dtype)).float()
        given = given.float()
        if self.kind == "rnn":
            return (activate(self.activation, given + said),)
        if self.kind == "gru":
            size = self.hidden
            reset = activate("sigmoid", given[:, :size] + said[:, :size])
            update = activate("sigmoid", given[:, size : 2 * size] + said[:, size : 2 * size])
            new = activate("tanh", given[:, 2 * size :] + reset * said[:, 2 * size :])
            return (new + update * (kept[0] - new),)
        write, forget, new, read = (given + said).chunk(4, dim=-1)
        cell = activate("sigmoid", forget) * kept[1] + activate("sigmoid", write) * activate("tanh", new)
        out = activate("sigmoid", read) * activate("tanh", cell)
        return (out if self.project is None else self.project(out.to(given.dtype)).float()), cell

    def start(self, rows: int, device: torch.device) -> Kept:
        """Zeros."""
        return tuple(torch.zeros(rows, *shape, device=device) for shape in self.shapes)

    def forward(self, x: Tensor, kept: Kept | None, mark: Tensor | None) -> tuple[Tensor, Kept]:
        """x [B,T,D], the state before, and what each token does to it [B,T] → [B,T,P] and the state after."""
        kept = self.start(len(x), x.device) if kept is None else kept
        inside = [self.state] if self.project is None else [self.state, self.project]
        plain = all(type(part) is Linear and not part._forward_hooks for part in inside)
        if plain and mark is None and self.kind == "lstm" and self.project is None and self._torch_can():
            return self.library(x, kept)
        given = self.input(x)  # [B,T,G·H]
        out, last = (self.operator if plain else self.loop)(given, kept, mark)
        return out.to(x.dtype), last

    def _torch_can(self) -> bool:
        """Whether torch's own LSTM, often a library's kernel, can be called: traced, it would be unrolled."""
        return type(self.input) is Linear and not self.input._forward_hooks and not torch.compiler.is_compiling()

    def library(self, x: Tensor, kept: Kept) -> tuple[Tensor, Kept]:
        """The same by torch's own LSTM."""
        weights = (self.input.weight, self.state.weight, self.input.bias, self.state.bias)
        used = [cast(one, x.dtype) for one in weights if one is not None]
        before = [one.to(x.dtype).unsqueeze(0).contiguous() for one in kept]
        out, hidden, cell = torch._VF.lstm(x, before, used, len(used) == 4, 1, 0.0, self.training, False, True)
        return out, (hidden[0].float(), cell[0].float())

    def loop(self, given: Tensor, kept: Kept, mark: Tensor | None) -> tuple[Tensor, Kept]:
        """The definition."""
        outs = []
        for t in range(given.shape[1]):
            kept = held(self.step(given[:, t], begun(kept, None, mark, t)), kept, mark, t)
            outs.append(kept[0])
        return torch.stack(outs, dim=1), kept

    def operator(self, given: Tensor, kept: Kept, mark: Tensor | None) -> tuple[Tensor, Kept]:
        """The same as one operator."""
        weight, bias = cast(self.state.weight, given.dtype), self.state.bias
        if bias is not None and self.kind != "gru":
            given, bias = given + cast(bias, given.dtype), None
        project = None if self.project is None else cast(self.project.weight, given.dtype)
        kind = self.activation if self.kind == "rnn" else self.kind
        cell = kept[1] if self.kind == "lstm" else kept[0].new_empty(len(given), 0)
        mark = None if mark is None else mark.t().contiguous()
        given = given.transpose(0, 1).contiguous()
        outs, cells, _ = recurrence(given, weight, bias, project, kept[0], cell, mark, kind)
        last = (outs[-1], cells[-1]) if self.kind == "lstm" else (outs[-1],)
        return outs.transpose(0, 1), last


def begun(kept: Kept, fresh: Kept | None, mark: Tensor | None, token: int) -> Kept:
    """The state that a token begins with: `fresh` (zeros) where it starts anew."""
    if mark is None:
        return kept
    anew = (mark[:, token] == 2).unsqueeze(-1)
    if fresh is None:
        return tuple(torch.where(anew, 0.0, one) for one in kept)
    return tuple(torch.where(anew, new, one) for new, one in zip(fresh, kept, strict=True))


def held(after: Kept, before: Kept, mark: Tensor | None, token: int) -> Kept:
    """The state that a token leaves: as it was, if it is padding."""
    if mark is None:
        return after
    real = (mark[:, token] != 0).unsqueeze(-1)
    return tuple(torch.where(real, new, old) for new, old in zip(after, before, strict=True))


class RecurrentLayer(Stateful):
    """`ahead`, and `back`, which reads the row from its end, if there are two; their outputs stand side by side."""

    def __init__(self, recurrent: spec.Recurrent, dim: int) -> None:
        super().__init__()
        self.spec = recurrent
        inputs = dim // 2 if recurrent.direction == "apart" else dim
        self.ahead = self._cell(recurrent, inputs)
        self.back = self._cell(recurrent, inputs) if recurrent.direction != "forward" else None

    @staticmethod
    def _cell(recurrent: spec.Recurrent, inputs: int) -> Cell:
        r = recurrent
        return Cell(r.cell, inputs, r.hidden, r.bias, r.activation, r.projection)

    def declare(self) -> PerSequence:
        return PerSequence(shapes=self.ahead.shapes)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        first, second = x.chunk(2, dim=-1) if self.spec.direction == "apart" else (x, x)
        out = ctx.state.recur(self.index, first, self._recur)
        if self.back is None:
            return out
        segments = ctx.state.segments
        if segments is not None:  # numbered from the end, so that they grow in the order of reading
            segments = torch.where(segments == 0, 0, segments.amax() + 1 - segments).flip(1)
        behind, _ = self.back(second.flip(1), None, marks(segments))
        return torch.cat([out, behind.flip(1)], dim=-1)

    def _recur(self, x: Tensor, kept: Kept | None, segments: Tensor | None) -> tuple[Tensor, Kept]:
        return self.ahead(x, kept, marks(segments))


# ---------------------------------------------------------------------------------------------- torch's names

NAMES = {"weight_ih": "input.weight", "weight_hh": "state.weight", "bias_ih": "input.bias", "bias_hh": "state.bias"}
NAMES |= {"weight_hr": "project.weight"}
NAME = re.compile(r"(weight_ih|weight_hh|bias_ih|bias_hh|weight_hr)_l(\d+)(_reverse)?")


def from_torch(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The state_dict of torch.nn.RNN, LSTM or GRU → that of a `RecurrentLayer` for each of its layers."""
    layers: list[dict[str, Tensor]] = []
    for name, tensor in tensors.items():
        found = NAME.fullmatch(name)
        if found is None:
            raise ConfigError(f"torch.nn's recurrent modules have no '{name}': expected names like weight_ih_l0.")
        kind, number, reverse = found.groups()
        layers += [{} for _ in range(int(number) + 1 - len(layers))]
        layers[int(number)][f"{'back' if reverse else 'ahead'}.{NAMES[kind]}"] = tensor
    return layers


def to_torch(layers: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The inverse of `from_torch`, in torch's order."""
    return {
        f"{kind}_l{number}{reverse}": layer[f"{side}.{name}"]
        for number, layer in enumerate(layers)
        for side, reverse in (("ahead", ""), ("back", "_reverse"))
        for kind, name in NAMES.items()
        if f"{side}.{name}" in layer
    }
