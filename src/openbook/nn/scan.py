"""Linear recurrences along a row, each in one place: its definition, its fast forms, and the one choice between them.

    scan         h_t = decay_t · h_{t-1} + inputs_t, every state wanted
    selective    the same of a selective state space (Gu & Dao 2023, algorithm 2), read where it is made:
                 h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t x_t,  y_t = C_t h_t + D x_t, states in no memory but the last

`scan_reference` is the definition, one token after another. On the CPU `selective` is native/scan.cpp, with its
gradients: it keeps one state in `BORDER` and makes the others again. On a GPU scan_triton.py does the same. Without a
compiler, or without Triton, it is `selective_reference`. What a row gets from the native one depends on this row alone,
however it is cut. Symbols: see shapes.py; C are channels, G the groups of them that share B and C of the paper (`write`
and `read`).
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from openbook import log
from openbook.native import scan as native

CHUNK = 64  # tokens, on a GPU
BORDER = 32  # tokens from one kept state to the next, for the backward pass of the native scan,
STRETCH = 16  # and of Triton's


def scan_reference(decay: Tensor, inputs: Tensor, start: Tensor) -> Tensor:
    """All states of h_t = decay_t · h_{t-1} + inputs_t. decay and inputs [B,T,C,N], start [B,C,N] → [B,T,C,N]."""
    state, states = start, []
    for kept, new in zip(decay.unbind(1), inputs.unbind(1), strict=True):
        state = kept * state + new
        states.append(state)
    return torch.stack(states, dim=1)


def scan(decay: Tensor, inputs: Tensor, start: Tensor) -> Tensor:
    """The same as `scan_reference`, as one operator that keeps nothing but its decays and its states; complex too."""
    if decay.shape[1] == 1:
        return decay * start.unsqueeze(1) + inputs
    return _scan(decay, inputs, start)


@torch.library.custom_op("openbook::scan", mutates_args=())
def _scan(decay: Tensor, inputs: Tensor, start: Tensor) -> Tensor:
    return run(decay, inputs, start, CHUNK if decay.is_cuda else decay.shape[1])


def run(decay: Tensor, inputs: Tensor, start: Tensor, chunk: int) -> Tensor:
    """The recurrence in place: one after another inside a chunk, all chunks at once, then one carry between chunks.

    One chunk is least work and is right for a processor; more are fewer steps and are right for a GPU.
    """
    tokens = decay.shape[1]
    if tokens <= chunk:
        states, state = torch.empty_like(inputs), start
        for step in range(tokens):
            torch.addcmul(inputs[:, step], decay[:, step], state, out=states[:, step])
            state = states[:, step]
        return states
    extra = -tokens % chunk
    decay = F.pad(decay, (0, 0, 0, 0, 0, extra), value=1.0).unflatten(1, (-1, chunk))  # [B,T/chunk,chunk,C,N]
    inputs = F.pad(inputs, (0, 0, 0, 0, 0, extra)).unflatten(1, (-1, chunk))
    rows, none = decay.shape[:2], start.new_zeros(()).expand(start.shape[0] * decay.shape[1], *start.shape[1:])
    inside = run(decay.flatten(0, 1), inputs.flatten(0, 1), none, chunk).unflatten(0, rows)
    reach = decay.cumprod(dim=2)
    last = run(reach[:, :, -1], inside[:, :, -1], start, decay.shape[1])  # [B,T/chunk,C,N]
    carried = torch.cat([start.unsqueeze(1), last[:, :-1]], dim=1)
    return torch.addcmul(inside, reach, carried.unsqueeze(2)).flatten(1, 2)[:, :tokens].contiguous()


@_scan.register_fake
def _(decay: Tensor, inputs: Tensor, start: Tensor) -> Tensor:  # noqa: ARG001
    return torch.empty_like(inputs)


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    decay, _, start = inputs
    ctx.save_for_backward(decay, output, start)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same recurrence, backwards in time: what a state is worth later, through the decay of the next token."""
    decay, states, start = ctx.saved_tensors
    later = F.pad(decay[:, 1:], (0, 0, 0, 0, 0, 1)).flip(1).conj().resolve_conj()
    to_inputs = _scan(later, grad.flip(1), torch.zeros_like(start)).flip(1)
    before = torch.cat([start.unsqueeze(1), states[:, :-1]], dim=1)
    return to_inputs * before.conj(), to_inputs, to_inputs[:, 0] * decay[:, 0].conj()


_scan.register_autograd(_backward, setup_context=_remember)


@torch.library.custom_op("openbook::chain", mutates_args=())
def chain(kept: Tensor, inputs: Tensor, start: Tensor) -> Tensor:
    """All states of S_c = kept_c · S_{c-1} + inputs_c. kept [B,c,H,K,K], inputs [B,c,H,K,V], start [B,H,K,V]."""
    state, states = start, []
    for number in range(kept.shape[1]):
        state = inputs[:, number] + kept[:, number] @ state
        states.append(state)
    return torch.stack(states, dim=1)


@chain.register_fake
def _(kept: Tensor, inputs: Tensor, start: Tensor) -> Tensor:  # noqa: ARG001
    return inputs.new_empty(inputs.shape)


def _back_chain(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    kept, states, start = ctx.saved_tensors
    across = kept.transpose(-1, -2)
    later = torch.cat([across[:, 1:], torch.zeros_like(across[:, :1])], dim=1).flip(1)
    to_inputs = chain(later, grad.flip(1), torch.zeros_like(start)).flip(1)
    before = torch.cat([start.unsqueeze(1), states[:, :-1]], dim=1)
    return to_inputs @ before.transpose(-1, -2), to_inputs, across[:, 0] @ to_inputs[:, 0]


chain.register_autograd(_back_chain, setup_context=_remember)


# ------------------------------------------------------------------------------------------------ selective


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _compiled(device: str) -> bool:
    """Whether there is an operator for such a device."""
    return native.library() is not None if device == "cpu" else device == "cuda" and _gpu_kernels() is not None


@functools.cache
def _gpu_kernels() -> Any:
    try:
        from openbook.nn import scan_triton
    except ImportError:
        log.note("Triton is not installed: scans on the GPU are slow.", once="scan triton")
        return None
    return scan_triton


def selective(
    x: Tensor,
    step: Tensor,
    write: Tensor,
    read: Tensor,
    decay: Tensor,
    skip: Tensor,
    mark: Tensor | None,
    start: Tensor,
) -> tuple[Tensor, Tensor]:
    """The recurrence with its reading: y [B,T,C] and the last state [B,N,C], in fp32. The one choice of how.

    x and step [B,T,C]; write and read [B,T,G,N]; decay [N,C], or [1,C] where all states of a channel decay alike, below
    zero; skip [C]; start [B,N,C]. mark [B,T]: 0 leaves the state as it is, 1 goes on, 2 starts from nothing.
    """
    given = x, step, write, read, decay, skip, start
    x, step, write, read, decay, skip, start = (one.float() for one in given)
    if not _compiled(x.device.type):
        return selective_reference(x, step, write, read, decay, skip, mark, start)
    flags = None if mark is None else mark.to(torch.int8)
    learns = torch.is_grad_enabled() and any(one.requires_grad for one in given)
    if learns or x.is_cuda or torch.compiler.is_compiling():
        y, last, _ = _selective(x, step, write, read, decay, skip, flags, start)
        return y, last
    return _forward((x, step, write, read, decay, skip), flags, start, None)


def selective_reference(
    x: Tensor,
    step: Tensor,
    write: Tensor,
    read: Tensor,
    decay: Tensor,
    skip: Tensor,
    mark: Tensor | None,
    start: Tensor,
    states: Any = scan,
) -> tuple[Tensor, Tensor]:
    """The definition, with all states [B,T,C,N] in memory; `states` makes them."""
    size = x.shape[2] // write.shape[2]
    write, read = (one.repeat_interleave(size, dim=2) for one in (write, read))  # [B,T,C,N]
    kept = torch.exp(step.unsqueeze(-1) * decay.t())
    inputs = (step * x).unsqueeze(-1) * write
    if mark is not None:
        flags = mark[:, :, None, None]
        kept = torch.where(flags != 0, kept, 1.0).masked_fill(flags == 2, 0.0)
        inputs = inputs * (flags != 0)
    found = states(kept.expand_as(inputs), inputs, start.transpose(1, 2))  # [B,T,C,N]
    return (found * read).sum(dim=-1) + x * skip, found[:, -1].transpose(1, 2)


def _problem(
    tensors: list[Tensor], mark: Tensor | None, kept: Tensor, y: Tensor, borders: Tensor | None
) -> native.Scan:
    """What scan.cpp wants; all contiguous fp32, and held by the caller."""
    x, _, write, _, decay, _ = tensors
    rows, tokens, channels = x.shape
    groups, states = write.shape[2:]
    values = native.Scan(rows, tokens, channels, states, groups, decay.shape[0], BORDER)
    for name, tensor in zip(("x", "step", "write", "read", "decay", "skip"), tensors, strict=True):
        setattr(values, name, tensor.data_ptr())
    values.mark = None if mark is None else mark.data_ptr()
    values.kept, values.y = kept.data_ptr(), y.data_ptr()
    values.borders = None if borders is None else borders.data_ptr()
    return values


def _done(status: int) -> None:
    if status:
        raise MemoryError("no memory for the working space of a scan")


def _forward(
    inputs: tuple[Tensor, ...], mark: Tensor | None, start: Tensor, borders: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`inputs` are x, step, write, read, decay and skip of `selective`."""
    library = native.library()
    assert library is not None
    tensors = [one.contiguous() for one in inputs]
    mark = None if mark is None else mark.contiguous()
    last, y = start.clone(memory_format=torch.contiguous_format), torch.empty_like(tensors[0])
    values = _problem(tensors, mark, last, y, borders)
    _done(library.openbook_scan_forward(ctypes.addressof(values), torch.get_num_threads()))
    return y, last


def _borders(x: Tensor, write: Tensor) -> Tensor:
    stretch = STRETCH if x.is_cuda else BORDER
    return x.new_empty(x.shape[0], -(-x.shape[1] // stretch), write.shape[3], x.shape[2])


@torch.library.custom_op("openbook::selective_scan", mutates_args=())
def _selective(
    x: Tensor,
    step: Tensor,
    write: Tensor,
    read: Tensor,
    decay: Tensor,
    skip: Tensor,
    mark: Tensor | None,
    start: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state, and the states before each stretch [B,T/BORDER,N,C], of which the others are made again."""
    if x.is_cuda:
        done: tuple[Tensor, Tensor, Tensor] = _gpu_kernels().forward(x, step, write, read, decay, skip, mark, start)
        return done
    borders = _borders(x, write)
    y, last = _forward((x, step, write, read, decay, skip), mark, start, borders)
    return y, last, borders


@_selective.register_fake
def _(
    x: Tensor,
    step: Tensor,  # noqa: ARG001
    write: Tensor,
    read: Tensor,  # noqa: ARG001
    decay: Tensor,  # noqa: ARG001
    skip: Tensor,  # noqa: ARG001
    mark: Tensor | None,  # noqa: ARG001
    start: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    borders = _borders(x, write)
    return x.new_empty(x.shape), start.new_empty(start.shape), borders


@torch.library.custom_op("openbook::selective_scan_back", mutates_args=())
def _selective_back(
    x: Tensor,
    step: Tensor,
    write: Tensor,
    read: Tensor,
    decay: Tensor,
    skip: Tensor,
    mark: Tensor | None,
    borders: Tensor,
    to_y: Tensor,
    to_last: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, step, write, read, decay, skip and start."""
    if x.is_cuda:
        found_there: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor] = _gpu_kernels().backward(
            x, step, write, read, decay, skip, mark, borders, to_y, to_last
        )
        return found_there
    library = native.library()
    assert library is not None
    tensors = [one.contiguous() for one in (x, step, write, read, decay, skip)]
    mark, to_y = None if mark is None else mark.contiguous(), to_y.contiguous()
    carry, threads = to_last.clone(memory_format=torch.contiguous_format), torch.get_num_threads()
    values = _problem(tensors, mark, carry, to_y, borders.contiguous())
    count = library.openbook_scan_threads(ctypes.addressof(values), threads)
    to_x, to_step = torch.empty_like(tensors[0]), torch.empty_like(tensors[0])
    to_write, to_read = (write.new_zeros(count, *write.shape) for _ in range(2))
    to_decay, to_skip = decay.new_zeros(len(x), *decay.shape), skip.new_zeros(len(x), *skip.shape)
    found = (to_y, carry, to_x, to_step, to_write, to_read, to_decay, to_skip)
    back = native.Back(*(one.data_ptr() for one in found))
    _done(library.openbook_scan_backward(ctypes.addressof(values), ctypes.addressof(back), threads))
    return to_x, to_step, to_write.sum(0), to_read.sum(0), to_decay.sum(0), to_skip.sum(0), carry


@_selective_back.register_fake
def _(
    x: Tensor,
    step: Tensor,
    write: Tensor,
    read: Tensor,
    decay: Tensor,
    skip: Tensor,
    mark: Tensor | None,  # noqa: ARG001
    borders: Tensor,  # noqa: ARG001
    to_y: Tensor,  # noqa: ARG001
    to_last: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    x, step, write, read, decay, skip, last = (
        one.new_empty(one.shape) for one in (x, step, write, read, decay, skip, to_last)
    )
    return x, step, write, read, decay, skip, last


def _remember_selective(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *floats, mark, _ = inputs
    ctx.marked = mark is not None
    ctx.save_for_backward(*floats, output[2], *([mark] if ctx.marked else []))
    ctx.set_materialize_grads(True)


def _back_selective(ctx: Any, to_y: Tensor, to_last: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *floats, borders = ctx.saved_tensors[:7]
    mark = ctx.saved_tensors[7] if ctx.marked else None
    *found, to_start = _selective_back(*floats, mark, borders, to_y, to_last)
    return *found, None, to_start


_selective.register_autograd(_back_selective, setup_context=_remember_selective)
