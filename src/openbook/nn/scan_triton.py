# mypy: ignore-errors
"""The selective scan on a GPU: `selective_reference` in scan.py as Triton kernels, with its gradients.

A program takes one row and `LANES` channels and walks the row in chunks of `CHUNK` tokens: inside a chunk all states at
once, by an associative scan (Gu & Dao 2023, §3.3.2), between chunks the last one. Nothing of size [B,T,C,N] is written:
the forward pass keeps the state before each chunk, the backward pass makes a chunk's states again and walks back.
Loaded only where tensors lie on a GPU; the tests run it in Triton's interpreter. Symbols: see scan.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from openbook.nn.scan import STRETCH as CHUNK

LANES = 16


def forward(
    x: Tensor,
    step: Tensor,
    write: Tensor,
    read: Tensor,
    decay: Tensor,
    skip: Tensor,
    mark: Tensor | None,
    start: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """y [B,T,C], the last state [B,N,C] and the states before each chunk [B,T/CHUNK,N,C]; see `scan.selective`."""
    given = _contiguous(x, step, write, read, decay, skip)
    rows, tokens, channels = x.shape
    groups, states = write.shape[2:]
    chunks = triton.cdiv(tokens, CHUNK)
    y, last = torch.empty_like(given[0]), torch.empty_like(start, memory_format=torch.contiguous_format)
    borders = x.new_empty(rows, chunks, states, channels)
    _forward[rows, groups, triton.cdiv(channels // groups, LANES)](
        *given, _flags(mark, x), start.contiguous(), y, last, borders, *_sizes(x, write, decay), mark is not None,
        triton.next_power_of_2(states), CHUNK, LANES,
    )  # fmt: skip
    return y, last, borders


def backward(
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
    given = _contiguous(x, step, write, read, decay, skip)
    rows, tokens, channels = x.shape
    groups, states = write.shape[2:]
    blocks = triton.cdiv(channels // groups, LANES)
    to_x, to_step = torch.empty_like(given[0]), torch.empty_like(given[0])
    to_write, to_read = (x.new_zeros(blocks, rows, tokens, groups, states) for _ in range(2))  # summed in one order
    to_decay, to_skip = x.new_zeros(rows, *decay.shape), x.new_zeros(rows, channels)
    carry = to_last.clone(memory_format=torch.contiguous_format)
    _backward[rows, groups, blocks](
        *given, _flags(mark, x), borders.contiguous(), to_y.contiguous(), carry, to_x, to_step, to_write, to_read,
        to_decay, to_skip, *_sizes(x, write, decay), mark is not None, triton.next_power_of_2(states), CHUNK, LANES,
    )  # fmt: skip
    return to_x, to_step, to_write.sum(0), to_read.sum(0), to_decay.sum(0), to_skip.sum(0), carry


def _contiguous(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(one.contiguous() for one in tensors)


def _flags(mark: Tensor | None, x: Tensor) -> Tensor:
    """Marks as the kernels want them; any memory where there are none."""
    return x if mark is None else mark.to(torch.int32).contiguous()


def _sizes(x: Tensor, write: Tensor, decay: Tensor) -> tuple[int, ...]:
    return x.shape[1], x.shape[2], write.shape[2], write.shape[3], decay.shape[0]


@triton.jit
def _after(decay, states, later, inputs):
    """Two stretches of tokens, one behind the other, as one."""
    return later * decay, later * states + inputs


@triton.jit
def _chunk(
    X, STEP, WRITE, MARK, row, group, first, c, d, n, live, T, C, G, N, MARKED: tl.constexpr, L: tl.constexpr
):  # fmt: skip
    """What one chunk of tokens says: where it lies, and decay and inputs [L,c,n]."""
    t = first + tl.arange(0, L)
    here = (t < T)[:, None] & live[None, :]
    at = (row * T + t)[:, None] * C + c[None, :]  # [L,c]
    x = tl.load(X + at, here, 0.0)
    step = tl.load(STEP + at, here, 0.0)
    flag = tl.full((L,), 1, tl.int32)
    if MARKED:
        flag = tl.load(MARK + row * T + t, t < T, 0)
        step = tl.where((flag != 0)[:, None], step, 0.0)
    shared = ((row * T + t) * G + group)[:, None] * N + n[None, :]  # [L,n]
    inside = (t < T)[:, None] & (n < N)[None, :]
    write = tl.load(WRITE + shared, inside, 0.0)
    kept = tl.exp(step[:, :, None] * d[None, :, :])
    kept = tl.where((flag == 2)[:, None, None], 0.0, kept)
    inputs = (step * x)[:, :, None] * write[:, None, :]
    return x, step, flag, at, here, shared, inside, write, kept, inputs


@triton.jit
def _decays(DECAY, c, n, live, C, N, D):
    """decay [c,n]; one for all states where there is but one."""
    place = tl.where(D == 1, 0, n)
    return tl.load(DECAY + place[None, :] * C + c[:, None], live[:, None] & (n < N)[None, :], 0.0)


@triton.jit
def _forward(
    X, STEP, WRITE, READ, DECAY, SKIP, MARK, START, Y, LAST, BORDERS, T, C, G, N, D,
    MARKED: tl.constexpr, STATES: tl.constexpr, L: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    row, group, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    size = C // G
    inner = block * LANES + tl.arange(0, LANES)
    live, c, n = inner < size, group * size + inner, tl.arange(0, STATES)
    full = live[:, None] & (n < N)[None, :]
    d = _decays(DECAY, c, n, live, C, N, D)
    skip = tl.load(SKIP + c, live, 0.0)
    place = n[None, :] * C + c[:, None]
    h = tl.load(START + row * N * C + place, full, 0.0)  # [c,n]
    chunks = tl.cdiv(T, L)
    for number in range(chunks):
        tl.store(BORDERS + (row * chunks + number) * N * C + place, h, full)
        x, _, _, at, here, shared, inside, _, kept, inputs = _chunk(
            X, STEP, WRITE, MARK, row, group, number * L, c, d, n, live, T, C, G, N, MARKED, L
        )
        reach, states = tl.associative_scan((kept, inputs), 0, _after)
        states = states + reach * h[None, :, :]
        read = tl.load(READ + shared, inside, 0.0)
        tl.store(Y + at, tl.sum(states * read[:, None, :], 2) + x * skip[None, :], here)
        last = tl.minimum(T - number * L, L) - 1
        h = tl.sum(tl.where((tl.arange(0, L) == last)[:, None, None], states, 0.0), 0)
    tl.store(LAST + row * N * C + place, h, full)


@triton.jit
def _backward(
    X, STEP, WRITE, READ, DECAY, SKIP, MARK, BORDERS, TO_Y, CARRY, TO_X, TO_STEP, TO_WRITE, TO_READ, TO_DECAY, TO_SKIP,
    T, C, G, N, D, MARKED: tl.constexpr, STATES: tl.constexpr, L: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    row, group, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    size, rows = C // G, tl.num_programs(0)
    inner = block * LANES + tl.arange(0, LANES)
    live, c, n = inner < size, group * size + inner, tl.arange(0, STATES)
    full = live[:, None] & (n < N)[None, :]
    d = _decays(DECAY, c, n, live, C, N, D)
    skip = tl.load(SKIP + c, live, 0.0)
    place = n[None, :] * C + c[:, None]
    g = tl.load(CARRY + row * N * C + place, full, 0.0)  # of the state behind the chunk
    to_decay = tl.zeros((LANES, STATES), tl.float32)
    to_skip = tl.zeros((LANES,), tl.float32)
    chunks = tl.cdiv(T, L)
    i = tl.arange(0, L)
    for back in range(chunks):
        number = chunks - 1 - back
        h = tl.load(BORDERS + (row * chunks + number) * N * C + place, full, 0.0)
        x, step, flag, at, here, shared, inside, write, kept, inputs = _chunk(
            X, STEP, WRITE, MARK, row, group, number * L, c, d, n, live, T, C, G, N, MARKED, L
        )
        reach, states = tl.associative_scan((kept, inputs), 0, _after)
        states = states + reach * h[None, :, :]
        dy = tl.load(TO_Y + at, here, 0.0)
        read = tl.load(READ + shared, inside, 0.0)
        wanted = dy[:, :, None] * read[:, None, :]
        last = tl.minimum(T - number * L, L) - 1
        wanted = wanted + tl.where((i == last)[:, None, None], g[None, :, :], 0.0)
        # The decay of the next token stands beside this one's: loaded again, one token on.
        _, _, _, _, _, _, _, _, later, _ = _chunk(
            X, STEP, WRITE, MARK, row, group, number * L + 1, c, d, n, live, T, C, G, N, MARKED, L
        )
        later = tl.where((i >= last)[:, None, None], 1.0, later)
        _, grads = tl.associative_scan((later, wanted), 0, _after, reverse=True)
        into = tl.sum(grads * write[:, None, :], 2)  # of step · x
        # What a token's decay multiplied is its state less its input; where it decays to nothing nothing learns.
        power = grads * (states - inputs)
        to_step = into * x + tl.sum(power * d[None, :, :], 2)
        to_step = tl.where((flag != 0)[:, None], to_step, 0.0)
        tl.store(TO_STEP + at, to_step, here)
        tl.store(TO_X + at, into * step + dy * skip[None, :], here)
        part = block * rows * T * G * N
        tl.store(TO_WRITE + part + shared, tl.sum(grads * (step * x)[:, :, None], 1), inside)
        tl.store(TO_READ + part + shared, tl.sum(states * dy[:, :, None], 1), inside)
        to_decay += tl.sum(power * step[:, :, None], 0)
        to_skip += tl.sum(dy * x, 0)
        g = tl.sum(tl.where((i == 0)[:, None, None], grads * kept, 0.0), 0)
    tl.store(CARRY + row * N * C + place, g, full)
    tl.store(TO_SKIP + row * C + c, to_skip, live)
    if D == 1:
        tl.store(TO_DECAY + row * C + c, tl.sum(to_decay, 1), live)
    else:
        tl.store(TO_DECAY + row * N * C + place, to_decay, full)
