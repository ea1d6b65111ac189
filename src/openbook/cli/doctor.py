"""`openbook doctor`: what this machine has, and what that means for speed."""

from __future__ import annotations

import importlib.util
import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from openbook import __version__, hardware, runtime
from openbook.options import parse

EXTRAS = {"plot": "matplotlib", "tensorboard": "tensorboard", "hub": "huggingface_hub", "peers": "transformers"}
SHARE = 0.35  # of the matrix peak that training of small models reaches; used for estimates only, and said so


@dataclass(frozen=True, kw_only=True)
class Config:
    """What this machine has: cores, instructions, memory and its bandwidth, compiler, torch, GPU; and what follows."""

    json: bool = False
    """Print one JSON object instead of the page."""
    again: bool = False
    """Measure bandwidth and matrix peak again, although they are known from an earlier run."""
    measure: bool = True
    """Leave out bandwidth and matrix peak, which take seconds to measure the first time."""


def main(args: Sequence[str], prog: str) -> int:
    """The verb."""
    config = parse(Config, args, prog=prog)
    report = examine(again=config.again, measure=config.measure)
    print(json.dumps(report, indent=2) if config.json else page(report))
    return 0


def examine(*, again: bool = False, measure: bool = True) -> dict[str, Any]:
    """Everything the page says, as plain values: bytes, GB/s, GFLOP/s, tokens/s."""
    report: dict[str, Any] = {
        "openbook": __version__,
        "python": platform.python_version(),
        "machine": asdict(hardware.machine()),
        "extras": {extra: importlib.util.find_spec(module) is not None for extra, module in EXTRAS.items()},
        "torch": None,
        "peaks": None,
        "estimates": None,
    }
    try:
        report["torch"] = _torch()
    except Exception as error:  # a broken torch must not break the doctor
        return {**report, "torch_error": f"{type(error).__name__}: {error}"}
    report["bfloat16"] = str(runtime.pick_dtype("auto", runtime.pick_device("auto"))) == "torch.bfloat16"
    if measure:
        peaks = runtime.peaks(again=again)
        report["peaks"] = asdict(peaks)
        report["estimates"] = estimates(peaks, fast_bfloat16=bool(report["bfloat16"]))
    return report


def _torch() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "version": torch.__version__,
        "threads": runtime.default_threads(),
        "onednn": torch.backends.mkldnn.is_available(),
        "cuda": torch.version.cuda,
        "gpus": [{"name": g.name, "memory": g.total_memory, "capability": f"{g.major}.{g.minor}"} for g in gpus],
        "mps": torch.backends.mps.is_available(),
    }


def estimates(peaks: runtime.Peaks, *, fast_bfloat16: bool) -> dict[str, float]:
    """Upper bounds in tokens/s that follow from the limits alone; training at the share that is reached in practice.

    Decoding reads every weight once per token; a forward pass costs 2 FLOPs per parameter and token, training 6.
    """
    width, peak = (2, peaks.bfloat16) if fast_bfloat16 else (4, peaks.float32)
    return {
        "decode_1b": peaks.read / width,
        "decode_1b_int8": peaks.read,
        "prefill_1b": peak / 2,
        "train_15m": SHARE * peak * 1e9 / (6 * 15e6),
        "train_124m": SHARE * peak * 1e9 / (6 * 124e6),
    }


def page(report: dict[str, Any]) -> str:
    """The report for a person, on one page."""
    rows = list(_rows(report))
    wide = max(len(name) for name, _ in rows)
    facts = "\n".join(f"{name:<{wide}}  {text}" for name, text in rows)
    meaning = "\n".join(f"  {line}" for line in _meaning(report))
    return f"{facts}\n\nWhat that means\n{meaning}"


def _rows(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    machine, torch, peaks = report["machine"], report["torch"], report["peaks"]
    yield "openbook", f"{report['openbook']}, Python {report['python']}, {machine['system']}"
    yield "processor", machine["processor"]
    cores = f"{machine['physical']} physical, {machine['logical']} logical"
    threads = f", {torch['threads']} threads for computing" if torch else ""
    yield "cores", f"{cores}, {machine['cores']:g} for this process{threads}"
    yield "instructions", ", ".join(machine["features"]) or "none of those that matter here"
    limit = f", limited to {_gib(machine['memory_limit'])}" if machine["memory_limit"] else ""
    yield "memory", f"{_gib(machine['memory'])}, {_gib(machine['memory_free'])} free{limit}"
    if peaks:
        yield "bandwidth", f"{peaks['read']:.1f} GB/s read, measured with {peaks['threads']} threads"
        int8 = f", int8 {peaks['int8']:,.0f}" if peaks["int8"] else ""
        yield (
            "matrix peak",
            f"bfloat16 {peaks['bfloat16']:,.0f}, float32 {peaks['float32']:,.0f}{int8} GFLOP/s, measured",
        )
    yield "compiler", machine["compiler"] or "none"
    if torch:
        built = f"CUDA {torch['cuda']}" if torch["cuda"] else "CPU build"
        yield "torch", f"{torch['version']}, {built}, oneDNN {'yes' if torch['onednn'] else 'no'}"
        gpus = [f"{g['name']}, {_gib(g['memory'])}, capability {g['capability']}" for g in torch["gpus"]]
        yield "GPU", "; ".join(gpus) or ("Apple GPU (device='mps')" if torch["mps"] else "none")
    else:
        yield "torch", f"does not load: {report['torch_error']}"
    yield "extras", ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in report["extras"].items())


def _meaning(report: dict[str, Any]) -> Iterator[str]:
    machine, numbers = report["machine"], report["estimates"]
    if report["torch"] is None:
        yield "Nothing runs until torch loads. Install it again: pip install --force-reinstall torch"
        return
    if report["bfloat16"]:
        yield "bfloat16 in hardware: yes. Training computes in it, and --dtype bfloat16 is worth it."
    else:
        yield "bfloat16 in hardware: no. Training computes in float32; --dtype float32 is faster than bfloat16."
    kind = "bfloat16" if report["bfloat16"] else "float32"
    if numbers:
        rate = f"{numbers['decode_1b']:.1f} tokens/s in {kind}"
        yield f"A model of 1B parameters writes at most {rate} for one reader: each token reads every weight once."
        yield f"It reads a prompt at up to {numbers['prefill_1b']:,.0f} tokens/s: 2 FLOPs per parameter and token."
        yield (
            f"Training reaches about {numbers['train_15m']:,.0f} tokens/s at 15M parameters and "
            f"{numbers['train_124m']:,.0f} at 124M: {SHARE:.0%} of the peak, 6 FLOPs each."
        )
    memory = machine["memory_limit"] or machine["memory"]
    yield (
        f"Memory holds models up to about {0.8 * memory / (2e9 if report['bfloat16'] else 4e9):.1f}B parameters to use "
        f"and {0.6 * memory / 16e9:.2f}B to train (16 bytes per parameter, and activations)."
    )
    yield machine["compile_obstacle"] or f"Compiled models: available ({machine['compiler']} works)."


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
