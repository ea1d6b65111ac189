"""Ctrl-C and a polite kill: the step that runs is finished, everything is saved, and then the run ends.

A second Ctrl-C ends it at once; the last checkpoint is whole in any case.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from openbook.errors import OpenbookError
from openbook.log import note


class Interrupted(OpenbookError):
    """Someone asked the run to stop; it saved first. The message says how to go on."""

    exit_code = 130


class Stop:
    """While it is open, SIGINT and SIGTERM only set `asked`."""

    def __init__(self) -> None:
        self.asked = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()

    def _ask(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.asked = True
        self._give_back()
        note("Stopping after this step; what was learned is saved. Once more stops at once.")

    def _give_back(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}
