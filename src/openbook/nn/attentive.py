"""Recurrent decoders that look at the source at every token: Bahdanau et al. 2015, Luong et al. 2015.

    look before    c = mix(s', source)     s = cell([x; c], s')           readout of (s or s', x, c)
    look after     s = cell(x, s')         c = mix(s, source)             readout of (s, c)
    fed            s = cell([x; y'], s')   c = mix(s, source)             y = readout of (s, c)

Where there are several cells, x enters the first, s is the state of the last, and each has its own state. All of it is
one step of a recurrence; the keys of a source are made once. A row's first token begins from what the source's end
says (`start`): the first number of the state tells whether that has happened. Where results must not depend on what
else is computed (law 3), sums are taken in order by `cumsum`, of which zeros behind the source's end change nothing.

Symbols: B rows, T tokens, S tokens of the source, D dim, E dim of the source, H hidden, K width of the keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openbook.nn import rows, spec
from openbook.nn.activation import activate
from openbook.nn.causal import marks
from openbook.nn.linear import Linear
from openbook.nn.recurrent import Cell, begun, held
from openbook.nn.state import Context, Memory, PerSequence, PerSource, Stateful


class SourceMemory(Stateful):
    """Keys [S,K] and values [S,E] of a source; how a state [B,H] scores them.

    additive: query [K,H], key [K,E], score [1,K] · general: key [H,E] · dot: nothing.
    """

    def __init__(self, attentive: spec.Attentive, source_dim: int) -> None:
        super().__init__()
        hidden, kind = attentive.hidden, attentive.score
        width = {"additive": attentive.align or hidden, "general": hidden, "dot": source_dim}[kind]
        self.kind = kind
        self.sizes = (width, source_dim)
        self.key = Linear(source_dim, width) if kind != "dot" else None
        self.query = Linear(hidden, width) if kind == "additive" else None
        self.score = Linear(width, 1) if kind == "additive" else None

    def declare(self) -> PerSource:
        return PerSource(kv_heads=1, key_dim=self.sizes[0], value_dim=self.sizes[1])

    def keys(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [B,S,1,K] and values [B,S,1,E] of the source's states [B,S,E]."""
        keys = hidden if self.key is None else self.key(hidden)
        return keys.unsqueeze(2), hidden.unsqueeze(2)

    def look(self, state: Tensor, memory: Memory, seen: Tensor | None) -> Tensor:
        """The values mixed for a state [B,H]: [B,E]. seen [B,S] boolean."""
        exact = rows.usable(memory.values) is not None
        state = state.to(memory.keys.dtype)
        if self.query is not None and self.score is not None:
            scores = self.score(activate("tanh", memory.keys + self.query(state).unsqueeze(1))).squeeze(-1)
        elif exact:
            scores = (memory.keys * state.unsqueeze(1)).cumsum(-1)[..., -1]
        else:
            scores = torch.einsum("bsk,bk->bs", memory.keys, state)
        scores = scores.float()
        if seen is not None:
            scores = scores.masked_fill(~seen, float("-inf"))
        if not exact:
            return torch.einsum("bs,bse->be", scores.softmax(-1).to(memory.values.dtype), memory.values)
        weights = activate("exp", scores - scores.amax(-1, keepdim=True))
        weights = weights / weights.cumsum(-1)[:, -1:]
        return (weights.unsqueeze(-1) * memory.values).cumsum(1)[:, -1]


class AttentiveLayer(Stateful):
    """cells, memory (above), bridge [states,E or 2E] (bias), out [D,H+E] or [2D,H+D+E]."""

    def __init__(self, attentive: spec.Attentive, dim: int, source_dim: int, both: bool) -> None:
        super().__init__()
        self.spec = attentive
        self.memory = SourceMemory(attentive, source_dim)
        beside = {"before": source_dim, "after": 0, "fed": dim}[attentive.look]
        hidden = attentive.hidden
        inputs = [dim + beside, *[hidden] * (attentive.layers - 1)]
        self.cells = nn.ModuleList(Cell(attentive.cell, size, hidden, attentive.bias) for size in inputs)
        self.dim, self.both = dim, both
        states = attentive.layers * len(self._cells()[0].shapes) * hidden
        read = source_dim // 2 if both and attentive.start != "ends" else source_dim
        self.bridge = Linear(read, states, bias=True) if attentive.start != "zeros" else None
        outs = {"state": None, "tanh": (hidden + source_dim, dim), "maxout": (hidden + dim + source_dim, 2 * dim)}
        sizes = outs[attentive.readout]
        self.out = None if sizes is None else Linear(*sizes)

    def _cells(self) -> list[Cell]:
        return [cell for cell in self.cells if isinstance(cell, Cell)]

    def declare(self) -> PerSequence:
        fed = ((self.dim,),) if self.spec.look == "fed" else ()
        return PerSequence(shapes=((1,), *(shape for cell in self._cells() for shape in cell.shapes), *fed))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        def run(
            own: Tensor, kept: tuple[Tensor, ...] | None, segments: Tensor | None
        ) -> tuple[Tensor, tuple[Tensor, ...]]:
            memory = ctx.state.recall(self.memory.index, ctx.source, self.memory.keys)
            return self._run(own, kept, marks(segments), _whole(memory))

        return ctx.state.recur(self.index, x, run)

    def _run(
        self, x: Tensor, kept: tuple[Tensor, ...] | None, mark: Tensor | None, memory: Memory
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """x [B,T,D] → out [B,T,D] and the state after."""
        shapes = self.declare().shapes
        if kept is None:
            kept = tuple(torch.zeros(len(x), *shape, device=x.device) for shape in shapes)
        anew = self._anew(memory, len(x), x.device)
        new = (kept[0] == 0) if mark is None else (kept[0] == 0) & (mark[:, :1] != 0)
        kept = tuple(torch.where(new, first, one) for first, one in zip(anew[0], kept, strict=True))
        outs = []
        for t in range(x.shape[1]):
            before = begun(kept, anew[min(t, len(anew) - 1)], mark, t)
            seen = None if memory.visible is None else memory.visible[:, min(t, memory.visible.shape[1] - 1)]
            out, after = self._step(x[:, t], before, memory, seen)
            kept = held(after, kept, mark, t)
            outs.append(out)
        return torch.stack(outs, dim=1), kept

    def _step(
        self, x: Tensor, kept: tuple[Tensor, ...], memory: Memory, seen: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One token x [B,D]."""
        cells, look = self._cells(), self.spec.look
        each = len(cells[0].shapes)
        states = [kept[1 + each * n : 1 + each * (n + 1)] for n in range(len(cells))]
        top = states[-1][0]
        entering, mixed = x, None
        if look == "before":
            mixed = self.memory.look(top, memory, seen)
            entering = torch.cat([x, mixed.to(x.dtype)], dim=-1)
        elif look == "fed":
            entering = torch.cat([x, kept[-1].to(x.dtype)], dim=-1)
        after: list[Tensor] = []
        for number, (cell, state) in enumerate(zip(cells, states, strict=True)):
            if number and self.training and self.spec.dropout:
                entering = F.dropout(entering, self.spec.dropout)
            state = cell.step(cell.input(entering), state)
            entering = state[0].to(x.dtype)
            after += state
        if mixed is None:
            mixed = self.memory.look(entering, memory, seen)
        out = self._read(entering, top.to(x.dtype), x, mixed.to(x.dtype))
        fed = (out.float(),) if look == "fed" else ()
        return out, (torch.ones_like(kept[0]), *after, *fed)

    def _read(self, state: Tensor, before: Tensor, x: Tensor, mixed: Tensor) -> Tensor:
        """What the step says, [B,D]."""
        match self.spec.readout:
            case "state":
                return state
            case "tanh":
                assert self.out is not None
                return activate("tanh", self.out(torch.cat([mixed, state], dim=-1)))
            case "maxout":
                assert self.out is not None
                return self.out(torch.cat([before, x, mixed], dim=-1)).unflatten(-1, (-1, 2)).amax(-1)

    def _anew(self, memory: Memory, count: int, device: torch.device) -> list[tuple[Tensor, ...]]:
        """The state that a row begins with, once, or for each token where tokens see different sources."""
        shapes = self.declare().shapes
        if self.bridge is None:
            return [tuple(torch.zeros(count, *shape, device=device) for shape in shapes)]
        told = activate("tanh", self.bridge(self._ends(memory))).float()  # [B,1 or T,states]
        found = []
        for one in told.unbind(1):
            parts = one.split(self.spec.hidden, dim=-1)
            rest = tuple(torch.zeros(count, *shape, device=device) for shape in shapes[1 + len(parts) :])
            found.append((torch.zeros(count, 1, device=device), *parts, *rest))
        return found

    def _ends(self, memory: Memory) -> Tensor:
        """The source's states that the bridge reads, [B,1 or T,E or E/2]."""
        ahead, back = memory.values.chunk(2, dim=-1) if self.both else (memory.values, memory.values)
        if memory.visible is None:
            last, first = ahead[:, -1:], back[:, :1]
        else:
            places = torch.arange(memory.visible.shape[-1], device=memory.visible.device)
            last = _at(ahead, torch.where(memory.visible, places, 0).amax(-1))
            first = _at(back, torch.where(memory.visible, places, len(places)).amin(-1).clamp(max=len(places) - 1))
        match self.spec.start:
            case "ends":
                return torch.cat([last, first], dim=-1)
            case "first":
                return first
            case _:
                return last


def _at(values: Tensor, places: Tensor) -> Tensor:
    """values [B,S,E] at places [B,T]: [B,T,E]."""
    return values.gather(1, places.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def _whole(memory: Memory) -> Memory:
    """Padding sees everything, so that no row of scores is empty."""
    if memory.visible is None:
        return memory
    return memory._replace(visible=memory.visible | ~memory.visible.any(-1, keepdim=True))
