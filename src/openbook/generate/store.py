"""What a running engine keeps of its sequences: pages of keys and values, slots of recurrent state, pages of sources.

    group    layers whose keys live equally long (one window) share page numbers: page p of a group is page p of each of
             its layers
    slot     the recurrent state of a sequence, one tensor for each declared shape and layer
    source   keys and values of an encoder's output, in pages of a group of its own

One budget of bytes holds for all of it and is kept by `pages.Pool`, which counts and knows no tensor; here address
space is reserved for the most pages a group could ever have, and memory is touched only where pages are written.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openbook.errors import Refusal
from openbook.generate.plan import Group, Shape
from openbook.nn.model import LanguageModel
from openbook.nn.paged import Layout, Pages
from openbook.nn.state import Declaration, PerSequence, PerSource, PerToken

PAGE = 32  # tokens


class Store:
    """The tensors behind the pages and slots of `model`, within `memory` bytes."""

    def __init__(self, model: LanguageModel, memory: int, dtype: torch.dtype, page: int = PAGE) -> None:
        self.states = model.states
        self.page = page
        self.device = model.device
        self.windows = tuple(dict.fromkeys(s.window for s in self.states if isinstance(s, PerToken)))
        self.group_of: dict[int, int] = {}  # layer → its group; sources have none
        self.layouts: dict[int, Layout] = {}
        for index, state in enumerate(self.states):
            if isinstance(state, PerToken):
                self.group_of[index] = self.windows.index(state.window)
            if not isinstance(state, PerSequence):
                self.layouts[index] = layout_of(state, page, dtype)
        self.shape = self._shape()
        self.pages: dict[int, Pages] = {}
        for index, layout in self.layouts.items():
            group = self.shape.groups[self.group_of[index]] if index in self.group_of else self.shape.source
            assert group is not None
            self.pages[index] = Pages(layout, max(1, memory // group.nbytes), self.device)
        self.slots: dict[int, tuple[Tensor, ...]] = {}
        count = memory // self.shape.slot_bytes if self.shape.slot_bytes else 0
        for index, state in enumerate(self.states):
            if isinstance(state, PerSequence):
                self.slots[index] = tuple(torch.empty(count, *shape, device=self.device) for shape in state.shapes)

    def _shape(self) -> Shape:
        totals = [0] * len(self.windows)
        source = 0
        for index, layout in self.layouts.items():
            if index in self.group_of:
                totals[self.group_of[index]] += layout.nbytes
            else:
                source += layout.nbytes
        groups = tuple(
            Group(name="full" if window is None else f"window {window}", window=window, nbytes=total)
            for window, total in zip(self.windows, totals, strict=True)
        )
        recurrent = [state for state in self.states if isinstance(state, PerSequence)]
        numbers = sum(_product(shape) for state in recurrent for shape in state.shapes)
        return Shape(
            page=self.page,
            groups=groups,
            slot_bytes=4 * numbers,
            source=Group(name="source", window=None, nbytes=source) if source else None,
        )

    def copy_pages(self, copies: Sequence[tuple[int, int, int]]) -> None:
        """(group, source, target) each: whole pages in every layer of the group, one after the other."""
        for group, source, target in copies:
            for index, own in self.group_of.items():
                if own == group:
                    self.pages[index].copy([source], [target])

    def copy_slots(self, copies: Sequence[tuple[int, int]]) -> None:
        """(source, target) each, one after the other; source -1: zeros, for sequences that begin."""
        for source, target in copies:
            for tensors in self.slots.values():
                for tensor in tensors:
                    tensor[target] = tensor[source] if source >= 0 else 0


def layout_of(state: Declaration, page: int, dtype: torch.dtype) -> Layout:
    """What a page of a layer is."""
    if not isinstance(state, PerToken | PerSource):
        raise Refusal(f"A layer that keeps {type(state).__name__} has no pages.")
    return Layout(
        kv_heads=state.kv_heads,
        key_dim=state.key_dim,
        value_dim=state.value_dim,
        page=page,
        dtype=dtype,
        latent=isinstance(state, PerToken) and state.latent,
    )


def _product(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
