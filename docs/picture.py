"""Draw docs/picture.png from a finished run: how its samples and its loss went, and what it writes now.

python docs/picture.py runs/stories
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from textwrap import fill

import matplotlib as mpl
import matplotlib.pyplot as plt

import openbook as ob
from openbook.train.curve import losses, smooth

PROMPTS = ["One day, a little girl named"]
INK, PALE, GREEN, BLUE, BACK = "#d8dee9", "#8f98a8", "#a3be8c", "#88c0d0", "#22272e"


def lines(run: Path, records: list[dict[str, object]]) -> list[tuple[str, str]]:
    """(colour, text) of every paragraph."""
    held = {r["step"]: r.get("bits_per_byte") for r in records if r["kind"] == "heldout"}
    samples = [(r["step"], str(r["text"])) for r in records if r["kind"] == "sample"]
    out = [(GREEN, "$ make run")]
    for step, text in (samples[0], samples[len(samples) // 4], samples[-1]):
        out.append((BLUE, f"step {step} · {held[step]:.2f} bits per byte on held-out text"))
        out.append((INK, fill(" ".join(text.split())[:150] + " …", 60)))
    model, tokenizer = ob.load(run), ob.Tokenizer.load(run)
    sampling = ob.Sampling(max_tokens=48, temperature=0.7, top_p=0.95, seed=1)
    out.append((GREEN, f"$ openbook chat {run.parent.name}/{run.name}"))
    for prompt, text in zip(PROMPTS, ob.generate(model, tokenizer, PROMPTS, sampling), strict=True):
        said = " ".join(text.split("\n")[0].split())
        out.append((PALE, "> " + prompt))
        out.append((INK, fill(said[: said.rfind(".") + 1] or said, 60)))
    return out


def draw(run: Path, out: Path) -> None:
    """Write the picture of the run in `run` to `out`."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    mpl.rcParams.update({"text.color": INK, "axes.labelcolor": PALE, "xtick.color": PALE, "ytick.color": PALE})
    figure = plt.figure(figsize=(11, 4.6), facecolor=BACK)
    at = 0.95
    for colour, text in lines(run, records):
        figure.text(0.02, at, text, color=colour, family="DejaVu Sans Mono", fontsize=8.6, va="top", linespacing=1.35)
        at -= 0.048 * (text.count("\n") + 1) + 0.006
    axes = figure.add_axes((0.58, 0.13, 0.4, 0.8), facecolor=BACK)
    train, held = losses(records)
    axes.plot(*zip(*smooth(train), strict=True), color=BLUE, label="loss, nats per token")
    axes.plot(*zip(*held, strict=True), color=GREEN, marker="o", markersize=3, label="held out, bits per byte")
    axes.set_xlabel("step")
    axes.legend(frameon=False, labelcolor=INK)
    for spine in axes.spines.values():
        spine.set_color("#4c566a")
    figure.savefig(out, dpi=130, facecolor=BACK)


if __name__ == "__main__":
    draw(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/stories"), Path(__file__).with_name("picture.png"))
