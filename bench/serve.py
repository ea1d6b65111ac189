"""Servers under load as people make it: Poisson arrivals at rising rates, short and long prompts, streamed over HTTP.

    python bench/serve.py [--size 135m] [--rates 0.5,1,2,4] [--seconds 40] [--rounds 2] [--contenders …] [--out …]

Every server is started in turn, is given each rate for some seconds, and is stopped; then the next one, and all of it
again in the next round. A request counts as good when it was whole, its first token came within `--first` seconds and
its median gap between tokens was below `--gap`: goodput is good requests a second. The capacity of a server is the
highest rate at which the 99th percentile keeps to both; at twice that rate it must go on serving what it took.

    python bench/serve.py --what overhead      tokens/s of 32 streams over HTTP, and of the same engine without
    python bench/serve.py --what cache         a system prompt of 1,900 tokens: first token and bill, cold and again
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _harness import arguments, machine
from _load import Record, Request, ask, poisson, quantile, requests_of
from _servers import SERVERS, Limits, models, serving

PATH = "/v1/completions"
SHORT, LONG, NEW = (30, 120), (500, 1000), (16, 96)


def body_of(name: str, request: Request) -> Mapping[str, Any]:
    """What a server is asked for; all write exactly `new` tokens."""
    said = {"model": "bench", "prompt": request.prompt, "max_tokens": request.new, "temperature": 0.0, "stream": True}
    return said | SERVERS[name].says


def summary(records: list[Record], seconds: float, first: float, gap: float) -> dict[str, Any]:
    """What became of a load."""
    whole = [one for one in records if one.done and one.status == 200]
    gaps = [g for one in whole for g in one.gaps]
    good = [one for one in whole if one.first <= first and (statistics.median(one.gaps) if one.gaps else 0.0) <= gap]
    return {
        "requests": len(records),
        "whole": len(whole),
        "rejected": sum(one.status in (429, 503) for one in records),
        "broken": sum(not one.done and one.status not in (429, 503) for one in records),
        "goodput": round(len(good) / seconds, 3),
        "tokens": round(sum(one.asked for one in whole) / seconds, 1),
        "first_p50": round(quantile([one.first for one in whole], 0.5), 4),
        "first_p99": round(quantile([one.first for one in whole], 0.99), 4),
        "gap_p50": round(quantile(gaps, 0.5), 4),
        "gap_p99": round(quantile(gaps, 0.99), 4),
        "load": round(os.getloadavg()[0], 2),
    }


def round_of(name: str, path: Path, rates: list[float], options: Any, seed: int) -> list[dict[str, Any]]:
    """One server through all rates."""
    found = []
    with serving(name, path, Limits()) as (port, _):
        warm = [(one, body_of(name, one)) for one in requests_of(4, 999, SHORT, LONG, (4, 8))]
        asyncio.run(poisson("127.0.0.1", port, PATH, warm, 10.0, 0))
        for number, rate in enumerate(rates):
            count = max(8, round(rate * options.seconds))
            bodies = [(one, body_of(name, one)) for one in requests_of(count, seed + number, SHORT, LONG, NEW)]
            records, seconds = asyncio.run(poisson("127.0.0.1", port, PATH, bodies, rate, seed + number))
            found.append({"rate": rate, **summary(records, seconds, options.first, options.gap)})
            line = " ".join(f"{key} {value}" for key, value in found[-1].items())
            print(f"  {name:<10} {line}", flush=True)
    return found


def rates(options: Any) -> dict[str, Any]:
    """All servers, all rates, in turn."""
    asked = [float(rate) for rate in options.rates.split(",")]
    here = models(options.contenders.split(","), options.size, options.models)
    rounds: dict[str, list[Any]] = {name: [] for name in here}
    for number in range(options.rounds):
        for name, path in here.items():
            try:
                rounds[name].append(round_of(name, path, asked, options, 100 * number))
            except RuntimeError as error:
                print(f"  {name}: {error}", flush=True)
    print(f"\n{options.size}: goodput (good requests a second) by rate; first token p99 / gap p99 in ms")
    for name, done in rounds.items():
        cells = []
        for place in range(len(asked)):
            at = [one[place] for one in done if len(one) > place]
            if at:
                middle = {key: statistics.median(one[key] for one in at) for key in ("goodput", "first_p99", "gap_p99")}
                rejected = sum(one["rejected"] for one in at)
                cells.append(
                    f"{asked[place]:g}/s: {middle['goodput']:.2f} ({1e3 * middle['first_p99']:.0f}/"
                    f"{1e3 * middle['gap_p99']:.0f}{f', {rejected} refused' if rejected else ''})"
                )
        print(f"  {name:<10} " + "   ".join(cells))
    return {"rates": asked, "limits": {"first": options.first, "gap": options.gap}, "servers": rounds}


def overhead(options: Any) -> dict[str, Any]:
    """The same requests, all at once, over HTTP and in the engine alone; in turn. No prompt comes twice to either."""
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as the command line sets it, before torch is loaded
    from openbook.chat.engine import Engine
    from openbook.cli.loading import Machine, load_both
    from openbook.generate.sampling import Sampling
    from openbook.generate.settings import Settings
    from openbook.serve.collector import calm

    name = options.contenders.split(",")[0]
    (path,) = models([name], options.size, options.models).values()
    form = "int8" if name.endswith("int8") else None
    engine = Engine(*load_both(str(path), Machine(), form), settings=Settings(memory="2GiB"))
    asked = Sampling(max_tokens=128, temperature=0.0, ignore_eos=True)
    calm()  # as the server does
    alone, served = [], []
    with serving(name, path, Limits(waiting=64, waiting_tokens=1 << 20)) as (port, _):
        for number in range(options.rounds + 1):
            requests = requests_of(32, number, (60, 60), (60, 60), (128, 128))
            bodies = [(one, body_of(name, one)) for one in requests]
            began = time.perf_counter()
            engine.core.generate([engine.prompt_of(one.prompt) for one in requests], asked)  # no text, no thread
            alone.append(32 * 128 / (time.perf_counter() - began))
            records, seconds = asyncio.run(poisson("127.0.0.1", port, PATH, bodies, 1e5, number))
            assert all(one.done for one in records), "every stream is whole"
            served.append(32 * 128 / seconds)
            print(f"  alone {alone[-1]:,.0f} tokens/s, over HTTP {served[-1]:,.0f}", flush=True)
    ratio = statistics.median(b / a for a, b in zip(alone[1:], served[1:], strict=True))
    print(f"  over HTTP {ratio:.3f} of the engine alone (median of {options.rounds} rounds, the first left out)")
    return {"alone": alone, "served": served, "ratio": ratio}


def cache(options: Any) -> dict[str, Any]:
    """A shared system prompt, read for the first time and found again."""
    name = options.contenders.split(",")[0]
    (path,) = models([name], options.size, options.models).values()
    cold, hit = [], []
    with serving(name, path, Limits()) as (port, _):
        for number in range(options.rounds):
            system = requests_of(1, 50 + number, (1900, 1900), (1900, 1900), (1, 1))[0].prompt
            for turn in range(4):
                request = Request(system + f"question{turn}", 8)
                record = Record(0.0, len(request.prompt), request.new)
                body = {**body_of(name, request), "stream_options": {"include_usage": True}}
                asyncio.run(ask("127.0.0.1", port, PATH, body, record))
                (hit if turn else cold).append({"first": record.first, **record.usage})
    first = {what: statistics.median(one["first"] for one in them) for what, them in (("cold", cold), ("hit", hit))}
    bill = {
        what: statistics.median(one["billed_tokens"] for one in them) for what, them in (("cold", cold), ("hit", hit))
    }
    print(
        f"  first token {1e3 * first['cold']:.0f} ms → {1e3 * first['hit']:.0f} ms "
        f"({1 - first['hit'] / first['cold']:.0%} sooner); billed {bill['cold']:.0f} → {bill['hit']:.0f} tokens"
    )
    return {"cold": cold, "hit": hit, "first": first, "billed": bill}


def main(options: Any) -> None:
    """One of the three."""
    found = {"rates": rates, "overhead": overhead, "cache": cache}[options.what](options)
    name = "serve" if options.what == "rates" else f"serve_{options.what}"
    options.out.mkdir(parents=True, exist_ok=True)
    kept = {"size": options.size, "machine": machine(), **found}
    (options.out / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")
    print(f"  kept in {options.out / f'{name}.json'}; load now {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    more = {"what": "rates", "size": "135m", "rates": "0.5,1,2,4,8", "seconds": 40.0, "first": 2.0, "gap": 0.15}
    who = {"contenders": "vllm,llama.cpp,ours-bf16,ours-int8", "models": Path("runs/bench/models")}
    main(arguments(__doc__ or "", rounds=2, **more, **who))
