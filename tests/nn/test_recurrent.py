"""Law 1 for recurrent networks: torch.nn's own for the layers, the papers' formulas for decoders and mixes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from openbook.errors import ConfigError
from openbook.models.make import make
from openbook.nn import recurrent, spec
from openbook.nn.attentive import AttentiveLayer
from openbook.nn.build import build
from openbook.nn.model import LanguageModel
from openbook.nn.recurrent import Cell, RecurrentLayer
from openbook.nn.state import Context, Dense
from tests.nn.recurrent import ALL, DIM, LANGUAGE, PAIRS, bilm, language, pair, random, tokens

BOUND = 1e-5


def close(ours: Tensor, theirs: Tensor, bound: float = BOUND) -> None:
    """The bound of law 1."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= bound * max(1.0, float(theirs.detach().abs().max()))


def context(count: int, segments: Tensor | None = None) -> Context:
    return Context(Dense(torch.arange(count).unsqueeze(0), segments, (), count), ())


def cells(model: nn.Module) -> Iterator[Cell]:
    return (module for module in model.modules() if isinstance(module, Cell))


# ------------------------------------------------------------------------------------------------ torch.nn

SINGLE = [
    spec.Recurrent(cell="rnn", hidden=13, activation="tanh"),
    spec.Recurrent(cell="rnn", hidden=13, activation="relu", bias=False),
    spec.Recurrent(cell="lstm", hidden=13),
    spec.Recurrent(cell="lstm", hidden=13, bias=False, direction="both"),
    spec.Recurrent(cell="lstm", hidden=13, projection=6, direction="both"),
    spec.Recurrent(cell="gru", hidden=13),
    spec.Recurrent(cell="gru", hidden=13, bias=False, direction="both"),
]


def reference(layer: spec.Recurrent, dim: int) -> nn.RNNBase:
    """torch's module with random weights."""
    torch.manual_seed(3)
    more = {"nonlinearity": layer.activation} if layer.cell == "rnn" else {}
    more |= {"proj_size": layer.projection} if layer.projection else {}
    kind = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[layer.cell]
    both = layer.direction == "both"
    return kind(dim, layer.hidden, bias=layer.bias, batch_first=True, bidirectional=both, **more)  # type: ignore[no-any-return, operator]


def loaded(layer: spec.Recurrent, dim: int, theirs: nn.RNNBase) -> RecurrentLayer:
    """Ours with torch's weights, by the table of names."""
    ours = RecurrentLayer(layer, dim)
    ours.load_state_dict(recurrent.from_torch(theirs.state_dict())[0])
    return ours


@pytest.mark.parametrize("loop", [False, True], ids=["operator", "loop"])
@pytest.mark.parametrize("layer", SINGLE, ids=lambda one: f"{one.cell}-{one.direction}-{one.bias}-{one.projection}")
def test_layers_are_torchs(layer: spec.Recurrent, loop: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = reference(layer, 8)
    ours = loaded(layer, 8, theirs)
    if loop:
        monkeypatch.setattr(Cell, "operator", Cell.loop)
        monkeypatch.setattr(Cell, "_torch_can", lambda _: False)
    x = torch.randn(3, 9, 8)
    mine, yours = (x.clone().requires_grad_() for _ in range(2))
    out, other = ours(mine, context(9)), theirs(yours)[0]
    close(out, other)
    weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    (out * weights).sum().backward()
    (other * weights).sum().backward()
    assert mine.grad is not None
    assert yours.grad is not None
    close(mine.grad, yours.grad)
    gradients = recurrent.from_torch({name: p.grad for name, p in theirs.named_parameters() if p.grad is not None})[0]
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        close(parameter.grad, gradients[name], 2 * BOUND)


@pytest.mark.parametrize("layer", SINGLE[:3] + SINGLE[5:6], ids=lambda one: f"{one.cell}-{one.activation}")
def test_states_are_torchs(layer: spec.Recurrent) -> None:
    theirs = reference(layer, 8)
    ours = loaded(layer, 8, theirs).ahead
    x, start = torch.randn(3, 9, 8), tuple(torch.randn(3, *shape) for shape in ours.shapes)
    first = tuple(one.unsqueeze(0) for one in start)
    _, after = theirs(x, first if layer.cell == "lstm" else first[0])
    for mine, yours in zip(ours(x, start, None)[1], after if layer.cell == "lstm" else (after,), strict=True):
        close(mine, yours[0])


def test_weights_move_either_way() -> None:
    theirs = nn.LSTM(8, 13, num_layers=2, bidirectional=True, proj_size=5)
    parts = recurrent.from_torch(theirs.state_dict())
    back = recurrent.to_torch(parts)
    assert list(back) == list(theirs.state_dict())
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs.state_dict().items())
    with pytest.raises(ConfigError, match="weight_xy_l0"):
        recurrent.from_torch({"weight_xy_l0": torch.zeros(1)})


# ------------------------------------------------------------------------------------------------ the operator

MARKS = torch.tensor([[1, 1, 1, 2, 1, 1, 2, 0, 0], [0, 0, 1, 1, 2, 0, 1, 1, 1], [1] * 9])
Kind = tuple[spec.Cell, str, int | None]
KINDS: list[Kind] = [
    ("lstm", "tanh", None),
    ("lstm", "tanh", 5),
    ("gru", "tanh", None),
    ("rnn", "tanh", None),
    ("rnn", "relu", None),
]


def both_ways(cell: Cell, mark: Tensor | None) -> list[list[Tensor]]:
    """Outputs, states and all gradients of the loop and of the operator."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 9, 7, generator=generator).requires_grad_()
    kept = tuple(torch.randn(3, *shape, generator=generator).requires_grad_() for shape in cell.shapes)
    found = []
    for way in (cell.loop, cell.operator):
        inputs = [*cell.parameters(), x, *kept]
        out, last = way(cell.input(x), kept, mark)
        weights = torch.linspace(-1, 1, out.numel()).view_as(out)
        loss = (out * weights).sum() + sum(one.square().sum() for one in last)
        found.append([out.detach(), *(one.detach() for one in last), *torch.autograd.grad(loss, inputs)])
    return found


def random_cell(kind: Kind) -> Cell:
    cell = Cell(kind[0], 7, 11, True, kind[1], kind[2])
    for parameter in cell.parameters():
        nn.init.normal_(parameter, 0, 0.4, generator=torch.Generator().manual_seed(parameter.numel()))
    return cell


@pytest.mark.parametrize("mark", [None, MARKS], ids=["plain", "marked"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_operator_is_the_loop(kind: Kind, mark: Tensor | None) -> None:
    for slow, fast in zip(*both_ways(random_cell(kind), mark), strict=True):
        close(fast, slow)


def test_an_operator_that_forgets_padding_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeded fault."""
    real = recurrent.recurrence
    monkeypatch.setattr(recurrent, "recurrence", lambda *a: real(*a[:6], a[6].clamp(min=1), a[7]))
    slow, fast = both_ways(random_cell(("lstm", "tanh", None)), MARKS)
    with pytest.raises(AssertionError):
        close(fast[0], slow[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_operator_traces_whole(kind: Kind) -> None:
    cell = random_cell(kind)
    x, mark = torch.randn(2, 5, 7), MARKS[:2, :5]
    expected = cell(x, None, mark)[0]
    traced = torch.compile(lambda x, mark: cell(x, None, mark)[0], fullgraph=True, backend="aot_eager")
    out = traced(x, mark)
    close(out, expected)
    out.sum().backward()
    assert cell.state.weight.grad is not None


def test_bfloat16_is_near() -> None:
    for kind in KINDS:
        cell = random_cell(kind)
        x = torch.randn(2, 12, 7)
        whole = cell(x, None, None)[0]
        close(cell(x.bfloat16(), None, None)[0].float(), whole, 0.1)
        close(cell(x.bfloat16(), None, torch.ones(2, 12))[0].float(), whole, 0.1)


# ------------------------------------------------------------------------------------------------ packed rows


@pytest.mark.parametrize("name", [*LANGUAGE, "both"])
def test_packed_rows_are_rows_alone(name: str) -> None:
    if name == "both":
        model = random(language(spec.Recurrent(cell="gru", hidden=DIM // 2, direction="both")))
    else:
        model = random(LANGUAGE[name])
    ids = tokens(3, 6)
    row = torch.cat([ids[0], ids[1, :4], ids[2], torch.zeros(3, dtype=torch.int64)]).unsqueeze(0)
    segments = torch.tensor([[1] * 6 + [2] * 4 + [3] * 6 + [0] * 3])
    out = model(row, segments=segments)
    close(out[0, :6], model(ids[:1])[0])
    close(out[0, 6:10], model(ids[1:2, :4])[0])
    close(out[0, 10:16], model(ids[2:])[0])


@pytest.mark.parametrize("name", PAIRS)
def test_packed_pairs_are_pairs_alone(name: str) -> None:
    model, ids, source = random(PAIRS[name]), tokens(2, 5), tokens(2, 7, seed=1)
    packed = model(
        torch.cat([ids[0], ids[1], torch.zeros(2, dtype=torch.int64)]).unsqueeze(0),
        segments=torch.tensor([[1] * 5 + [2] * 5 + [0] * 2]),
        source=torch.cat([source[0], source[1, :4], torch.zeros(1, dtype=torch.int64)]).unsqueeze(0),
        source_segments=torch.tensor([[1] * 7 + [2] * 4 + [0]]),
    )
    close(packed[0, :5], model(ids[:1], source=source[:1])[0])
    close(packed[0, 5:10], model(ids[1:], source=source[1:, :4])[0])
    padded = model(ids, source=source, source_segments=torch.tensor([[1] * 7, [1] * 4 + [0] * 3]))
    close(padded[1], model(ids[1:], source=source[1:, :4])[0])


# ------------------------------------------------------------------------------------------------ the papers


def cell_of(ours: Cell) -> nn.RNNCellBase:
    """torch's cell with our weights."""
    kind = {"rnn": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}[ours.kind]
    theirs = kind(ours.input.shape[1], ours.hidden, bias=ours.input.bias is not None)
    with torch.no_grad():
        theirs.weight_ih.copy_(ours.input.weight)  # type: ignore[operator, union-attr]
        theirs.weight_hh.copy_(ours.state.weight)  # type: ignore[operator, union-attr]
        if ours.input.bias is not None:
            theirs.bias_ih.copy_(ours.input.bias)  # type: ignore[operator, union-attr]
            theirs.bias_hh.copy_(ours.state.bias)  # type: ignore[operator, union-attr]
    return theirs


def decoded(layer: AttentiveLayer, y: Tensor, h: Tensor) -> Tensor:
    """The papers' decoders for one sequence: inputs y [T,D] and annotations h [S,E] → what is read out, [T,D]."""
    at = layer.spec
    half = h.shape[1] // 2
    ahead, back = (h[-1, :half], h[0, half:]) if layer.both else (h[-1], h[0])
    read = {"zeros": None, "last": ahead, "first": back, "ends": torch.cat([ahead, back])}[at.start]
    parts = len(layer.cells) * (2 if at.cell == "lstm" else 1)
    begin = torch.zeros(parts * at.hidden)
    if read is not None:
        assert layer.bridge is not None
        begin = torch.tanh(layer.bridge.weight @ read + layer.bridge.bias)
    states = list(begin.split(at.hidden))
    theirs = [cell_of(one) for one in layer.cells if isinstance(one, Cell)]
    each = len(states) // len(theirs)
    said, outs = torch.zeros(y.shape[1]), []

    def look(s: Tensor) -> Tensor:
        m = layer.memory
        if at.score == "additive":  # e_j = v tanh(W s + U h_j)
            assert m.query is not None
            assert m.key is not None
            assert m.score is not None
            e = torch.stack([m.score.weight[0] @ torch.tanh(m.query.weight @ s + m.key.weight @ hj) for hj in h])
        elif at.score == "general":  # s W h_j
            assert m.key is not None
            e = torch.stack([s @ m.key.weight @ hj for hj in h])
        else:
            e = h @ s
        return torch.softmax(e, 0) @ h

    for x in y:
        before = states[each * (len(theirs) - 1)]
        context = look(before) if at.look == "before" else None
        entering = {"before": (x, context), "after": (x,), "fed": (x, said)}[at.look]
        a = torch.cat([one for one in entering if one is not None])
        for n, cell in enumerate(theirs):
            old = [one.unsqueeze(0) for one in states[each * n : each * (n + 1)]]
            new = cell(a.unsqueeze(0), tuple(old) if each == 2 else old[0])
            new = new if each == 2 else (new,)
            states[each * n : each * (n + 1)] = [one[0] for one in new]
            a = new[0][0]
        context = look(a) if context is None else context
        if at.readout == "state":
            said = a
        elif at.readout == "tanh":  # tanh(W[c;h])
            assert layer.out is not None
            said = torch.tanh(layer.out.weight @ torch.cat([context, a]))
        else:  # t = U s' + V y + C c, max over pairs
            assert layer.out is not None
            said = (layer.out.weight @ torch.cat([before, x, context])).view(-1, 2).max(1).values
        outs.append(said)
    return torch.stack(outs)


@pytest.mark.parametrize("name", PAIRS)
def test_decoders_are_the_papers(name: str) -> None:
    model, ids, source = random(PAIRS[name], seed=4), tokens(2, 6), tokens(2, 5, seed=1)
    (layer,) = (module for module in model.modules() if isinstance(module, AttentiveLayer))
    encoded = model.encode_source(source)
    ours = model.hidden(ids, encoded=encoded)
    theirs = torch.stack([decoded(layer, y, h) for y, h in zip(model.embed.tokens(ids), encoded, strict=True)])
    close(ours, theirs)
    weights = torch.linspace(-1, 1, ours.numel()).view_as(ours)
    parameters = [p for name, p in model.named_parameters() if not name.startswith("heads.")]
    mine = torch.autograd.grad((ours * weights).sum(), parameters, retain_graph=True, allow_unused=True)
    yours = torch.autograd.grad((theirs * weights).sum(), parameters, allow_unused=True)
    for a, b in zip(mine, yours, strict=True):
        if b is not None and a is not None:
            close(a, b, 4 * BOUND)
    assert sum(b is not None for b in yours) > 8


def test_a_language_model_is_torchs() -> None:
    model = random(LANGUAGE["lstm"])
    theirs = nn.LSTM(DIM, DIM, num_layers=2, batch_first=True)
    theirs.load_state_dict(recurrent.to_torch([one.state_dict() for one in layers(model)]))
    ids = tokens(2, 7)
    table = model.embed.tokens.weight
    head = model.get_submodule("heads.language")
    close(model(ids), theirs(table[ids])[0] @ table.t() + head.get_parameter("bias"))


def layers(model: LanguageModel) -> list[RecurrentLayer]:
    return [module for module in model.modules() if isinstance(module, RecurrentLayer)]


def test_directions_apart_never_hear_of_each_other() -> None:
    """Peters et al. 2018 §3.1: two language models with one embedding and one head; §3.2: the mix."""
    model = random(bilm(), seed=2)
    ids = tokens(2, 7)
    table, head = model.embed.tokens.weight, model.get_submodule("heads.language").get_parameter("weight")
    ways = []
    for side, order in (("ahead", ids), ("back", ids.flip(1))):
        x = table[order]
        states = [x]
        for number, layer in enumerate(layers(model)):
            theirs = nn.LSTM(DIM, DIM + 5, proj_size=DIM, batch_first=True)
            own = {f"ahead.{n}": p for n, p in layer.get_submodule(side).state_dict().items()}
            theirs.load_state_dict(recurrent.to_torch([own]))
            x = theirs(x)[0] + (x if number else 0)
            states.append(x)
        ways.append([one if side == "ahead" else one.flip(1) for one in states])
    close(model(ids), torch.stack([way[-1] @ head.t() for way in ways], dim=2))
    mix = model.heads["mix"]
    shares, scale = mix.get_parameter("weights").softmax(0), mix.get_parameter("scale")
    expected = sum(s * torch.cat(pair, -1) for s, pair in zip(shares, zip(*ways, strict=True), strict=True))
    close(model.encode(ids), scale * expected)
    segments = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    close(model.encode(ids, segments=segments)[1, :4], model.encode(ids[1:, :4])[0])


# ------------------------------------------------------------------------------------------------ specs

WRONG = [
    (language(spec.Recurrent(hidden=DIM + 1)), "dim"),
    (language(spec.Recurrent(cell="gru", hidden=DIM, projection=4)), "projection"),
    (language(spec.Recurrent(cell="gru", hidden=DIM, activation="relu")), "activation"),
    (pair(spec.Attentive(hidden=DIM + 1, score="dot")), "dot"),
    (pair(spec.Attentive(hidden=DIM, score="dot", align=4)), "align"),
    (pair(spec.Attentive(hidden=DIM, readout="state")), "readout"),
    (pair(spec.Attentive(hidden=DIM, start="first"), both=False), "both ways"),
    (replace(PAIRS["luong-dot"], source=None), "source"),
    (replace(bilm(), heads=(spec.Language(directions=3),)), "directions"),
]


@pytest.mark.parametrize(("model", "about"), WRONG, ids=[about for _, about in WRONG])
def test_what_no_module_can_be_is_said(model: spec.Model, about: str) -> None:
    with pytest.raises(ConfigError, match=about):
        build(model)


def test_what_writes_and_what_does_not() -> None:
    assert all(model.causal for model in ALL.values())
    assert not bilm().causal
    assert not language(spec.Recurrent(hidden=DIM // 2, direction="both")).causal


def test_an_lstm_forgets_nothing_at_first() -> None:
    for cell in cells(make(LANGUAGE["lstm"])):
        assert cell.input.bias is not None
        assert cell.state.bias is not None
        total = (cell.input.bias + cell.state.bias).view(4, -1)
        assert total.tolist() == [[0.0] * DIM, [1.0] * DIM, [0.0] * DIM, [0.0] * DIM]
        assert 0 < float(cell.state.weight.detach().abs().max()) <= DIM**-0.5
    for model in (bilm(), *PAIRS.values()):
        assert all(bool(torch.isfinite(p).all()) for p in make(model).parameters())
