"""Adapters on a model that is being served: several at once, chosen for each row, loaded and unloaded in between.

    bank = Bank(model)
    bank.load("poet", "DIR")
    with bank.using([("poet", rows)]):       rows: indices or a slice into the B·T tokens of the step
        logits = model(ids)                  all other rows get the base model

An adapted map is y = base(x) + B A x; with DoRA (Liu et al. 2024) y = g · (W x + B A x) + b, g = m / ‖W + B A‖ row by
row. It is a hook on the base's module: parameters keep their names and their places, whatever form they are kept in,
and a module without adapters is as it was. A row's result depends on that row and its adapter alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from openbook.adapters.folder import Adapter, read
from openbook.adapters.place import Delta, bias_of, place, weight_of
from openbook.adapters.product import rows_linear
from openbook.adapters.stack import Rows, Stack, Step
from openbook.errors import InputError, Refusal, nearest
from openbook.nn.attention import SourceAttention
from openbook.nn.model import LanguageModel

REWRITE = "adapters"


class Hooked:
    """The hook on one module: what each adapter does to its output. Plain pairs run together, others one by one."""

    def __init__(self, bank: Bank, source: bool) -> None:
        self.bank = bank
        self.source = source  # its rows are the encoder's
        self.stacks: tuple[Stack, ...] = ()
        self.deltas: dict[str, Delta] = {}
        self.gains: dict[str, Tensor] = {}  # DoRA's g [out], by adapter

    def add(self, name: str, delta: Delta, gain: Tensor | None) -> None:
        """Take an adapter."""
        if delta.down is None or delta.up is None or any(t is not None for t in (delta.shift, delta.bias, gain)):
            if gain is not None:
                self.gains[name] = gain
            self.deltas[name] = delta
            return
        stack = next((one for one in self.stacks if one.rank == len(delta.down)), None)
        if stack is None:
            stack = Stack(delta.down, delta.up)
            self.stacks = (*self.stacks, stack)
        stack.add(name, delta.down, delta.up)

    def drop(self, name: str) -> bool:
        """Give an adapter up; whether none is left."""
        self.deltas.pop(name, None)
        self.gains.pop(name, None)
        for stack in self.stacks:
            stack.drop(name)
        self.stacks = tuple(stack for stack in self.stacks if stack.names)
        return not self.deltas and not self.stacks

    def nbytes(self, name: str) -> int:
        """Bytes of an adapter here."""
        delta = self.deltas.get(name, Delta())
        own = (delta.down, delta.up, delta.shift, delta.bias, delta.magnitude, self.gains.get(name))
        return sum(t.nbytes for t in own if t is not None) + sum(s.nbytes for s in self.stacks if name in s.names)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        step = self.bank.step
        chosen = step.source if self.source else step.rows
        if not chosen:
            return None
        flat_x, flat_y = inputs[0].flatten(0, -2), output.flatten(0, -2)  # [tokens,in] and [tokens,out]
        for stack in self.stacks:
            flat_y = stack.apply(step, self.source, flat_x, flat_y)
        for name, rows in chosen if self.deltas else ():
            delta = self.deltas.get(name)
            if delta is None:
                continue
            new = adapted(delta, self.gains.get(name), bias_of(module), flat_x[rows], flat_y[rows])
            if flat_y.requires_grad or new.requires_grad:
                flat_y = flat_y.clone()
            flat_y[rows] = new
        return flat_y.view(output.shape)


def adapted(delta: Delta, gain: Tensor | None, bias: Tensor | None, x: Tensor, y: Tensor) -> Tensor:
    """The output of the adapted module for rows x [n,in], where the base gave y [n,out]."""
    new = y.float()
    replaced = delta.bias is not None or gain is not None
    if replaced and bias is not None:
        new = new - bias.float()
    if delta.down is not None and delta.up is not None:
        new = new + rows_linear(rows_linear(x.float(), delta.down), delta.up)
    if delta.shift is not None:
        new = new + delta.shift
    if gain is not None:
        new = new * gain
    own = bias if delta.bias is None else delta.bias
    if replaced and own is not None:
        new = new + own.float()
    return new.to(y.dtype)


def gain_of(delta: Delta, module: nn.Module) -> Tensor | None:
    """DoRA's g [out] over the base as it is now."""
    if delta.magnitude is None or delta.up is None or delta.down is None:
        return None
    return delta.magnitude / torch.linalg.vector_norm(weight_of(module) + delta.up @ delta.down, dim=1)


class Bank:
    """The adapters of one model. Loading only adds; what runs meanwhile is not disturbed."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.step = Step()
        self._hooks: dict[str, Hooked] = {}
        self._handles: dict[str, RemovableHandle] = {}
        self._versions: dict[str, int] = {}
        self._count = 0

    @property
    def names(self) -> list[str]:
        """The adapters there are."""
        return sorted(self._versions)

    @property
    def paths(self) -> list[str]:
        """The modules that have adapters."""
        return list(self._hooks)

    def version(self, name: str) -> int:
        """A number that no other loading has had: what was computed under another one is of another adapter."""
        self._known(name)
        return self._versions[name]

    def load(self, name: str, adapter: str | Path | Adapter) -> None:
        """Add an adapter under a name, from a PEFT folder. A name in use is an error: unload it first."""
        if not name:
            raise InputError("An adapter needs a name.")
        if name in self._versions:
            raise InputError(f"There is an adapter '{name}' already. Unload it first, or take another name.")
        value = adapter if isinstance(adapter, Adapter) else read(adapter)
        deltas = {path: _moved(delta, self.model.device) for path, delta in place(value, self.model).items()}
        modules = {path: self.model.get_submodule(path) for path in deltas}
        gains = {path: gain_of(delta, modules[path]) for path, delta in deltas.items()}
        for path, delta in deltas.items():
            hook = self._hook(path, modules[path])
            hook.add(name, delta, gains[path])
        if REWRITE not in self.model.rewrites:
            self.model.rewrites.append(REWRITE)
        self._count += 1
        self._versions[name] = self._count  # known only now, when every module has it

    def unload(self, name: str) -> None:
        """Take an adapter away; a module without adapters is as it was. An error while a step uses it."""
        self._known(name)
        if any(name == used for used, _ in (*self.step.rows, *self.step.source)):
            raise Refusal(f"The adapter '{name}' is being used by a step that runs; unload it between steps.")
        del self._versions[name]
        for path, hook in list(self._hooks.items()):
            if hook.drop(name):
                self._handles.pop(path).remove()
                del self._hooks[path]
        if not self._hooks:
            self.model.rewrites = [rewrite for rewrite in self.model.rewrites if rewrite != REWRITE]

    def refresh(self) -> None:
        """After the base's weights have changed: what was computed from them is computed again."""
        for path, hook in self._hooks.items():
            module = self.model.get_submodule(path)
            found = {name: gain_of(delta, module) for name, delta in hook.deltas.items()}
            hook.gains = {name: gain for name, gain in found.items() if gain is not None}

    @contextmanager
    def using(self, rows: Sequence[tuple[str, Rows]], source: Sequence[tuple[str, Rows]] = ()) -> Iterator[None]:
        """Inside, forward passes give these rows to these adapters; no row twice, all others get the base.

        `source` does the same for the rows of an encoder-decoder's encoder.
        """
        for name, _ in (*rows, *source):
            self._known(name)
        before, self.step = self.step, Step(tuple(rows), tuple(source))
        try:
            yield
        finally:
            self.step = before

    def nbytes(self, name: str) -> int:
        """Bytes that an adapter holds."""
        self._known(name)
        return sum(hook.nbytes(name) for hook in self._hooks.values())

    def _known(self, name: str) -> None:
        if name not in self._versions:
            raise InputError(f"There is no adapter '{name}'.{nearest(name, self._versions)}")

    def _hook(self, path: str, module: nn.Module) -> Hooked:
        if path not in self._hooks:
            owner, _, leaf = path.rpartition(".")
            crossing = isinstance(self.model.get_submodule(owner), SourceAttention) and leaf in ("k", "v")
            hook = Hooked(self, path.startswith("source.") or crossing)
            self._hooks[path] = hook
            self._handles[path] = module.register_forward_hook(hook)
        return self._hooks[path]


def _moved(delta: Delta, device: torch.device) -> Delta:
    parts = (delta.down, delta.up, delta.shift, delta.bias, delta.magnitude)
    return Delta(*(None if part is None else part.to(device) for part in parts))
