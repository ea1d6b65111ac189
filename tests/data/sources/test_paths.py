"""Which files are found: links, loops, files reached twice, what is no file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from openbook.data.documents import Bad, documents, find_files
from openbook.errors import DataError, OpenbookError, OpenbookWarning


def put(path: Path, content: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def names(paths: list[Path], folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in paths]


def test_loops_of_links_end(tmp_path: Path) -> None:
    put(tmp_path / "a" / "b" / "one.txt")
    (tmp_path / "a" / "b" / "loop").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a" / "self")
    (tmp_path / "again").symlink_to(tmp_path / "a" / "b")
    put(tmp_path / "elsewhere" / "two.txt")
    (tmp_path / "a" / "out").symlink_to(tmp_path / "elsewhere")
    assert names(find_files(tmp_path / "a", bad=lambda _: None), tmp_path) == ["a/b/one.txt", "a/out/two.txt"]
    assert len(find_files(tmp_path, bad=lambda _: None)) == 2


def test_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.txt", "b/c.txt", "b/d/e.txt", "b/d/f.json", ".h/g.txt", "b/.x.txt"):
        put(tmp_path / name, name)
    for number in range(3):  # glob would go round and round these until the end of days
        (tmp_path / "b" / f"loop{number}").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    for pattern, found in {
        "**/*.txt": ["a.txt", "b/c.txt", "b/d/e.txt"],
        "b/**/*.txt": ["b/c.txt", "b/d/e.txt"],
        "b/**": ["b/c.txt", "b/d/e.txt", "b/d/f.json"],
        "**/d/*": ["b/d/e.txt", "b/d/f.json"],
        "?/d/[a-e].*": ["b/d/e.txt"],
        "*": ["a.txt"],
    }.items():
        assert [str(path) for path in find_files(pattern)] == found, pattern
        full = [str(path) for path in find_files(f"{tmp_path}/{pattern}")]
        assert full == [str(tmp_path / name) for name in found], pattern
    with pytest.raises(DataError, match="No file matches"):
        find_files("**/*.md")


def test_a_file_reached_twice_is_read_once(tmp_path: Path) -> None:
    one = put(tmp_path / "one.txt")
    (tmp_path / "soft.txt").symlink_to(one)
    os.link(one, tmp_path / "hard.txt")
    bad: list[Bad] = []
    assert names(find_files(tmp_path, bad=bad.append), tmp_path) == ["hard.txt"]
    assert [(b.path.name, b.reason, b.note) for b in bad] == [
        ("one.txt", "the same file twice", True),
        ("soft.txt", "the same file twice", True),
    ]
    bad.clear()
    assert find_files([one, tmp_path / "." / "one.txt", str(one)], bad=bad.append) == [one]
    assert bad == []
    with pytest.warns(OpenbookWarning, match="same file as"):
        assert list(documents(tmp_path)) == ["x"]


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "one.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "broken.txt").symlink_to(tmp_path / "nothing")
    bad: list[Bad] = []
    assert names(find_files(tmp_path, bad=bad.append), tmp_path) == ["one.txt"]
    assert [(b.path.name, b.reason) for b in bad] == [("broken.txt", "broken link"), ("pipe.txt", "not a file")]
    assert names(find_files(str(tmp_path / "*.txt"), bad=bad.append), tmp_path) == ["one.txt"]
    for path, says in ((tmp_path, "does not exist"), (tmp_path / "pipe.txt", "neither"), ("/dev/null", "neither")):
        with pytest.raises(DataError, match=says):
            find_files(path)
    with pytest.raises(DataError, match="leads nowhere"):
        find_files(tmp_path / "broken.txt")


def test_a_name_that_is_not_utf_8_is_listed(tmp_path: Path) -> None:
    put(tmp_path / "größe ☃.txt")
    path = put(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")))
    bad: list[Bad] = []
    assert names(find_files(tmp_path, bad=bad.append), tmp_path) == ["größe ☃.txt"]
    assert [(b.reason, str(b.path)) for b in bad] == [("name not UTF-8", f"{tmp_path}/\\xff.txt")]
    with pytest.raises(DataError, match="rename it"):
        find_files(path)


def test_a_folder_that_cannot_be_read_or_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "one.txt")
    put(tmp_path / "shut" / "two.txt")
    put(tmp_path / "gone" / "three.txt")
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        if str(path).endswith("gone"):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    bad: list[Bad] = []
    assert names(find_files(tmp_path, bad=bad.append), tmp_path) == ["one.txt"]
    assert [(b.path.name, b.reason) for b in bad] == [("gone", "unreadable"), ("shut", "unreadable")]
    with pytest.raises(OpenbookError, match="gone"):
        find_files(tmp_path)
    with pytest.raises(OpenbookError, match="Permission denied"):
        find_files(tmp_path / "shut", bad=bad.append)


def test_standard_input_is_read_once() -> None:
    with pytest.raises(DataError, match="standard input, can be read only once"):
        find_files("-")
    assert find_files(["-", "-"], standard_input=True) == [Path("-")]
