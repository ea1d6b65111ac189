"""Tokenizers side by side as a picture, drawn on a figure of matplotlib that the caller made.

Above, bars: bytes per token, tokens per word, continued words, unused vocabulary. Below, what each language is charged
against English, as a row of dots on a scale of doublings, and the pieces of numbers and names as boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from openbook.text.compare.report import LOST, Measured

COLOURS = ("#1f4e8c", "#c2571a", "#2e7d4f", "#8c3b7a", "#b08a1e", "#4a7fa5", "#7a4a2b", "#5b5b5b")
INK, FAINT = "#2b2b2b", "#d9d9d9"
LITERAL = {"parse_math": False}  # of text that others wrote: between two dollar signs it would be read as a formula
SHADES = ("#dbe6f4", "#f6e3d3")  # of neighbouring pieces
PROBES = ("123", "1234", "2024", "3.14159", "1,000,000")
NAMES = ("max_token_count", "maxTokenCount")
MOST = len(COLOURS)  # tokenizers in one picture

Bar = tuple[str, Callable[[Measured], float | None], str]
BARS: tuple[Bar, ...] = (
    ("bytes per token", lambda m: m.use.counted.bytes_per_token, "{:.2f}"),
    ("tokens per word", lambda m: m.words.fertility, "{:.2f}"),
    ("words in two tokens or more", lambda m: m.words.share_continued, "{:.0%}"),
    ("vocabulary this text does not use", lambda m: m.unused, "{:.0%}"),
)


def size(measured: Sequence[Measured]) -> tuple[float, float]:
    """Width and height of the figure, in inches."""
    return 13.0, _top(measured) + _bottom(measured) + 0.9


def _top(measured: Sequence[Measured]) -> float:
    return 0.75 + 0.3 * len(measured)


def _bottom(measured: Sequence[Measured]) -> float:
    boxes = 0.27 * (len(measured) + 1) * (len(PROBES) + len(NAMES))
    return max(boxes, 0.235 * len(measured[0].languages)) + 0.9


def draw(measured: Sequence[Measured], figure: Any, title: str = "") -> None:
    """Draw on `figure`, whose size should be `size(measured)`; `title` says what text was measured."""
    rows = figure.add_gridspec(2, 1, height_ratios=(_top(measured), _bottom(measured)))
    bars = rows[0].subgridspec(1, len(BARS), wspace=0.08)
    for column, bar in enumerate(BARS):
        _bars(figure.add_subplot(bars[column]), measured, bar, named=column == 0)
    if measured[0].languages:
        below = rows[1].subgridspec(1, 2, width_ratios=(1.25, 1), wspace=0.06)
        _languages(figure.add_subplot(below[0]), measured)
        _pieces(figure.add_subplot(below[1]), measured)
    else:
        _pieces(figure.add_subplot(rows[1]), measured)
    if title:
        figure.suptitle(title, fontsize=12, color=INK, x=0.01, ha="left", **LITERAL)


def _bars(axes: Any, measured: Sequence[Measured], bar: Bar, *, named: bool) -> None:
    heading, value, form = bar
    values = [value(one) for one in measured]
    places = list(range(len(measured)))
    axes.barh(places, [number or 0.0 for number in values], color=COLOURS[: len(measured)], height=0.66)
    longest = max((number or 0.0 for number in values), default=0.0) or 1.0
    for place, number in zip(places, values, strict=True):
        said = "–" if number is None else form.format(number)
        axes.text((number or 0.0) + 0.02 * longest, place, said, va="center", fontsize=9, color=INK)
    axes.set_xlim(0, 1.22 * longest)
    names = [_short(one.name) for one in measured] if named else [""] * len(measured)
    axes.set_yticks(places, names, fontsize=9, **LITERAL)
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.set_title(heading, fontsize=10, loc="left", color=INK)
    _bare(axes)


def _languages(axes: Any, measured: Sequence[Measured]) -> None:
    """A dot for each tokenizer in the row of each language; languages that a vocabulary cannot write get none."""
    names = [one.name for one in measured[0].languages]
    order = sorted(range(len(names)), key=lambda i: _worst(measured, i))
    shown: list[float] = [1.0]
    for place, index in enumerate(order):
        found = [
            (language.parity, colour)
            for one, colour in zip(measured, COLOURS, strict=False)
            if (language := one.languages[index]).parity and language.lost <= LOST
        ]
        if found:
            spread = [parity for parity, _ in found]
            axes.plot([min(spread), max(spread)], [place, place], color=FAINT, linewidth=2.5, zorder=1)
            axes.scatter(spread, [place] * len(found), color=[c for _, c in found], s=30, zorder=2, linewidths=0)
            shown += spread
    axes.set_xscale("log", base=2)
    lowest, highest = 0.9 * min(shown), 1.12 * max(shown)
    axes.set_xlim(lowest, highest)
    ticks = [tick for tick in (0.25, 0.5, 1, 2, 4, 8, 16, 32) if lowest <= tick <= highest]
    axes.set_xticks(ticks, ["as English" if tick == 1 else f"{tick:g}×" for tick in ticks], fontsize=9)
    axes.minorticks_off()
    axes.axvline(1.0, color="#8a8a8a", linewidth=1, zorder=0)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_yticks(range(len(names)), [names[index] for index in order], fontsize=8.5, **LITERAL)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_title("tokens for the same text, against English", fontsize=10, loc="left", color=INK)
    _bare(axes)
    for place, (one, colour) in enumerate(zip(measured, COLOURS, strict=False)):
        lost = " (without what it cannot write)" if any(x.lost > LOST for x in one.languages) else ""
        said = f" {_short(one.name)}{lost}"  # a legend leaves out what begins with _
        axes.scatter([], [], color=colour, s=30, label=said, zorder=place)
    for label in axes.legend(frameon=False, fontsize=9, loc="upper right").get_texts():
        label.set(**LITERAL)


def _worst(measured: Sequence[Measured], index: int) -> float:
    """The mean parity of a language, by which the rows are ordered; the language without one stands last."""
    found = [one.languages[index].parity or 0.0 for one in measured if one.languages[index].lost <= LOST]
    return sum(found) / len(found) if found else float("inf")


def _pieces(axes: Any, measured: Sequence[Measured]) -> None:
    """Every probe under every tokenizer, each piece in a box; the width of a character is one unit."""
    wide = 34.0
    probes = [(probe, "numbers") for probe in PROBES] + [(name, "names") for name in NAMES]
    down = 0.0
    for probe, kind in probes:
        axes.text(0, down, probe, fontsize=9.5, va="center", color=INK, fontweight="bold")
        down += 1
        for one, colour in zip(measured, COLOURS, strict=False):
            cut = one.splits.numbers[probe] if kind == "numbers" else one.splits.names[probe]
            axes.plot([0.3], [down], marker="o", markersize=4.5, color=colour)
            at = 1.2
            for number, piece in enumerate(cut):
                _box(axes, at, down, piece, SHADES[number % 2])
                at += len(piece) + 0.3
            wide = max(wide, at + 2)
            axes.text(at + 0.4, down, f"{len(cut)}", fontsize=8, va="center", color="#8a8a8a")
            down += 1
        down += 0.35
    axes.set_xlim(0, wide)
    axes.set_ylim(down, -1)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title("how numbers and names come apart", fontsize=10, loc="left", color=INK)
    _bare(axes)


def _box(axes: Any, at: float, down: float, piece: str, shade: str) -> None:
    axes.fill_between([at, at + len(piece)], down - 0.4, down + 0.4, color=shade, linewidth=0)
    axes.text(
        at + len(piece) / 2, down, piece, fontsize=8.5, family="monospace", ha="center", va="center", color=INK,
        **LITERAL,
    )  # fmt: skip


def _short(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= 24 else "…" + name[-23:]


def _bare(axes: Any) -> None:
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, colors=INK)
