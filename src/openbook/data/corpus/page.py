"""What happened to a corpus, as one page: no script, nothing fetched, every text from outside escaped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from html import escape
from pathlib import Path
from typing import Any

from openbook.data.corpus.tally import Kind, Ledger

STYLE = Path(__file__).with_suffix(".css")
NONE: frozenset[int] = frozenset()


def page(report: Mapping[str, Any]) -> str:
    """The report (`report.py`) as HTML."""
    ledger = Ledger.from_tree(report["ledger"])
    parts = [
        _head(report), _cards(report), _steps(ledger), _sources(report), _reasons(ledger), _duplicates(report),
        _contamination(report), _shape(report), _bad(report), _files(report), _recipe(report),
    ]  # fmt: skip
    style = STYLE.read_text(encoding="utf-8")
    head = [
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>{escape(report['name'])}</title><style>{style}</style>",
    ]
    body = "\n".join(part for part in parts if part)
    return f'<!doctype html><html lang="en"><head>{"".join(head)}</head><body>{body}</body></html>\n'


def _head(report: Mapping[str, Any]) -> str:
    seconds = sum(report["seconds"].values())
    speed = report["bytes_read"] / max(seconds, 1e-9) / 1e6
    return (
        f"<h1>{escape(report['name'])}</h1><p class=lead>{amount(report['bytes_read'])} of files read in "
        f"{duration(seconds)}, {speed:.1f} MB/s. Stages: "
        + ", ".join(f"{escape(stage)} {duration(took)}" for stage, took in report["seconds"].items())
        + ".</p>"
    )


def _cards(report: Mapping[str, Any]) -> str:
    read, left = report["read"], report["left"]
    cards = [
        ("documents read", f"{read['documents']:,}"),
        ("documents kept", f"{left['documents']:,}"),
        ("text read", amount(read["bytes"])),
        ("text kept", f"{amount(left['bytes'])} ({left['bytes'] / max(1, read['bytes']):.1%})"),
    ]
    if report.get("tokens"):
        cards.append(("tokens", f"{report['tokens']:,}"))
        cards.append(("bytes a token", f"{left['bytes'] / max(1, report['tokens']):.2f}"))
    if report["bad"]["count"]:
        cards.append(("could not be read", f"{report['bad']['count']:,}"))
    return (
        "<div class=cards>" + "".join(f"<div class=card>{name}<b>{value}</b></div>" for name, value in cards) + "</div>"
    )


def _steps(ledger: Ledger) -> str:
    """Step by step: how much came, went, and was changed."""
    rows = []
    steps = ledger.over_sources()
    most = max((tally.bytes for tally in steps.values()), default=1) or 1
    for name, tally in steps.items():
        gone = sum(kind.documents for kind in tally.removed.values())
        lost = sum(kind.bytes for kind in (*tally.removed.values(), *tally.changed.values()))
        changed = sum(kind.documents for kind in tally.changed.values())
        bar = _bar(max(0, tally.bytes - lost) / most, max(0, lost) / most)
        rows.append([escape(name), f"{tally.documents:,}", f"{gone:,}", f"{changed:,}", amount(lost), bar])
    head = ["step", "documents", "removed", "changed", "text taken", "text left (taken in the lighter colour)"]
    return "<h2>Step by step</h2>" + _table(head, rows, bars={5})


def _sources(report: Mapping[str, Any]) -> str:
    rows = []
    for name, source in report["sources"].items():
        read, left = source["read"], source["left"]
        share = left["bytes"] / max(1, report["left"]["bytes"])
        tokens = f"{source['tokens']:,}" if source.get("tokens") is not None else ""
        cells = [escape(name), escape(source["licence"]), amount(read["bytes"]), amount(left["bytes"])]
        rows.append([*cells, f"{left['documents']:,}", tokens, f"{source['weight']:g}", _bar(share, 0)])
    head = ["source", "licence", "read", "kept", "documents", "tokens", "weight", "share of the text"]
    return "<h2>By source</h2>" + _table(head, rows, bars={7}, texts={1})


def _reasons(ledger: Ledger) -> str:
    """Every reason for which something went or was changed, with samples."""
    blocks = []
    for name, tally in ledger.over_sources().items():
        for verb, kinds in (("removed", tally.removed), ("changed", tally.changed)):
            for reason, kind in sorted(kinds.items(), key=lambda item: -item[1].documents):
                blocks.append(_reason(name, verb, reason, kind))
    return "<h2>What went, and why</h2>" + ("".join(blocks) or "<p>Nothing.</p>")


def _reason(step: str, verb: str, reason: str, kind: Kind) -> str:
    about = f"{step}: {reason}" if reason else step
    head = f"<summary>{escape(about)}: {kind.documents:,} documents {verb}, {amount(kind.bytes)}</summary>"
    return f"<details>{head}{''.join(_samples(kind))}</details>"


def _samples(kind: Kind) -> Iterator[str]:
    for sample in kind.samples:
        detail = f" ({escape(sample.detail)})" if sample.detail else ""
        yield f"<div class=place>{escape(sample.place)}{detail}</div>"
        if sample.after:
            yield f"<div class=columns><pre>{escape(sample.text)}</pre><pre>{escape(sample.after)}</pre></div>"
        else:
            yield f"<pre>{escape(sample.text)}</pre>"


def _duplicates(report: Mapping[str, Any]) -> str:
    found = report.get("duplicates")
    if not found:
        return ""
    rows = [
        [escape(str(key)), f"{value:,}" if isinstance(value, int) else escape(str(value))]
        for key, value in found.items()
    ]
    return "<h2>Duplicates</h2>" + _table(["", "count"], rows)


def _contamination(report: Mapping[str, Any]) -> str:
    found = report.get("contamination")
    if not found:
        return ""
    rows = [
        [escape(name), f"{value['items']:,}", f"{value['dirty']:,}", f"{value['part']:.2%}"]
        for name, value in sorted(found["sets"].items(), key=lambda one: -one[1]["part"])
        if value["dirty"]
    ]
    table = _table(["evaluation set", "items", "found in the text", "part"], rows)
    samples = [
        f"<div class=place>{escape(one['items'][0]['set'])}, item {one['items'][0]['number']}, in "
        f"{escape(one['path'])}:{one['line']}</div><pre>{escape(one['text'])}</pre>"
        for one in found["samples"]
    ]
    head = (
        f"Evaluation text in the corpus: {len(rows):,} of {len(found['sets']):,} sets, {found['words']} words and more"
    )
    return f"<h2>{head}</h2>{table}<details><summary>samples</summary>{''.join(samples)}</details>"


def _shape(report: Mapping[str, Any]) -> str:
    """Lengths and languages of what the steps kept."""
    lengths = {int(bits): count for bits, count in report["lengths"].items()}
    parts = []
    if lengths:
        spread = range(min(lengths), max(lengths) + 1)
        most = max(lengths.values())
        bars = "".join(
            f'<div style="height:{100 * lengths.get(bits, 0) / most:.1f}%" title="{lengths.get(bits, 0):,}"></div>'
            for bits in spread
        )
        under = "".join(f"<span>{amount(2 ** (bits - 1)) if bits else 0}</span>" for bits in spread)
        parts.append(f"<h2>Length of documents</h2><div class=histogram>{bars}</div><div class=under>{under}</div>")
    languages = {name: count for name, count in report["languages"].items() if name}
    if languages:
        total = sum(languages.values())
        ordered = sorted(languages.items(), key=lambda item: (-item[1], item[0]))[:20]
        rows = [[escape(name), f"{count:,}", _bar(count / total, 0)] for name, count in ordered]
        parts.append("<h2>Languages</h2>" + _table(["language", "documents", "share"], rows, bars={2}))
    return "".join(parts)


def _bad(report: Mapping[str, Any]) -> str:
    bad = report["bad"]
    if not bad["count"]:
        return ""
    rows = [[escape(f"{one['path']}:{one['line']}"), escape(one["why"])] for one in bad["listed"]]
    more = f"<p>The first {len(rows):,} of {bad['count']:,}.</p>" if bad["count"] > len(rows) else ""
    return f"<h2>What could not be read</h2>{more}" + _table(["place", "why"], rows, texts={1})


def _files(report: Mapping[str, Any]) -> str:
    rows = [
        [escape(file["path"]), escape(file["source"]), amount(file["bytes"]), f"<code>{file['sha256'][:16]}…</code>"]
        for file in report["files"]
    ]
    return (
        f"<h2>Files</h2><details><summary>{len(rows):,} files with their checksums</summary>"
        + _table(["file", "source", "size", "sha256"], rows, texts={1})
        + "</details>"
    )


def _recipe(report: Mapping[str, Any]) -> str:
    return f"<h2>Recipe</h2><details><summary>recipe.toml</summary><pre>{escape(report['recipe'])}</pre></details>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], bars: Set[int] = NONE, texts: Set[int] = NONE) -> str:
    def cell(column: int, value: str) -> str:
        kind = " class=bar" if column in bars else " class=text" if column in texts else ""
        return f"<td{kind}>{value}</td>"

    top = "".join(f"<th{' class=text' if i in texts | bars else ''}>{escape(name)}</th>" for i, name in enumerate(head))
    body = "".join("<tr>" + "".join(cell(i, value) for i, value in enumerate(row)) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def _bar(first: float, second: float) -> str:
    """A bar of two parts, each a share of the whole width."""
    a, b = (100 * min(1.0, max(0.0, part)) for part in (first, second))
    return (
        f'<svg viewBox="0 0 100 10" preserveAspectRatio="none"><rect width="{a:.2f}" height="10" fill="var(--fill)"/>'
        f'<rect x="{a:.2f}" width="{b:.2f}" height="10" fill="var(--gone)"/></svg>'
    )


def amount(size: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if abs(size) < 999.5 or unit == "PB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
