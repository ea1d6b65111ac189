"""Many people read at once: streaming connections to one server process, each getting a token every half second.

    python bench/connections.py [--connections 10000] [--seconds 20] [--rate 2] [--out runs/bench]

The server is a process that serves a metronome: every token says when it was due, on the clock that both processes
share. The client is a process of its own that opens the connections over some seconds, reads every event and takes the
delay between its due time and its arrival: timers, HTTP, the system, and the client's own lateness are all in it. Every
stream has to be whole. The server's processor time and highest resident memory are the system's own count.
`--profile FILE` writes where the server's time goes.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvloop

from _harness import arguments, machine

SPARE = 200  # files that a process has open beside its connections
RAMP = 1000  # connections that are opened in a second


# ------------------------------------------------------------------------------------------------ the server


class Metronome:
    """A Chat whose tokens are the times at which they are due."""

    def __init__(self, tokens: int, rate: float) -> None:
        self.tokens, self.rate = tokens, rate

    def chat(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        """One token after another."""
        return self._say()

    async def _say(self) -> AsyncIterator[Any]:
        from openbook.chat import Delta, Usage

        begun = time.monotonic()
        for number in range(1, self.tokens + 1):
            due = begun + number / self.rate
            await asyncio.sleep(due - time.monotonic())
            last = number == self.tokens
            usage = Usage(prompt_tokens=1, completion_tokens=number) if last else None
            yield Delta(text=f"{due:.6f} ", finish="stop" if last else None, usage=usage)


def server(words: list[str]) -> None:
    """In a child: serves, and says the port on standard output."""
    from openbook.serve.app import make_app
    from openbook.serve.run import Listener, calm_collector, raise_limits
    from openbook.serve.served import Served
    from openbook.serve.settings import Settings

    tokens, rate, connections, profile = int(words[0]), float(words[1]), int(words[2]), words[3]
    raise_limits()
    calm_collector()
    settings = Settings(port=0, requests=connections + SPARE, connections=connections + SPARE)
    listener = Listener(make_app([Served(name="tick", endpoint=Metronome(tokens, rate))], settings), settings)

    def say() -> None:
        listener.up.wait()
        print(listener.port, flush=True)

    threading.Thread(target=say, daemon=True).start()
    if not profile:
        listener.run()
        return
    import cProfile
    import pstats

    profiler = cProfile.Profile()
    profiler.runcall(listener.run)
    with open(profile, "w") as file:
        pstats.Stats(profiler, stream=file).sort_stats("tottime").print_stats(45)


# ------------------------------------------------------------------------------------------------ the client

BODY = b'{"model":"tick","messages":[{"role":"user","content":"Go."}],"stream":true}'
ASK = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n" % len(BODY)
) + BODY
CONTENT = b'"content":"'


class Reader(asyncio.Protocol):
    """One connection: its events as they come, and whether all came."""

    __slots__ = ("began", "crowd", "events", "rest", "transport", "whole")

    def __init__(self, crowd: Crowd) -> None:
        self.crowd, self.rest, self.events, self.whole = crowd, b"", 0, False

    def connection_made(self, transport: Any) -> None:
        """Asks."""
        self.transport, self.began = transport, time.monotonic()
        transport.write(ASK)

    def data_received(self, data: bytes) -> None:
        """Takes the events of a piece; what is not whole waits for the rest."""
        now = time.monotonic()
        *events, self.rest = (self.rest + data).split(b"\n\n")
        for event in events:
            place = event.find(CONTENT)
            if place >= 0:
                place += len(CONTENT)
                if not self.events:
                    self.crowd.first.append(now - self.began - 1 / self.crowd.rate)
                self.crowd.heard(now - float(event[place : event.index(b" ", place)]))
                self.events += 1
            elif event.endswith(b"data: [DONE]"):
                self.whole = self.events == self.crowd.tokens
                self.transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        """The end."""
        self.crowd.left(self)


class Crowd:
    """All connections of a client."""

    def __init__(self, connections: int, tokens: int, rate: float) -> None:
        self.connections, self.tokens, self.rate = connections, tokens, rate
        self.delays: list[float] = []
        self.first: list[float] = []
        self.open = self.most = self.whole = self.ended = 0
        self.over = asyncio.Event()

    def heard(self, delay: float) -> None:
        """A token came so late."""
        self.delays.append(delay)

    def left(self, reader: Reader) -> None:
        """A connection ended."""
        self.open -= 1
        self.ended += 1
        self.whole += reader.whole
        if self.ended == self.connections:
            self.over.set()

    async def gather(self, port: int) -> None:
        """Opens all, evenly over the ramp, and waits for all to end."""
        loop, began = asyncio.get_running_loop(), time.monotonic()
        for number in range(self.connections):
            await asyncio.sleep(max(0.0, began + number / RAMP - time.monotonic()))
            await loop.create_connection(lambda: Reader(self), "127.0.0.1", port)
            self.open += 1
            self.most = max(self.most, self.open)
        await self.over.wait()


def client(words: list[str]) -> None:
    """In a child: reads everything and prints what it found."""
    from openbook.serve.run import raise_limits

    raise_limits()
    port, connections, tokens = map(int, words[:3])

    async def work() -> Crowd:
        crowd = Crowd(connections, tokens, float(words[3]))
        await crowd.gather(port)
        return crowd

    began, cpu = time.monotonic(), time.process_time()
    crowd = uvloop.run(work())
    cuts, first = statistics.quantiles(crowd.delays, n=1000), statistics.quantiles(crowd.first, n=100)
    print(
        json.dumps(
            {
                "whole": crowd.whole, "at_once": crowd.most, "events": len(crowd.delays),
                "seconds": time.monotonic() - began, "client_cpu": time.process_time() - cpu,
                "p50_ms": 1e3 * cuts[499], "p99_ms": 1e3 * cuts[989], "p999_ms": 1e3 * cuts[998],
                "max_ms": 1e3 * max(crowd.delays), "first_p50_ms": 1e3 * first[49], "first_p99_ms": 1e3 * first[98],
            }
        )
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ both


def used(pid: int) -> tuple[float, float, int]:
    """Seconds of processor time of a process, of them those that the system took, and its highest resident bytes."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own, system = (int(field) / os.sysconf("SC_CLK_TCK") for field in fields[11:13])
    peak = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return own + system, system, int(peak.split()[1]) * 1024


def main() -> None:
    """Runs a server and a client, and prints and keeps what was measured."""
    if len(sys.argv) > 1 and sys.argv[1] in ("server", "client"):
        (server if sys.argv[1] == "server" else client)(sys.argv[2:])
        return
    options = arguments(__doc__ or "", connections=10_000, seconds=20.0, rate=2.0, profile="")
    tokens = round(options.seconds * options.rate)
    about = machine()
    command = [sys.executable, __file__, "server", str(tokens), str(options.rate), str(options.connections)]
    serving = subprocess.Popen([*command, options.profile], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert serving.stdout is not None
        port = serving.stdout.readline().decode().strip()
        before, system, bare = used(serving.pid)
        words = [sys.executable, __file__, "client", port, str(options.connections), str(tokens), str(options.rate)]
        found = json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout)
        after, system_after, peak = used(serving.pid)
    finally:
        serving.terminate()
        serving.wait(60)
    found |= {
        "connections": options.connections, "rate": options.rate, "machine": about,
        "load_after": round(os.getloadavg()[0], 2), "server_cpu": after - before,
        "server_cpu_per_event_us": 1e6 * (after - before) / found["events"],
        "server_system_cpu": system_after - system, "server_peak_bytes": peak,
        "bytes_per_connection": (peak - bare) / options.connections,
    }  # fmt: skip
    said = (
        "{connections} connections, {at_once} at once: {whole} whole, {events} events in {seconds:.1f} s",
        "delay of an event: p50 {p50_ms:.1f} ms, p99 {p99_ms:.1f} ms, p99.9 {p999_ms:.1f} ms, most {max_ms:.1f} ms",
        "a request is late by: p50 {first_p50_ms:.1f} ms, p99 {first_p99_ms:.1f} ms, while others begin",
        "the server: {server_cpu:.1f} s of processor time ({server_system_cpu:.1f} the system's), "
        "{server_cpu_per_event_us:.0f} µs an event; the client: {client_cpu:.1f} s",
        "the server's memory: {mib:.0f} MiB at most, {kib:.0f} KiB a connection",
        "load of the machine: {load} before, {load_after} after",
    )
    more = {"mib": peak / 2**20, "kib": found["bytes_per_connection"] / 1024, "load": about["load"]}
    print("\n".join(said).format(**found, **more))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "connections.json").write_text(json.dumps(found, indent=1) + "\n")
    if found["whole"] < options.connections:
        raise SystemExit(f"{options.connections - found['whole']} streams were not whole.")


if __name__ == "__main__":
    main()
