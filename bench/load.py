"""Loading a folder of 2 GB: time and peak memory, beside transformers.

    python bench/load.py [--gigabytes 2] [--rounds 3] [--out runs/bench]

Each load runs in a new process; its time is that of the call and of reading every weight once, its memory the highest
resident size above that of the process with everything imported.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from _harness import arguments, machine


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def load_once(which: str) -> None:
    """In a child: load, touch every weight, print seconds and peak bytes."""
    who, folder = which.split("|")
    if who == "ours":
        import openbook as ob

        ob.load  # noqa: B018 (imports everything)
        call: Any = ob.load
    else:
        import transformers

        call = transformers.AutoModelForCausalLM.from_pretrained
        _ = transformers.LlamaForCausalLM
    before, highest, done = resident(), 0, False

    def watch() -> None:
        nonlocal highest
        while not done:
            highest = max(highest, resident())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    model = call(folder) if who == "ours" else call(folder, dtype="auto")
    called = time.perf_counter() - start
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.view(torch.int16).sum()
    seconds = time.perf_counter() - start
    done = True
    watcher.join()
    print(json.dumps({"seconds": seconds, "call": called, "peak": highest - before}))


if __name__ == "__main__":
    options = arguments(__doc__ or "", gigabytes=2.0)
    if options.child:
        load_once(options.child)
        sys.exit()
    from openbook.models.load import save
    from openbook.models.make import make, spec_of

    with tempfile.TemporaryDirectory() as place:
        layers = max(1, round(options.gigabytes * 1e9 / 2 / (12 * 2048**2)))
        sizes = {"vocab": 1000, "dim": 2048, "layers": layers, "heads": 16, "hidden": 5461, "context": 512}
        save(make(spec_of("llama", sizes)), place, dtype="bfloat16")
        weights = sum(file.stat().st_size for file in Path(place).glob("*.safetensors"))
        found: dict[str, list[dict[str, float]]] = {"transformers": [], "ours": []}
        for _ in range(options.rounds):
            for who, results in found.items():
                command = [sys.executable, sys.argv[0], "--child", f"{who}|{place}"]
                out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                results.append(json.loads(out.strip().splitlines()[-1]))
    print(f"\nLoading {weights / 1e9:.2f} GB (bf16), median of {options.rounds} new processes each")
    table = {}
    for who, results in found.items():
        seconds = statistics.median(r["seconds"] for r in results)
        peak = statistics.median(r["peak"] for r in results) / weights
        table[who] = {"seconds": seconds, "peak_over_weights": peak, "rounds": results}
        print(f"  {who:<14} {seconds:.2f} s    peak {peak:.3f} × the weights")
    options.out.mkdir(parents=True, exist_ok=True)
    kept = {"weights": weights, "machine": machine(), "load": os.getloadavg()[0], "results": table}
    (options.out / "load.json").write_text(json.dumps(kept, indent=1) + "\n")
