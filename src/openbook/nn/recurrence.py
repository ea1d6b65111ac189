"""A recurrent network over whole rows as one operator: the steps in a loop, everything else for all steps at once.

The products of the input are made before (`given`), so that a step is one small matrix product and a few functions of
numbers. The backward pass (Werbos 1990) needs only what a step's functions gave: all factors that do not depend on
later steps are made for the whole row first, so that a step backwards is one product and a few multiplications too, and
the gradient of the weights is one product over all steps. The definition is the step loop of `recurrent.py`.

    lstm   c = f·c' + i·g     h = o·tanh c                       i, f, o = σ(a), g = tanh(a),  a = given + W h'
    gru    h = n + z·(h' - n)     n = tanh(x + r·(W h' + b))     r, z = σ(given + W h' + b)
    rnn    h = tanh(given + W h') or relu

Symbols: T tokens, B rows, H hidden, P outputs (H without projection), G gates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from openbook.nn.packed import product

KINDS = ("tanh", "relu", "lstm", "gru")
Product = Callable[[Tensor], Tensor]


def _times(matrix: Tensor) -> Product:
    """x [B,in] → x · matrixᵀ [B,out] in fp32; matrix [out,in]. For few rows ours are the fastest in fp32."""
    if matrix.dtype == torch.float32:
        matrix = matrix.detach().contiguous()
        return lambda x: product(x, matrix, None)
    return lambda x: F.linear(x.to(matrix.dtype), matrix).float()


@torch.library.custom_op("openbook::recurrence", mutates_args=())
def recurrence(
    given: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    project: Tensor | None,
    hidden: Tensor,
    cell: Tensor,
    mark: Tensor | None,
    kind: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """given [T,B,G·H], weight [G·H,P], bias [G·H] (gru), project [P,H] (lstm), hidden [B,P] and cell [B,H] before.

    mark [T,B]: 0 leaves the state as it is, 1 goes on, 2 starts from zeros. Gives states [T,B,P], cells [T,B,H] and
    what the backward pass needs, all fp32. Without cells (not lstm) `cell` and the cells are empty.
    """
    tokens, rows, _ = given.shape
    size = weight.shape[0] // {"lstm": 4, "gru": 3}.get(kind, 1)
    given = given.float()
    outs = hidden.new_empty(tokens, rows, weight.shape[1], dtype=torch.float32)
    cells = outs.new_empty(tokens, rows, size if kind == "lstm" else 0)
    acts = outs.new_empty(tokens, rows, 4 * size if kind in ("lstm", "gru") else 0)
    _steps(given, _times(weight), bias, project, hidden.float(), cell.float(), mark, kind, outs, cells, acts)
    return outs, cells, acts


def _steps(
    given: Tensor,
    state: Product,
    bias: Tensor | None,
    project: Tensor | None,
    hidden: Tensor,
    cell: Tensor,
    mark: Tensor | None,
    kind: str,
    outs: Tensor,
    cells: Tensor,
    acts: Tensor,
) -> None:
    """The steps one after another, written into outs, cells and acts."""
    shown = None if project is None else _times(project)
    for t in range(len(given)):
        before, held = hidden, cell
        if mark is not None:
            going = (mark[t] != 2).unsqueeze(1)
            before, held = hidden * going, cell * going
        if kind == "lstm":
            torch.add(given[t], state(before), out=acts[t])
            new, cell_new = _lstm(held, acts[t], cells[t])
            new = new if shown is None else shown(new)
        elif kind == "gru":
            new, cell_new = _gru(given[t], state(before), bias, before, acts[t]), held
        else:
            new, cell_new = given[t] + state(before), held
            new = new.tanh_() if kind == "tanh" else new.relu_()
        if mark is not None:
            real = (mark[t] != 0).unsqueeze(1)
            new, cell_new = torch.where(real, new, hidden), torch.where(real, cell_new, cell)
            cells[t] = cell_new
        outs[t] = new
        hidden, cell = outs[t], cell_new


def _lstm(held: Tensor, acts: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """acts [B,4H] holds what goes into the gates, and then the gates."""
    size = held.shape[1]
    write_forget, new, read = acts.split([2 * size, size, size], dim=1)
    write_forget.sigmoid_()
    new.tanh_()
    read.sigmoid_()
    write, forget = write_forget.split(size, dim=1)
    cell = torch.mul(write, new, out=cells).addcmul_(forget, held)
    return cell.tanh().mul_(read), cell


def _gru(given: Tensor, said: Tensor, bias: Tensor | None, before: Tensor, acts: Tensor) -> Tensor:
    """acts [B,4H] gets r, z, n, and what the state says to n."""
    size = before.shape[1]
    if bias is not None:
        said = said + bias.float()
    gates, new, kept = acts.split([2 * size, size, size], dim=1)
    torch.add(given[:, : 2 * size], said[:, : 2 * size], out=gates).sigmoid_()
    kept.copy_(said[:, 2 * size :])
    reset, update = gates.split(size, dim=1)
    torch.addcmul(given[:, 2 * size :], reset, kept, out=new).tanh_()
    return torch.addcmul(new, update, before - new)


@recurrence.register_fake
def _(
    given: Tensor,
    weight: Tensor,
    bias: Tensor | None,  # noqa: ARG001
    project: Tensor | None,  # noqa: ARG001
    hidden: Tensor,
    cell: Tensor,  # noqa: ARG001
    mark: Tensor | None,  # noqa: ARG001
    kind: str,
) -> tuple[Tensor, Tensor, Tensor]:
    tokens, rows, _ = given.shape
    size = weight.shape[0] // {"lstm": 4, "gru": 3}.get(kind, 1)
    outs = hidden.new_empty(tokens, rows, weight.shape[1], dtype=torch.float32)
    cells = outs.new_empty(tokens, rows, size if kind == "lstm" else 0)
    return outs, cells, outs.new_empty(tokens, rows, 4 * size if kind in ("lstm", "gru") else 0)


# ---------------------------------------------------------------------------------------------- backwards


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    given, weight, bias, project, hidden, cell, mark, kind = inputs
    ctx.kind, ctx.dtype, ctx.biased = kind, given.dtype, bias is not None
    ctx.save_for_backward(weight, project, hidden, cell, mark, *output)
    ctx.set_materialize_grads(True)


def _backward(ctx: Any, to_outs: Tensor, to_cells: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    weight, project, hidden, cell, mark, outs, cells, acts = ctx.saved_tensors
    steps = backwards(to_outs, to_cells, weight, project, hidden, cell, mark, outs, cells, acts, ctx.kind)
    to_given, to_weight, to_bias, to_project, to_hidden, to_cell = steps
    return (
        to_given.to(ctx.dtype),
        to_weight.to(weight.dtype),
        to_bias.to(weight.dtype) if ctx.biased else None,
        None if project is None else to_project.to(project.dtype),
        to_hidden.to(hidden.dtype),
        to_cell.to(cell.dtype),
        None,
        None,
    )


@torch.library.custom_op("openbook::recurrence_backward", mutates_args=())
def backwards(
    to_outs: Tensor,
    to_cells: Tensor,
    weight: Tensor,
    project: Tensor | None,
    hidden: Tensor,
    cell: Tensor,
    mark: Tensor | None,
    outs: Tensor,
    cells: Tensor,
    acts: Tensor,
    kind: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of given, weight, bias, project, hidden and cell; empty where there is none."""
    before = torch.cat([hidden.float().unsqueeze(0), outs[:-1]])  # [T,B,P]
    real = going = None
    if mark is not None:
        real, going = ((mark != value).unsqueeze(-1).float() for value in (0, 2))
        before = before * going
    if kind == "lstm":
        held = torch.cat([cell.float().unsqueeze(0), cells[:-1]])
        held = held if going is None else held * going
        steps, to_project, to_hidden, to_cell = _lstm_back(
            to_outs, to_cells, weight, project, held, cells, acts, real, going
        )
        to_given, to_said, to_bias = steps, steps, before.new_empty(0)
    elif kind == "gru":
        to_given, to_said, to_hidden = _gru_back(to_outs, weight, before, acts, real, going)
        to_bias, to_project, to_cell = to_said.sum((0, 1)), before.new_empty(0), torch.zeros_like(cell)
    else:
        factor = 1 - outs * outs if kind == "tanh" else (outs > 0).float()
        to_given, to_hidden = _plain_back(to_outs, weight, factor, real, going)
        to_said, to_cell = to_given, torch.zeros_like(cell)
        to_bias, to_project = before.new_empty(0), before.new_empty(0)
    to_weight = _summed(to_said, before, weight.dtype)
    return to_given, to_weight, to_bias, to_project, to_hidden, to_cell


def _summed(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Σ over tokens and rows of left ⊗ right, in the dtype of the matrix."""
    return (left.flatten(0, 1).to(dtype).t() @ right.flatten(0, 1).to(dtype)).float()


def _lstm_back(
    to_outs: Tensor,
    to_cells: Tensor,
    weight: Tensor,
    project: Tensor | None,
    held: Tensor,
    cells: Tensor,
    acts: Tensor,
    real: Tensor | None,
    going: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    write, forget, new, read = acts.chunk(4, dim=-1)
    squashed = cells.tanh()
    factors = torch.empty_like(acts)  # what the gradient of a gate is multiplied by: of the cell, and of the output
    of_write, of_forget, of_new, of_read = factors.chunk(4, dim=-1)
    torch.mul(write - write * write, new, out=of_write)
    torch.mul(forget - forget * forget, held, out=of_forget)
    torch.mul(1 - new * new, write, out=of_new)
    torch.mul(read - read * read, squashed, out=of_read)
    through = read * (1 - squashed * squashed)
    steps = torch.empty_like(acts)
    tokens, rows, size = cells.shape
    to_out, to_cell = torch.zeros_like(to_outs[0]), torch.zeros_like(cells[0])
    said = torch.empty_like(to_outs) if project is not None else None
    back, shows = _times(weight.t()), None if project is None else _times(project.t())
    for t in reversed(range(tokens)):
        to_out, to_cell = to_out + to_outs[t], to_cell + to_cells[t]
        skipped_out = skipped_cell = None
        if real is not None:
            skipped_out, skipped_cell = to_out * (1 - real[t]), to_cell * (1 - real[t])
            to_out, to_cell = to_out * real[t], to_cell * real[t]
        shown = to_out
        if shows is not None and said is not None:
            said[t] = to_out
            shown = shows(to_out)
        to_cell = torch.addcmul(to_cell, shown, through[t])
        step = steps[t].view(rows, 4, size)
        factor = factors[t].view(rows, 4, size)
        torch.mul(factor[:, :3], to_cell.unsqueeze(1), out=step[:, :3])
        torch.mul(factor[:, 3], shown, out=step[:, 3])
        to_out, to_cell = back(steps[t]), to_cell * forget[t]
        if going is not None and skipped_out is not None and skipped_cell is not None:
            to_out, to_cell = to_out * going[t] + skipped_out, to_cell * going[t] + skipped_cell
    if project is None or said is None:
        return steps, steps.new_empty(0), to_out, to_cell
    to_project = _summed(said, read * squashed, project.dtype)
    return steps, to_project, to_out, to_cell


def _gru_back(
    to_outs: Tensor, weight: Tensor, before: Tensor, acts: Tensor, real: Tensor | None, going: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    reset, update, new, kept = acts.chunk(4, dim=-1)
    rows, size = before.shape[1:]
    of_new = (1 - update) * (1 - new * new)
    factors = torch.stack(
        [of_new * kept * (reset - reset * reset), (before - new) * (update - update * update), of_new * reset], dim=2
    )  # [T,B,3,H]
    steps, shown, back = torch.empty_like(factors), torch.empty_like(to_outs), _times(weight.t())
    to_out = torch.zeros_like(to_outs[0])
    for t in reversed(range(len(to_outs))):
        to_out = to_out + to_outs[t]
        skipped = None
        if real is not None:
            skipped, to_out = to_out * (1 - real[t]), to_out * real[t]
        shown[t] = to_out
        torch.mul(factors[t], to_out.unsqueeze(1), out=steps[t])
        to_out = to_out * update[t] + back(steps[t].view(rows, 3 * size))
        if going is not None and skipped is not None:
            to_out = to_out * going[t] + skipped
    said = steps.flatten(2)
    given = torch.cat([said[..., : 2 * size], shown * of_new], dim=-1)
    return given, said, to_out


def _plain_back(
    to_outs: Tensor, weight: Tensor, factor: Tensor, real: Tensor | None, going: Tensor | None
) -> tuple[Tensor, Tensor]:
    steps, to_out, back = torch.empty_like(to_outs), torch.zeros_like(to_outs[0]), _times(weight.t())
    for t in reversed(range(len(to_outs))):
        to_out = to_out + to_outs[t]
        skipped = None
        if real is not None:
            skipped, to_out = to_out * (1 - real[t]), to_out * real[t]
        torch.mul(factor[t], to_out, out=steps[t])
        to_out = back(steps[t])
        if going is not None and skipped is not None:
            to_out = to_out * going[t] + skipped
    return steps, to_out


@backwards.register_fake
def _(
    to_outs: Tensor,
    to_cells: Tensor,  # noqa: ARG001
    weight: Tensor,
    project: Tensor | None,
    hidden: Tensor,
    cell: Tensor,
    mark: Tensor | None,  # noqa: ARG001
    outs: Tensor,  # noqa: ARG001
    cells: Tensor,  # noqa: ARG001
    acts: Tensor,  # noqa: ARG001
    kind: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    tokens, rows, _ = to_outs.shape
    return (
        to_outs.new_empty(tokens, rows, weight.shape[0]),
        to_outs.new_empty(weight.shape),
        to_outs.new_empty(weight.shape[0]) if kind == "gru" else to_outs.new_empty(0),
        to_outs.new_empty(0) if project is None else to_outs.new_empty(project.shape),
        torch.empty_like(hidden, dtype=torch.float32),
        torch.empty_like(cell, dtype=torch.float32),
    )


recurrence.register_autograd(_backward, setup_context=_remember)
