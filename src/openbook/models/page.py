"""The page of a description: plain text, 100 columns, numbers flush right. Runs of equal blocks are folded."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from openbook.models.cost import LAYER_PARTS, Run, Shapes, Side, Work, count
from openbook.models.memory import BYTES
from openbook.models.says import NORMS, PLACES, bias_says, embed_says, head_says, layer_says
from openbook.nn import spec
from openbook.nn.build import head_name

if TYPE_CHECKING:
    from openbook.models.describe import Description

WIDTH = 100  # columns


def render(this: Description) -> str:
    """The whole page."""
    sections = (_title, _structure, _parameters, _work, _state, _memory)
    return "\n\n".join("\n".join(lines) for section in sections if (lines := list(section(this)))) + "\n"


def short(number: float, units: Sequence[str] = ("", "K", "M", "B", "T", "Q"), base: int = 1000) -> str:
    """A number with three digits and its unit: 8.03 B."""
    value, unit = float(number), 0
    while round(value, _digits(value)) >= base and unit < len(units) - 1:
        value, unit = value / base, unit + 1
    digits = 0 if unit == 0 and value == int(value) else _digits(value)
    return f"{value:,.{digits}f} {units[unit]}".strip()


def _digits(value: float) -> int:
    """Places after the point that make three digits of the rounded value."""
    return 2 if value < 9.995 else 1 if value < 99.95 else 0


def in_bytes(number: float) -> str:
    """Bytes in powers of 1,024: 14.9 GiB."""
    return short(number, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"), 1024)


def in_flops(number: float) -> str:
    """Floating-point operations: 15.0 GFLOP."""
    return short(number, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))


def _heading(title: str, *columns: str) -> str:
    """A section's title over a rule, and its columns' names at the right."""
    right = "".join(f"{column:>16}" for column in columns)
    return f"{title} {'─' * (WIDTH - len(title) - len(right) - 2)} {right}".rstrip()


def _line(label: str, *columns: str, note: str = "") -> str:
    """An indented label, an explanation, and numbers flush right."""
    left = f"  {label:<22}{note}"
    right = "".join(f"{column:>16}" for column in columns)
    return f"{left:<{WIDTH - len(right)}}{right}".rstrip()


def _title(this: Description) -> Iterator[str]:
    model = this.model
    layers = f"{len(model.stack.steps)} blocks"
    if model.source is not None:
        layers = f"{len(model.source.stack.steps)} + {layers}"
    facts = [
        f"{short(this.total)} parameters" + (f" ({short(this.active)} active)" if this.active != this.total else ""),
        layers,
        f"dim {model.stack.dim:,}",
        f"vocab {model.embed.vocab:,}",
        "context unbounded" if model.context is None else f"context {model.context:,}",
    ]
    yield f"{this.name} · {this.architecture} ({this.family})"[:WIDTH].rstrip()
    yield " · ".join(facts)
    number, size = this.files
    yield (f"{in_bytes(size)} of weights in {number} file{'s' * (number > 1)}" if number else "no weights beside it")


def _structure(this: Description) -> Iterator[str]:
    found = this.inventory
    yield _heading("Structure", "parameters")
    if found.source is not None:
        yield from _side(found.source, this, "source ")
    yield from _side(found.main, this, "")
    for head in this.model.heads:
        name = head_name(head)
        shapes = found.heads[name]
        own = {part.rpartition("steps.0.")[2]: shape for part, shape in shapes.items() if ".block." not in part}
        own = {part: shape for part, shape in own.items() if not part.startswith("steps.")}
        yield from _entry(f"head · {name}", head_says(head), shapes, shown=own)


def _side(side: Side, this: Description, prefix: str) -> Iterator[str]:
    if side.embed:
        yield from _entry(f"{prefix}embed", embed_says(this.model.embed), side.embed)
    if side.stack.relative is not None:
        label = "positions" if isinstance(side.stack.relative, spec.RelativeVectors) else "bias"
        yield from _entry(prefix + label, bias_says(side.stack.relative), side.relative)
    for run in side.runs:
        yield from _run(run, prefix)
    if side.final and side.stack.final_norm is not None:
        yield from _entry(
            f"{prefix}final norm",
            f"{NORMS[side.stack.final_norm.kind]} · eps {side.stack.final_norm.eps:g}",
            side.final,
        )
    if side.out:
        yield from _entry(f"{prefix}out", f"to {side.stack.width:,} features", side.out)


def _run(run: Run, prefix: str) -> Iterator[str]:
    number = len(run.numbers)
    times = "" if number == 1 else f" × {number}"
    times += "" if run.steps == number else f" · run {run.steps} times"
    each = "" if number == 1 else " each"
    title = f"{prefix}block{'s' * (number > 1)} {ranges(run.numbers)}"
    beside = " · parallel" if run.block.parallel else ""
    beside += f" after {NORMS[run.block.norm.kind]}" if run.block.norm else ""
    title = textwrap.shorten(title, WIDTH - 40 - len(beside), placeholder=" …") + times + beside
    yield f"  {title:<{WIDTH - 23}}{f'{run.parameters:,}{each}':>21}".rstrip()
    for branch, shapes in zip(run.members, run.branches, strict=True):
        name = LAYER_PARTS[type(branch.layer)]
        place = "" if branch.norm is None else f"{NORMS[branch.norm.kind]} {PLACES[branch.place]} · "
        yield from _entry(name, place + layer_says(branch.layer), shapes, indent=4)


def ranges(numbers: Sequence[int]) -> str:
    """Numbers as ranges: 0–3, 5, 7–9; every second one from the first on as 0, 2 … 40."""
    steps = {after - before for before, after in pairwise(numbers)}
    if len(numbers) > 2 and len(steps) == 1 and steps != {1}:
        return f"{numbers[0]}, {numbers[1]} … {numbers[-1]}"
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][-1] == number - 1:
            spans[-1] = [spans[-1][0], number]
        else:
            spans.append([number])
    return ", ".join("–".join(map(str, span)) for span in spans)


def _entry(label: str, says: str, shapes: Shapes, indent: int = 2, shown: Shapes | None = None) -> Iterator[str]:
    """A label, what it says, its shapes (or those `shown`) on lines of their own, its parameters flush right."""
    pad = " " * indent
    total = f"{count(shapes):,}" if shapes else "0"
    lines = [
        line for text in (says, shapes_say(shapes if shown is None else shown)) for line in wrapped(text, WIDTH - 40)
    ]
    first, *rest = lines or [""]
    yield f"{pad}{label:<{24 - indent}}{first:<{WIDTH - 40}}{total:>16}"
    for line in rest:
        yield f"{' ' * 24}{line}"


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns, broken between facts (` · `) rather than inside one where that can be."""
    lines: list[str] = []
    for fact in filter(None, text.split(" · ")):
        if lines and len(lines[-1]) + 3 + len(fact) <= width:
            lines[-1] += f" · {fact}"
        else:
            lines += textwrap.wrap(fact, width)
    return lines


def shapes_say(shapes: Shapes) -> str:
    """Shapes with the names that have them: `q, out 4,096 × 4,096 · k, v 1,024 × 4,096 · biases`."""
    groups: dict[str, list[str]] = {}
    for name, shape in shapes.items():
        if name.endswith("bias") and len(shape) == 1:
            continue
        label = "weight" if name == "weight" else name.removesuffix(".weight").replace("experts.", "").replace("_", " ")
        groups.setdefault(" × ".join(f"{size:,}" for size in shape), []).append(label)
    said = [f"{', '.join(names)} {shape}" for shape, names in groups.items()]
    return " · ".join(said + ["biases"] * any(name.endswith("bias") for name in shapes))


def _parameters(this: Description) -> Iterator[str]:
    yield _heading("Parameters", "count", "share")
    for part, number in this.parts.items():
        share = number / this.total
        bar = "█" * int(share * 36 + 0.5)
        yield _line(part, f"{number:,}", f"{share:.1%}", note=bar)
    yield _line("total", f"{this.total:,}", "100%")
    if this.active != this.total:
        yield _line("active for a token", f"{this.active:,}", f"{this.active / this.total:.1%}")


def _work(this: Description) -> Iterator[str]:
    sides = [("Work for a token", this.work)]
    if this.source_work is not None:
        sides = [("Work for a source token", this.source_work), ("Work for a target token", this.work)]
    for number, (title, one) in enumerate(sides):
        yield from [""] * (number > 0)
        yield _heading(f"{title}, rows of {one.context:,}", "last of the row", "row's mean")
        rows: list[tuple[str, Callable[[Work], float], Callable[[Work], float]]] = [
            ("matrices and scans", lambda w: w.products, lambda w: w.products),
            ("scores and mixing", lambda w: w.attention_last, lambda w: w.attention_mean),
            ("forward", lambda w: w.last, lambda w: w.mean),
        ]
        yield from (_line(label, in_flops(last(one)), in_flops(mean(one))) for label, last, mean in rows if last(one))
        yield _line("training", in_flops(one.training), note="forward and backward, 3 × forward")
    yield "  A multiply-add is two operations. Norms, activations and softmax are not counted."


def _state(this: Description) -> Iterator[str]:
    kept = this.state
    if not (kept.tokens or kept.sequence):
        return
    yield _heading("State", *BYTES)
    if kept.tokens:
        yield _line("a token", *(in_bytes(kept.token * width) for width in BYTES.values()), note="keys and values")
    for window, each in kept.tokens if len(kept.tokens) > 1 or (kept.tokens and kept.tokens[0][0]) else ():
        which = "in layers that see everything" if window is None else f"in layers that see {window:,} tokens"
        yield _line("", *(in_bytes(each * width) for width in BYTES.values()), note=which)
    if kept.source:
        yield _line("a source token", *(in_bytes(kept.source * width) for width in BYTES.values()), note="made once")
    if kept.sequence:
        size = in_bytes(kept.sequence * BYTES["fp32"])
        yield _line("a sequence", size, size, note="always fp32, whatever its length")
    source = this.context if this.inventory.source else 0
    rows = (in_bytes(kept.bytes(this.context, width, source)) for width in BYTES.values())
    yield _line(f"a row of {this.context:,}", *rows, note="and as many of source" if source else "")


def _memory(this: Description) -> Iterator[str]:
    load = f"{this.rows} row{'s' * (this.rows > 1)} of {this.context:,}"
    yield _heading(f"Memory to serve, {load}", *BYTES)
    yield _line("weights", *(in_bytes(one.weights) for one in this.serving.values()))
    yield _line("state", *(in_bytes(one.state) for one in this.serving.values()))
    yield _line("total", *(in_bytes(one.total) for one in this.serving.values()))
    need = this.training
    yield ""
    yield _heading(f"Memory to train, {load}", "plain", "checkpointed")
    for label, note, size in (
        ("parameters", "fp32", need.parameters),
        ("gradients", "fp32", need.gradients),
        ("AdamW's moments", "fp32", need.moments),
    ):
        yield _line(label, in_bytes(size), in_bytes(size), note=note)
    estimates = (in_bytes(need.activations), in_bytes(need.recomputed))
    yield _line("activations", *estimates, note="bf16, an estimate")
    yield _line("total", in_bytes(need.total), in_bytes(need.least))
    yield "  Checkpointed: each block is computed again in the backward pass."
