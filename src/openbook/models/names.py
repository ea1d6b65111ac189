"""Names as data: a table says which published tensor is which of ours, and is run both ways.

An entry pairs two patterns. `{i}` stands for a block's number, `{e}` for an expert's, `{all}` for anything.
An entry names a whole parameter, or a module and then stands for its `.weight` and `.bias`. What differs in layout is
said by the entry's fields.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Read = Callable[[str], Tensor]
SUFFIXES = (".weight", ".bias", "")


@dataclass(frozen=True)
class Part:
    """Which rows of a fused matrix (or bias) are ours: the part `which` of those that it is made of.

    `shares` are the sizes of the parts, in proportion: (1, 1) for gate and up, (heads, kv_heads, kv_heads) for q, k and
    v. With `groups` the rows are so many equal groups, each of all parts: q, k and v of one head after the other.
    """

    which: int
    shares: tuple[int, ...]
    groups: int = 1

    def take(self, whole: Tensor) -> Tensor:
        """Our rows of `whole` [outputs,..]. Raises RuntimeError where its rows are no such groups."""
        per, left = divmod(whole.shape[0], self.groups * sum(self.shares))
        if left:
            raise RuntimeError(f"{whole.shape[0]} rows are not {self.groups} groups of {self.shares}")
        grouped = whole.unflatten(0, (self.groups, -1))  # [groups, rows of a group, ..]
        return grouped.narrow(1, per * sum(self.shares[: self.which]), per * self.shares[self.which]).flatten(0, 1)

    def join(self, parts: list[Tensor]) -> Tensor:
        """The whole, of all its parts in order: the inverse of `take`."""
        return torch.cat([part.unflatten(0, (self.groups, -1)) for part in parts], dim=1).flatten(0, 1)


@dataclass(frozen=True)
class Name:
    """`theirs` is the published pattern, `ours` the logical one.

    transpose: theirs is [in,out]. part: ours are these rows of theirs along its outputs; (k, n) is the k-th of n equal
    parts. insert: theirs has one more dimension of size 1 there. An `{e}` in `theirs`: ours stacks them all. stacked:
    theirs are stacked already, [E,..] as ours; the rest is said of each. fold: theirs are stacked along their rows, so
    many of them.
    """

    theirs: str
    ours: str
    transpose: bool = False
    part: Part | tuple[int, int] | None = None
    insert: int | None = None
    stacked: bool = False
    fold: int = 0

    @property
    def rows(self) -> Part | None:
        """`part` in full."""
        return Part(self.part[0], (1,) * self.part[1]) if isinstance(self.part, tuple) else self.part


def fused(
    theirs: str,
    ours: Iterable[str],
    shares: Iterable[int],
    groups: int = 1,
    *,
    transpose: bool = False,
    stacked: bool = False,
) -> tuple[Name, ...]:
    """Entries for one published matrix that is several of ours, in the order of its rows: see `Part` and `Name`."""
    sizes = tuple(shares)
    parts = ((own, Part(which, sizes, groups)) for which, own in enumerate(ours))
    return tuple(Name(theirs, own, transpose, part, stacked=stacked) for own, part in parts)


@dataclass(frozen=True)
class Place:
    """Where one of our parameters is published: an entry and the names with all numbers filled in."""

    entry: Name
    theirs: tuple[str, ...]

    def read(self, read: Read) -> Tensor:
        """Our tensor from theirs. Raises RuntimeError where they do not fit together.

        Where the layout differs it is a copy, and `read` may give each of theirs in the same memory.
        """
        first = self._one(read(self.theirs[0]))
        if self.as_stored:
            return first
        if "{e}" not in self.entry.theirs:
            return first.clone(memory_format=torch.contiguous_format)
        stacked = first.new_empty(len(self.theirs), *first.shape)
        for number, name in enumerate(self.theirs):
            piece = self._one(read(name)) if number else first
            if piece.shape != stacked.shape[1:]:
                raise RuntimeError(f"{name} has shape {tuple(piece.shape)}, not {tuple(stacked.shape[1:])}")
            stacked[number] = piece
        return stacked

    @property
    def as_stored(self) -> bool:
        """Whether ours is theirs, in the same layout."""
        return not (self.entry.transpose or self.entry.part or "{e}" in self.entry.theirs)

    def _one(self, tensor: Tensor) -> Tensor:
        first = int(self.entry.stacked)  # the dimension of the outputs
        if self.entry.fold:
            tensor = tensor.unflatten(0, (self.entry.fold, -1))
        if self.entry.transpose and tensor.ndim == 2 + first:
            tensor = tensor.mT
        if (rows := self.entry.rows) is not None:
            tensor = rows.take(tensor.movedim(first, 0)).movedim(0, first)
        return tensor if self.entry.insert is None else tensor.squeeze(self.entry.insert)


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(re.escape(text).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{all\}", r"(?P<all>.+)"))


def locate(table: Iterable[Name], shapes: Mapping[str, torch.Size]) -> dict[str, Place]:
    """For each of our parameters, the place it is published at. A parameter without one is our own mistake."""
    compiled = [(entry, _pattern(entry.ours)) for entry in table]
    return {name: _place(compiled, name, shape) for name, shape in shapes.items()}


def _place(compiled: list[tuple[Name, re.Pattern[str]]], name: str, shape: torch.Size) -> Place:
    for entry, pattern in compiled:
        for suffix in SUFFIXES:
            if not name.endswith(suffix):
                continue
            found = pattern.fullmatch(name[: len(name) - len(suffix)] if suffix else name)
            if found:
                filled = entry.theirs + suffix
                for key, value in found.groupdict().items():
                    filled = filled.replace("{" + key + "}", value)
                count = shape[0] if "{e}" in filled else 1
                return Place(entry, tuple(filled.replace("{e}", str(e)) for e in range(count)))
    raise AssertionError(f"no published name for {name}")


def publish(places: Mapping[str, Place], ours: Mapping[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
    """The published tensors, made one at a time when called for: the inverse of `Place.read`."""
    sources: dict[str, list[tuple[Place, str, int]]] = {}
    for name, place in places.items():
        for number, theirs in enumerate(place.theirs):
            sources.setdefault(theirs, []).append((place, name, number))
    return {theirs: _maker(parts, ours) for theirs, parts in sources.items()}


def _maker(parts: list[tuple[Place, str, int]], ours: Mapping[str, Tensor]) -> Callable[[], Tensor]:
    def make() -> Tensor:
        entry = parts[0][0].entry
        rows, first = entry.rows, int(entry.stacked)
        ordered = sorted(parts, key=lambda part: 0 if part[0].entry.rows is None else part[0].entry.rows.which)
        pieces = []
        for place, name, number in ordered:
            tensor = ours[name].detach()
            if "{e}" in place.entry.theirs:
                tensor = tensor[number]
            pieces.append(tensor if place.entry.insert is None else tensor.unsqueeze(place.entry.insert))
        if rows is None:
            whole = pieces[0]
        else:
            whole = rows.join([piece.movedim(first, 0) for piece in pieces]).movedim(0, first)
        whole = whole.mT if entry.transpose and whole.ndim == 2 + first else whole
        return (whole.flatten(0, 1) if entry.fold else whole).contiguous()

    return make
