"""A bar on standard error for work that takes a while; where there is no terminal, a line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from openbook import log

EVERY = 30.0  # seconds between lines where there is no terminal


class Progress:
    """`advance` says that one more of `total` is done."""

    def __init__(self, what: str, total: int) -> None:
        self.what = what
        self.total = total
        self.done = 0
        self._said = time.monotonic()
        self._bar: object | None = None
        if sys.stderr.isatty() and total:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            bar = Bar(
                TextColumn(what),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[about]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = bar.add_task(what, total=total, about="")
            self._bar = self._rich = bar

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._rich.stop()

    def advance(self, about: str = "") -> None:
        """One more is done; `about` stands beside it."""
        self.done += 1
        if self._bar is not None:
            self._rich.update(self._task, advance=1, about=about)
        elif time.monotonic() - self._said >= EVERY:
            self._said = time.monotonic()
            log.note(f"{self.what}: {self.done:,} of {self.total:,}{f', {about}' if about else ''}")
