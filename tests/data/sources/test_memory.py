"""Memory is bounded by one line and one document, never by the file: each in a process of its own, at full size."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

LINE = 200 << 20  # bytes

PROGRAM = """
import resource, sys
from pathlib import Path
from openbook.data.documents import read_documents
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = total = 0
bad = []
for document in read_documents(Path(sys.argv[1]), bad=bad.append):
    count, total = count + 1, total + len(document.text)
    del document
print(count, total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, *(b.reason for b in bad), sep="|")
"""


def measure(path: Path) -> tuple[int, int, int, list[str]]:
    """(documents, their characters, bytes of memory at most, what was listed) of reading a file."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, check=True)
    count, total, kib, *listed = done.stdout.strip().split("|")
    return int(count), int(total), int(kib) << 10, listed


@pytest.mark.slow
@pytest.mark.parametrize("filling", ["a" * 64, "a🙂" * 12 + "abcd", "三" * 21 + "a"])
def test_one_line_of_200_mb(tmp_path: Path, filling: str) -> None:
    path = tmp_path / "a.jsonl"
    block = filling.encode() * (LINE // 64 // 100)
    with path.open("wb") as file:
        file.write(b'{"text": "before"}\n{"text": "')
        for _ in range(100):
            file.write(block)
        file.write(b'"}\n{"text": "after"}\n')
    count, total, memory, listed = measure(path)
    assert (count, total, listed) == (2, 11, ["too long"])
    assert memory < 1.5 * LINE  # three parts of it, each as long as a record may be
    count, total, memory, listed = measure(path.rename(tmp_path / "a.txt"))
    assert (total, listed) == (
        len(filling) * (LINE // 64) + len('{"text": "before"}{"text": ""}{"text": "after"}') + 3,
        [],
    )
    assert 2 <= count <= 4
    assert memory < 3 * LINE


@pytest.mark.slow
def test_a_packed_file_of_one_gigabyte(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    packed = gzip.compress(b"a line that is not special\n" * 1_000_000 + b"<|endoftext|>\n", 1)
    path.write_bytes(packed * 40)
    count, total, memory, listed = measure(path)
    assert (count, total, listed) == (40, 40 * 27_000_000, [])
    assert memory < 300 << 20
