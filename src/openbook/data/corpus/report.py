"""What happened, as JSON for programs, a page for people (`page.py`) and a card for whoever is given the corpus."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openbook
from openbook import config
from openbook.data.corpus.clean import LISTED as OF_A_BLOCK
from openbook.data.corpus.clean import listed
from openbook.data.corpus.page import amount, duration, page
from openbook.data.corpus.plan import Plan
from openbook.data.corpus.recipe import Corpus, Source
from openbook.data.corpus.tally import Ledger
from openbook.data.shards import Shards
from openbook.data.sources.document import Bad
from openbook.files import write_atomic, write_json

NAME = "report.json"
CHANGED = "it was written to after this corpus was begun: parts of it may be older than others. Make the corpus anew."
OVERLAPS = 200  # places of evaluation text in the report
LISTED = 1000  # bad places in the report; bad.jsonl lists what the blocks listed


@dataclass
class Summed:
    """What all parts of a corpus say together; of the parts themselves one is in memory at a time."""

    ledger: Ledger = field(default_factory=Ledger)
    about: Counter[str] = field(default_factory=Counter)
    bad: int = 0  # places that could not be read
    listed: list[Mapping[str, Any]] = field(default_factory=list)  # some of them
    left: dict[str, Counter[str]] = field(default_factory=dict)  # source → documents, bytes
    items: set[int] = field(default_factory=set)  # of the evaluation sets that were found
    overlaps: list[dict[str, Any]] = field(default_factory=list)  # where

    def add(self, ledger: Ledger, notes: Mapping[str, Any]) -> None:
        """One more part of one stage."""
        self.ledger.merge(ledger)
        self.about.update(notes.get("about", {}))
        bad, found = notes.get("bad", {}), notes.get("overlaps", {})
        self.bad += bad.get("count", 0)
        self.listed += bad.get("listed", [])
        if "source" in notes:
            counts = {key: notes[key] for key in ("documents", "bytes")}
            self.left.setdefault(notes["source"], Counter()).update(counts)
        self.items.update(found.get("items", []))
        self.overlaps += found.get("parts", [])[: max(0, OVERLAPS - len(self.overlaps))]


def report(
    recipe: Corpus,
    plan: Plan,
    files: Sequence[Mapping[str, Any]],
    parts: Summed,
    found: Mapping[str, Any],
    shards: Mapping[str, Shards],
    seconds: Mapping[str, float],
    workers: int,
) -> dict[str, Any]:
    """Everything that is known of a corpus, in one tree.

    files    those of the plan with their checksums            parts    what all parts say
    found    what comparing found, in numbers                  shards    the tokens of every source
    """
    ledger, about = parts.ledger, parts.about
    bad = [*(listed(one) for one in plan.bad), *parts.listed]
    count = parts.bad + sum(not one.note for one in plan.bad)
    for file in files:
        if file.get("changed"):
            bad.append(listed(Bad(Path(file["path"]), "changed while read", CHANGED)))
            count += 1
    sources = {source.name: _source(source, parts, shards) for source in recipe.sources}
    total = {
        stage: {key: sum(source[stage][key] for source in sources.values()) for key in ("documents", "bytes")}
        for stage in ("read", "left")
    }
    return {
        "format": "openbook-corpus", "version": 1, "identity": plan.identity, "openbook": openbook.__version__,
        "name": Path(recipe.out).name, "bytes_read": sum(file["bytes"] for file in files), **total,
        "tokens": sum(made.tokens for made in shards.values()) if shards else None,
        "tokenizer": next((made.tokenizer for made in shards.values()), None),
        "sources": sources, "duplicates": dict(found), "ledger": ledger.to_tree(),
        "bad": {"count": count, "listed": bad},
        "languages": _counts(about, "language"), "lengths": _counts(about, "length"),
        "files": list(files), "seconds": {stage: round(took, 3) for stage, took in seconds.items()},
        "workers": workers,
        "recipe": config.to_toml(recipe),
    }  # fmt: skip


def nothing_left(plan: Plan, parts: Summed) -> str:
    """Why there is no text to make tokens of: what took most of it, or what could not be read."""
    bad = [*(listed(one)["why"] for one in plan.bad), *(one["why"] for one in parts.listed)]
    gone = [
        (kind.documents, f"{step}, {reason}" if reason else step)
        for step, tally in parts.ledger.over_sources().items()
        for reason, kind in tally.removed.items()
    ]
    if not gone:
        return "Nothing is left of the text: no document could be read" + (f" ({bad[0]})" if bad else ".")
    most = "; ".join(f"{what}: {count:,}" for count, what in sorted(gone, key=lambda one: -one[0])[:4])
    return f"Nothing is left of the text. What removed most documents: {most}. Loosen these steps, or leave them out."


def write(folder: Path, made: Mapping[str, Any], out: Path) -> None:
    """report.json, report.html, card.md; bad.jsonl where something could not be read; training.toml where there are
    tokens. `out`: where the folder will be."""
    bad = made["bad"]["listed"]
    if bad:
        write_atomic(folder / "bad.jsonl", "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in bad))
    short = {**made, "bad": {**made["bad"], "listed": bad[:LISTED]}}
    if made["tokens"]:
        write_atomic(folder / "training.toml", training(made, out))
    write_atomic(folder / "report.html", page(short))
    write_atomic(folder / "card.md", card(short))
    write_json(folder / NAME, short)


def training(made: Mapping[str, Any], out: Path) -> str:
    """The part of a training recipe that reads this corpus, each source by its tokens and its weight."""
    lines = ["# What a training recipe needs to read this corpus: put it into one, beside [model] and [train]."]
    for name, source in made["sources"].items():
        if source["tokens"] and source["weight"] > 0:
            lines += ["[[data.sources]]", f"name = {json.dumps(name)}", f"path = {json.dumps(f'{out}/shards/{name}')}"]
            lines += [f"weight = {source['weight'] * source['tokens'] / made['tokens']:.6g}", ""]
    return "\n".join([*lines, "[tokenizer]", f"path = {json.dumps(f'{out}/tokenizer')}", ""])


def card(made: Mapping[str, Any]) -> str:
    """The dataset card, with the front matter that dataset hubs read."""
    licences = sorted({source["licence"] for source in made["sources"].values()})
    languages = sorted((name for name in made["languages"] if name), key=lambda name: -made["languages"][name])
    head = ["---", f"pretty_name: {json.dumps(made['name'], ensure_ascii=False)}", "license: other", "license_details:"]
    head += [f"- {json.dumps(licence, ensure_ascii=False)}" for licence in licences]
    head += ["language:", *(f"- {json.dumps(name)}" for name in languages[:20])] if languages else []
    head += ["tags:", "- openbook", "---"]
    tokens = f", {made['tokens']:,} tokens" if made["tokens"] else ""
    text = [
        f"# {_cell(made['name'])}", "",
        f"{made['left']['documents']:,} documents, {amount(made['left']['bytes'])} of text{tokens}, out of "
        f"{made['read']['documents']:,} documents and {amount(made['read']['bytes'])} that were read.",
        "", "## Sources", "",
        "| source | licence | from | documents | bytes | tokens | weight |", "|---|---|---|---|---|---|---|",
        *(_row(name, source) for name, source in made["sources"].items()),
        "", "## What was done", "",
        "| step | documents that came | removed | changed | bytes taken |", "|---|---|---|---|---|",
        *_steps(Ledger.from_tree(made["ledger"])),
        "", "## Files", "", "| file | bytes | sha256 |", "|---|---|---|",
        *(f"| {_cell(file['path'])} | {file['bytes']:,} | {file['sha256']} |" for file in made["files"]),
    ]  # fmt: skip
    if made["bad"]["count"]:
        count = f"{made['bad']['count']:,} places could not be read"
        text += ["", f"{count}: bad.jsonl lists them, of every block the first {OF_A_BLOCK}."]
    text += ["", "## Made again with", "", "`openbook data prepare recipe.toml`, where recipe.toml is:", ""]
    return "\n".join([*head, "", *text, *_fenced("toml", made["recipe"].strip()), ""])


def _row(name: str, source: Mapping[str, Any]) -> str:
    left = source["left"]
    tokens = "" if source["tokens"] is None else f"{source['tokens']:,}"
    cells = [_cell(name), _cell(source["licence"]), _cell(source["origin"]), f"{left['documents']:,}"]
    return "| " + " | ".join([*cells, f"{left['bytes']:,}", tokens, f"{source['weight']:g}"]) + " |"


def _steps(ledger: Ledger) -> list[str]:
    rows = []
    for name, tally in ledger.over_sources().items():
        gone, changed = (sum(kind.documents for kind in kinds.values()) for kinds in (tally.removed, tally.changed))
        taken = sum(kind.bytes for kind in (*tally.removed.values(), *tally.changed.values()))
        rows.append(f"| {_cell(name)} | {tally.documents:,} | {gone:,} | {changed:,} | {taken:,} |")
    return rows


def _cell(text: str) -> str:
    """Text from outside between the bars of a Markdown table: no markup, no link, one line."""
    return " ".join(re.sub(r"([\\`*\[\]|])", r"\\\1", str(text)).replace("&", "&amp;").replace("<", "&lt;").split())


def _fenced(kind: str, text: str) -> list[str]:
    """A block of code, whatever fences stand in it."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return [f"{fence}{kind}", text, fence]


def _source(source: Source, parts: Summed, shards: Mapping[str, Shards]) -> dict[str, Any]:
    read = parts.ledger.tally(source.name, "read")
    left = parts.left.get(source.name, Counter())
    made = shards.get(source.name)
    return {
        "licence": source.licence, "origin": source.origin, "weight": source.weight,
        "read": {"documents": read.documents, "bytes": read.bytes},
        "left": {key: left[key] for key in ("documents", "bytes")},
        "tokens": None if made is None else made.tokens,
        "fingerprint": None if made is None else made.fingerprint,
    }  # fmt: skip


def _counts(about: Mapping[str, int], kind: str) -> dict[str, int]:
    found = {key.partition(" ")[2]: count for key, count in about.items() if key.startswith(f"{kind} ")}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def summary(made: Mapping[str, Any], out: Path) -> str:
    """The report in some lines for a terminal."""
    lines = [f"{'step':<24} {'came':>11} {'removed':>9} {'changed':>9} {'bytes taken':>12}"]
    for name, tally in Ledger.from_tree(made["ledger"]).over_sources().items():
        gone, changed = (sum(kind.documents for kind in kinds.values()) for kinds in (tally.removed, tally.changed))
        taken = sum(kind.bytes for kind in (*tally.removed.values(), *tally.changed.values()))
        lines.append(f"{name:<24} {tally.documents:>11,} {gone:>9,} {changed:>9,} {amount(taken):>12}")
        reasons = sorted(tally.removed.items(), key=lambda item: -item[1].documents)
        for reason, kind in reasons if len(reasons) > 1 or (reasons and reasons[0][0]) else []:
            lines.append(f"  {reason:<22} {'':>11} {kind.documents:>9,} {'':>9} {amount(kind.bytes):>12}")
    lines += ["", f"{'source':<24} {'documents':>11} {'bytes':>12} {'tokens':>14}"]
    for name, source in made["sources"].items():
        tokens = "" if source["tokens"] is None else f"{source['tokens']:,}"
        left = source["left"]
        lines.append(f"{name:<24} {left['documents']:>11,} {amount(left['bytes']):>12} {tokens:>14}")
    took = duration(sum(made["seconds"].values()))
    read, left = made["read"], made["left"]
    lines += [
        "",
        f"{amount(read['bytes'])} read, {amount(left['bytes'])} left "
        f"({left['bytes'] / max(1, read['bytes']):.1%}), {took}",
    ]
    if made["bad"]["count"]:
        lines.append(f"{made['bad']['count']:,} places could not be read: {out / 'bad.jsonl'}")
    return "\n".join([*lines, f"{out / 'report.html'}", f"{out / 'card.md'}"])
