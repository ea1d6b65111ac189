"""What a person sees while a model trains: a live panel on a terminal, plain lines anywhere else.

Both show the same things: step, loss, bits per byte and perplexities on held-out text, tokens per second, the share of
the machine's measured peak, the time left, and a sample now and then.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from openbook.train.curve import Points, text_curve
from openbook.train.metrics import Record

RECENT = 20  # steps over which speed is measured
EVERY = 10.0  # seconds between plain lines


@dataclass
class View:
    """What is known, and how it is said. `peak` and `flops` (per token) give the share of the machine."""

    steps: int
    name: str = ""
    flops: float = 0.0
    peak: float = 0.0  # FLOP/s
    step: int = 0
    loss: float = 0.0
    heldout: Record = field(default_factory=dict)
    experts: Record = field(default_factory=dict)
    sample: str = ""
    points: Points = field(default_factory=list)
    times: deque[Record] = field(default_factory=lambda: deque(maxlen=RECENT))

    def take(self, record: Record) -> None:
        """Remember what a record says."""
        if record["kind"] == "step":
            self.step, self.loss = record["step"], record["loss"]
            self.experts = record.get("experts", {})
            self.times.append(record)
            self.points.append((self.step, self.loss))
            if len(self.points) > 4096:
                self.points = self.points[::2]
        elif record["kind"] == "heldout":
            self.heldout = record
        elif record["kind"] == "sample":
            self.sample = record["text"]

    def _pace(self) -> tuple[float, float] | None:
        """Over the last steps: tokens a second while training, steps a second with all that is between them."""
        if len(self.times) < 2:
            return None
        first, last = self.times[0], self.times[-1]
        working = sum(record["took"] for record in self.times) - first["took"]
        tokens, steps = last["tokens"] - first["tokens"], last["step"] - first["step"]
        return tokens / max(working, 1e-9), steps / max(last["seconds"] - first["seconds"], 1e-9)

    def facts(self) -> list[tuple[str, str]]:
        """(name, value), as far as they are known."""
        found = [("step", f"{self.step:,} of {self.steps:,}"), ("loss", f"{self.loss:.3f}")]
        if "bits_per_byte" in self.heldout:
            found.append(
                ("held-out", f"{self.heldout['bits_per_byte']:.3f} bits per byte{_perplexities(self.heldout)}")
            )
        elif self.heldout:
            found.append(("held-out", f"loss {self.heldout['loss']:.3f}"))
        if self.experts:
            least, most, dropped = (self.experts[name] for name in ("least", "most", "dropped"))
            lost = f", {dropped:.1%} dropped" if dropped else ""
            found.append(("experts", f"{least:.2f} to {most:.2f} of a fair share{lost}"))
        pace = self._pace()
        if pace:
            tokens, steps = pace
            share = (
                f", {tokens * self.flops / self.peak:.0%} of this machine's peak" if self.flops and self.peak else ""
            )
            found.append(("speed", f"{tokens:,.0f} tokens/s{share}"))
            found.append(("left", clock((self.steps - self.step) / max(steps, 1e-9))))
        return found


def _perplexities(heldout: Record) -> str:
    """Per token and per byte, as far as the record has them: a journal of an older run has not."""
    names = {"perplexity_per_token": "token", "perplexity_per_byte": "byte"}
    said = [f"{heldout[name]:.4g} a {unit}" for name, unit in names.items() if name in heldout]
    return f", perplexity {', '.join(said)}" if said else ""


def clock(seconds: float) -> str:
    """A duration as 0:42, 3:07 or 1:02:03."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


class Plain:
    """Lines on a stream: one every `every` seconds, one for each measurement and sample, one at the end."""

    def __init__(self, view: View, stream: TextIO | None = None, every: float = EVERY) -> None:
        self.view, self.stream, self.every = view, stream or sys.stderr, every
        self.said_at = -every
        self.said = 0

    def record(self, record: Record) -> None:
        """Take a record and perhaps say it."""
        self.view.take(record)
        if record["kind"] == "sample":
            self._line("  sample: " + " ".join(self.view.sample.split()))
        elif record["kind"] == "heldout" or time.monotonic() - self.said_at >= self.every:
            self._say()

    def close(self) -> None:
        """Say where it ended."""
        if self.view.step != self.said:
            self._say()

    def _say(self) -> None:
        self.said_at, self.said = time.monotonic(), self.view.step
        self._line(" · ".join(f"{name} {value}" for name, value in self.view.facts()))

    def _line(self, text: str) -> None:
        try:
            self.stream.write(text + "\n")
            self.stream.flush()
        except (OSError, ValueError):  # nobody reads any more: no reason to stop the work
            self.every = float("inf")


class Panelled:
    """A live panel at the bottom of the terminal; other messages scroll above it."""

    def __init__(self, view: View, console: Console | None = None) -> None:
        self.view = view
        self.live = Live(console=console or Console(stderr=True), refresh_per_second=4, get_renderable=self._draw)
        self.live.start()

    def record(self, record: Record) -> None:
        """Take a record; the panel redraws itself."""
        self.view.take(record)

    def close(self) -> None:
        """Leave the last picture standing."""
        self.live.stop()

    def _draw(self) -> Panel:
        view = self.view
        table = Table.grid(padding=(0, 2))
        for name, value in view.facts():
            table.add_row(Text(name, style="dim"), Text(value))
        bar = Table.grid(expand=True)  # in a table of its own, because a bar alone does not end its line
        bar.add_row(ProgressBar(total=view.steps, completed=view.step))
        parts: list[Table | Text] = [bar, table]
        if len(view.points) > 2:
            parts.append(Text(text_curve(view.points, width=56, height=6), style="cyan"))
        if view.sample:
            parts.append(Text(" ".join(view.sample.split()), style="italic"))
        return Panel(Group(*parts), title=view.name or None, title_align="left", expand=False, width=84)


def watch(view: View) -> Plain | Panelled:
    """The panel where standard error is a terminal, plain lines where it is not."""
    console = Console(stderr=True)
    return Panelled(view, console) if console.is_terminal and not console.is_dumb_terminal else Plain(view)
