"""The loss over a run: as text for the terminal, as PNG for a report (extra `plot`).

Both read the journal, so a curve can be drawn of a run that is still going, or that was resumed many times.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openbook.errors import MissingExtra, OpenbookError
from openbook.files import write_atomic

Points = list[tuple[float, float]]

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # the bits of a braille sign, by row and column


def losses(records: Sequence[dict[str, Any]]) -> tuple[Points, Points]:
    """(step, loss) of training, and (step, bits per byte, or loss where bytes are unknown) of held-out text."""
    trained = [(r["step"], r["loss"]) for r in records if r["kind"] == "step"]
    held = [(r["step"], r.get("bits_per_byte", r["loss"])) for r in records if r["kind"] == "heldout"]
    return _finite(trained), _finite(held)


def _finite(points: Sequence[tuple[Any, Any]]) -> Points:
    return [(float(x), float(y)) for x, y in points if isinstance(y, int | float) and math.isfinite(y)]


def smooth(points: Points, width: int = 200) -> Points:
    """At most `width` points: means of neighbours."""
    size = max(1, -(-len(points) // width))
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def text_curve(points: Points, *, width: int = 64, height: int = 10, title: str = "loss") -> str:
    """The curve drawn with braille dots, two by four in a sign; the axes say where it begins and ends."""
    if len(points) < 2:
        return f"{title}: too few points to draw"
    points = smooth(points, 2 * width)
    (left, _), (right, _) = points[0], points[-1]
    low, high = min(y for _, y in points), max(y for _, y in points)
    grid = [[0] * width for _ in range(height)]
    last: tuple[int, int] | None = None
    for x, y in points:
        column = round((x - left) / (right - left or 1) * (2 * width - 1))
        row = round((high - y) / (high - low or 1) * (4 * height - 1))
        for at, down in _line(last or (column, row), (column, row)):
            grid[down // 4][at // 2] |= DOTS[down % 4][at % 2]
        last = (column, row)
    labels = {0: f"{high:.3g}", height - 1: f"{low:.3g}"}
    margin = max(len(label) for label in labels.values())
    lines = [
        f"{labels.get(n, ''):>{margin}} ┤{''.join(chr(0x2800 + cell) for cell in row)}" for n, row in enumerate(grid)
    ]
    first, end = f"{left:g}", f"step {right:g}"
    axis = " " * (margin + 2) + first + end.rjust(width - len(first))
    return "\n".join([" " * (margin + 2) + title, *lines, " " * margin + " └" + "─" * width, axis])


def _line(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """The dots from one place to another."""
    (x, y), (to_x, to_y) = start, end
    count = max(abs(to_x - x), abs(to_y - y), 1)
    return [(round(x + (to_x - x) * i / count), round(y + (to_y - y) * i / count)) for i in range(count + 1)]


def blank_figure(what: str, size: tuple[float, float], *, dpi: int = 120) -> Any:
    """An empty matplotlib figure of `size` inches, for `what` (as an error calls it). MissingExtra without matplotlib.

    This is the package's one door to matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "plot", what) from error
    figure = Figure(figsize=size, dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)  # it makes itself the figure's canvas
    return figure


def write_png(figure: Any, path: Path) -> None:
    """Write a figure of `blank_figure` as a PNG, whole or not at all."""
    image = io.BytesIO()
    figure.canvas.print_png(image)
    write_atomic(path, image.getvalue())


def png_curve(records: Sequence[dict[str, Any]], path: Path, *, title: str = "") -> None:
    """Write the curves of a run as a PNG. Errors: MissingExtra without matplotlib, OpenbookError without points."""
    trained, held = losses(records)
    if not trained:
        raise OpenbookError(f"There is nothing to draw for '{path}': the journal has no steps.")
    figure = blank_figure("The loss curve as PNG", (8, 4.5))
    axes = figure.add_subplot()
    axes.plot(*zip(*trained, strict=True), color="#b8c4d6", linewidth=0.8, label="training loss (nats per token)")
    axes.plot(*zip(*smooth(trained), strict=True), color="#1f4e8c", linewidth=1.6, label="the same, smoothed")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.25)
    if held:
        axes.plot(*zip(*held, strict=True), color="#c2571a", marker="o", markersize=3, label="held-out bits per byte")
    axes.legend(frameon=False)
    if title:
        axes.set_title(title)
    write_png(figure, path)
