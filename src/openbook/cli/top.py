"""`openbook top URL`: a server at work, in the terminal: who asks what, how fast it answers, what waits and is full."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from openbook.errors import RemoteError, UsageError
from openbook.options import Positional, parse

if TYPE_CHECKING:
    from rich.console import RenderableType

SAMPLE = re.compile(r"(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
ESCAPES = {r"\\": "\\", r"\"": '"', r"\n": "\n"}
FIRST, GAP = "openbook_time_to_first_token_seconds", "openbook_inter_token_seconds"
BAR = 10  # characters
WINDOW = 10  # looks that rates and quantiles are taken over
PATIENCE = 5.0  # seconds for the server to answer
Labels = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Watch a server at work: `openbook serve`, over HTTP.

    A server with keys is asked with the one in OPENBOOK_API_KEY; an admin's sees everybody's requests.
    """

    url: Positional[str] = "http://127.0.0.1:8000"
    """Where the server is."""
    every: float = 1.0
    """Seconds between looks."""
    once: bool = False
    """Print one look and end."""
    json: bool = False
    """That one as JSON."""


def main(args: Sequence[str], prog: str) -> int:
    """The verb."""
    config = parse(Config, args, prog=prog)
    if not 0.05 <= config.every <= 3600:
        raise UsageError(f"--every must be seconds, from 0.05 to 3600: got {config.every}.")
    url = config.url if "://" in config.url else f"http://{config.url}"
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"URL must begin with http:// or https://: got '{config.url}'.")
    url = url.rstrip("/").removesuffix("/v1")
    if config.once or config.json or not sys.stdout.isatty():
        before = look(url)
        time.sleep(config.every)
        _print(between(before, look(url)), url, config.json)
        return 0
    try:
        _live(url, config.every)
    except KeyboardInterrupt:  # that is how one leaves
        return 0
    return 0


# ------------------------------------------------------------------------------------------------ what the server says


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a server said at one moment: its samples by name, and the requests at work."""

    at: float
    samples: Mapping[str, Sequence[tuple[Labels, float]]]
    requests: Sequence[Mapping[str, Any]]

    def total(self, name: str, **labels: str) -> float:
        """The sum of a metric over all that has these labels."""
        found = self.samples.get(name, ())
        return sum(value for said, value in found if all(said.get(key) == one for key, one in labels.items()))

    def buckets(self, name: str, model: str) -> dict[float, float]:
        """A histogram of a model: how many were at most so many seconds."""
        found: dict[float, float] = {}
        for said, value in self.samples.get(f"{name}_bucket", ()):
            if said.get("model") == model:
                bound = float(said["le"])
                found[bound] = found.get(bound, 0.0) + value
        return found

    @property
    def models(self) -> list[str]:
        """Every name that some metric speaks of."""
        return sorted({said["model"] for many in self.samples.values() for said, _ in many if said.get("model")})


def look(url: str) -> Look:
    """Asks the server; `RemoteError` where it is away, or does not let us in."""
    page = _get(url + "/metrics").decode("utf-8", errors="replace")
    samples: dict[str, list[tuple[Labels, float]]] = {}
    for line in page.splitlines():
        if found := SAMPLE.fullmatch(line):
            labels = {name: _unescaped(value) for name, value in LABEL.findall(found["labels"] or "")}
            samples.setdefault(found["name"], []).append((labels, float(found["value"])))
    if "openbook_requests_at_work" not in samples:
        raise RemoteError(f"What answers at {url} is no server of openbook: its /metrics knows no openbook_….")
    requests = json.loads(_get(url + "/v1/requests"))["data"]
    return Look(at=time.monotonic(), samples=samples, requests=requests)


def _unescaped(value: str) -> str:
    return re.sub(r"\\.", lambda found: ESCAPES.get(found[0], found[0]), value)


def _get(url: str) -> bytes:
    key = os.environ.get("OPENBOOK_API_KEY")
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
            said: bytes = reply.read()
            return said
    except urllib.error.HTTPError as error:
        if error.code == 401:
            known = "does not know the key in OPENBOOK_API_KEY" if key else "asks for a key: put it in OPENBOOK_API_KEY"
            raise RemoteError(f"The server at {url} {known}.") from None
        raise RemoteError(f"The server at {url} answers with status {error.code}: {error.reason}.") from None
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise RemoteError(f"No server answers at {url}: {reason}. Is it running there? openbook serve DIR") from None


# ------------------------------------------------------------------------------------------------ what that means


@dataclass(frozen=True, kw_only=True)
class ModelView:
    """A model between two looks. Seconds, tokens per second, bytes; None: nothing is known. What is `written` is told
    by the engine, or where there is none by deltas: the usage of an answer comes with its end."""

    running: float | None
    waiting: float | None
    read: float
    written: float
    cached: float | None  # share of the prompt tokens
    first: tuple[float | None, float | None]  # median and 99th percentile
    gap: tuple[float | None, float | None]
    queue: tuple[float | None, float | None]
    memory: float | None
    used: float | None


@dataclass(frozen=True, kw_only=True)
class View:
    """A server between two looks."""

    ready: bool
    seconds: float  # since it began
    at_work: int
    requests: float  # answered per second
    refused: float
    stopped: float
    models: Mapping[str, ModelView] = field(default_factory=dict)
    working: Sequence[Mapping[str, Any]] = ()


def between(before: Look, after: Look) -> View:
    """What happened from one look to the other."""
    time_passed = max(after.at - before.at, 1e-9)

    def rate(name: str, **labels: str) -> float:
        return max(0.0, after.total(name, **labels) - before.total(name, **labels)) / time_passed

    def spread(name: str, model: str) -> tuple[float | None, float | None]:
        old = before.buckets(name, model)
        new = {bound: count - old.get(bound, 0.0) for bound, count in after.buckets(name, model).items()}
        return quantile(new, 0.5), quantile(new, 0.99)

    def model_of(name: str) -> ModelView:
        def now(what: str) -> float | None:
            engine = f"openbook_engine_{what}"
            known = any(said.get("model") == name for said, _ in after.samples.get(engine, ()))
            return after.total(engine, model=name) if known else None

        read = rate("openbook_tokens_total", model=name, kind="prompt")
        found = rate("openbook_tokens_total", model=name, kind="cached")
        return ModelView(
            running=now("running"), waiting=now("waiting"), read=read,
            written=rate("openbook_engine_output_tokens_total", model=name)
            if now("running") is not None
            else rate(f"{FIRST}_count", model=name) + rate(f"{GAP}_count", model=name),
            cached=found / read if read else None,
            first=spread(FIRST, name),
            gap=spread(GAP, name),
            queue=spread("openbook_queue_seconds", name),
            memory=now("memory_bytes"), used=now("memory_used_bytes"),
        )  # fmt: skip

    return View(
        ready=after.total("openbook_ready") > 0,
        seconds=max(0.0, time.time() - after.total("openbook_start_time_seconds")),
        at_work=int(after.total("openbook_requests_at_work")),
        requests=rate("openbook_requests_total"),
        refused=rate("openbook_rejects_total"),
        stopped=rate("openbook_cancels_total"),
        models={name: model_of(name) for name in after.models},
        working=sorted(after.requests, key=lambda one: -one["seconds"]),
    )


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """Where so much of a histogram lies below; between two bounds on a straight line."""
    bounds = sorted(buckets)
    whole = buckets[bounds[-1]] if bounds else 0.0
    if whole <= 0:
        return None
    low, below = 0.0, 0.0
    for bound in bounds:
        count = buckets[bound]
        if count >= share * whole:
            if math.isinf(bound):
                return low
            return low + (bound - low) * (share * whole - below) / max(count - below, 1e-9)
        low, below = bound, count
    return low


# ------------------------------------------------------------------------------------------------ how it looks


def _print(view: View, url: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"url": url, **asdict(view)}))
        return
    from rich.console import Console

    console = Console()
    console.print(page_of(view, url, console.width))


def _live(url: str, every: float) -> None:
    """Until Ctrl-C. A server that goes away is waited for."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    looks = deque([look(url)], maxlen=WINDOW)
    with Live(console=Console(), screen=True, auto_refresh=False) as live:
        while True:
            live.update(page_of(between(looks[0], looks[-1]), url, *live.console.size), refresh=True)
            time.sleep(every)
            try:
                looks.append(look(url))
            except RemoteError as error:
                live.update(Text(str(error), style="red"), refresh=True)
                time.sleep(every)
                continue
            if looks[-1].total("openbook_start_time_seconds") != looks[0].total("openbook_start_time_seconds"):
                looks = deque([looks[-1]], maxlen=WINDOW)  # it is another one now


def page_of(view: View, url: str, width: int = 120, height: int = 1 << 30) -> RenderableType:
    """The whole page, for a terminal of that size."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    state = Text("ready", style="green") if view.ready else Text("not ready", style="red")
    head = Text.assemble((url, "bold"), "  ", state, f" for {span(view.seconds)}")
    rates = Text(
        f"at work {view.at_work}   answered {view.requests:.1f}/s   refused {view.refused:.1f}/s   "
        f"stopped {view.stopped:.1f}/s"
    )
    models = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    models.add_column("model", no_wrap=True, overflow="ellipsis", max_width=max(8, width - 66))
    for name in ("run", "wait", "out/s", "in/s", "hit", "first", "p99", "gap", "p99", "queue", "memory"):
        models.add_column(name, justify="right", no_wrap=True, min_width=5 if name != "run" else 3)
    for name, one in view.models.items():
        models.add_row(
            Text(name, style="cyan"), _count(one.running), _count(one.waiting), _count(one.written), _count(one.read),
            "–" if one.cached is None else f"{one.cached:.0%}", *map(_time, (*one.first, *one.gap, one.queue[1])),
            _memory(one, wide=width >= 110),
        )  # fmt: skip
    working = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("request", "caller", "model", "path"):
        working.add_column(name, no_wrap=True, overflow="ellipsis")
    for name in ("time", "tokens"):
        working.add_column(name, justify="right", no_wrap=True)
    room = max(1, height - len(view.models) - 8)
    for call in view.working[:room]:
        words = [Text(str(call[name])) for name in ("id", "caller", "model", "path")]
        working.add_row(*words, span(call["seconds"]), str(call["tokens"]))
    rest = len(view.working) - room
    more = [Text(f"and {rest} more", style="dim")] if rest > 0 else []
    none = [] if view.working else [Text("nothing is at work", style="dim")]
    return Group(head, rates, "", models, "", *([working] if view.working else none), *more)


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds * 1000:.0f}ms" if seconds < 1 else f"{seconds:.1f}s"


def _memory(model: ModelView, wide: bool) -> str:
    if model.memory is None or model.used is None or model.memory <= 0:
        return "–"
    share = min(1.0, max(0.0, model.used / model.memory))
    full = round(share * BAR)
    bar = f"{'█' * full}{'░' * (BAR - full)} "
    return f"{bar}{share:4.0%} of {model.memory / (1 << 20):,.0f} MiB" if wide else f"{share:.0%}"


def span(seconds: float) -> str:
    """A time for people: 1.5s, 4m05s, 3h12m, 2d04h."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes}m{rest:02d}s"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours:02d}h" if days else f"{hours}h{minutes:02d}m"
