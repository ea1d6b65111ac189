"""When a step fails, or somebody who listens does: who was in it ends with the cause, and all that was held comes back.

Everyone who listens hears one end of each choice, whatever raised and wherever.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from openbook import log
from openbook.generate.plan import Plan
from openbook.generate.requests import Token

if TYPE_CHECKING:
    from openbook.generate.engine import Engine
    from openbook.generate.job import Job


def cause_of(error: BaseException) -> str:
    """An error in a line: its kind and what it says."""
    said = str(error).strip()
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def fail(engine: Engine, plan: Plan, error: Exception) -> list[Token]:
    """Ends the requests of a step that raised; it has been aborted, or was committed already."""
    why = f"A step of the engine failed, and this request was in it ({cause_of(error)})."
    engine.stats.failures += 1
    keys = {work.sequence.ask.key for work in plan.works}
    events: list[Token] = []
    for key in keys & engine.jobs.keys():
        events += engine.end(engine.jobs[key], "error", why)
    scheduler = engine.scheduler
    everyone = [*scheduler.running, *(sequence for queue in scheduler.queues.values() for sequence in queue)]
    for sequence in everyone:
        if sequence.ask.key in keys:  # forked in this step, and its request does not know yet
            engine.release(sequence)
    return events


def tell(engine: Engine, events: Iterable[Token]) -> None:
    """Hands tokens to those who listen. Who raises is not told any more, and its request ends."""
    deaf: dict[Job, Exception] = {}
    for event in events:
        job = engine.jobs.get(event.prompt)
        if job is None or job.listener is None or job in deaf:
            continue
        try:
            job.listener(event)
        except Exception as error:
            deaf[job] = error
    for job, raised in deaf.items():
        log.note(f"A listener failed, and its request is ended ({cause_of(raised)}).", once=f"listener {raised}")
        job.listener = None
        engine.end(job, "error", f"Its listener failed ({cause_of(raised)}).")
