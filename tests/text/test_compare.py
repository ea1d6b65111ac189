"""Counting and comparing tokenizers: every number checked against one that was counted by hand or another way."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from openbook.cli import main
from openbook.errors import OpenbookError, UsageError
from openbook.text import Tokenizer
from openbook.text.compare.counting import Count, count, grouped, prices
from openbook.text.compare.languages import measure_languages, read_languages
from openbook.text.compare.report import measure, table, use
from openbook.text.compare.splits import grouping, pieces, split
from openbook.text.compare.words import count_words, cut_words
from tests.archive import archive
from tests.text.kinds import SENTENCES, write

LANGUAGES = Path(__file__).parent / "slices" / "languages"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    Tokenizer.train(SENTENCES * 3, 400).save(root / "ours")
    return {"ours": root / "ours", **{kind: write(kind, root / kind) for kind in ("wordpiece", "llama2")}}


@pytest.fixture(scope="module")
def ours(folders: dict[str, Path]) -> Tokenizer:
    return Tokenizer.load(folders["ours"])


class TestCounting:
    def test_counts(self, ours: Tokenizer) -> None:
        texts = ["The fox. 狐狸 🦊", "<|end|>", *SENTENCES * 200]
        told: list[Count] = []
        found = count(ours, iter(texts), told.append)
        assert found.documents == len(texts) == told[-1].documents > told[0].documents
        assert found.bytes == sum(len(text.encode()) for text in texts)
        assert found.characters == sum(map(len, texts))
        assert found.tokens == sum(len(ours.encode(text)) for text in texts)
        assert found.bytes_per_token == found.bytes / found.tokens
        assert count(ours, []) == Count()
        assert Count().bytes_per_token == 0

    def test_named_specials_are_text(self, ours: Tokenizer) -> None:
        assert count(ours, ["<|end|>"]).tokens == len(ours.encode("<|end|>")) > 1

    def test_groups_are_bounded(self) -> None:
        texts = ["a" * 10, "b" * 3, "c" * 3, "d", *"efghij"]
        groups = list(grouped(texts, together=4, characters=7))
        assert groups == [["a" * 10], ["b" * 3, "c" * 3, "d"], ["e", "f", "g", "h"], ["i", "j"]]
        read: list[str] = []
        stream = grouped((read.append(text) or text for text in texts), together=1)  # type: ignore[func-returns-value]
        next(stream)
        assert len(read) == 2  # the next one, which says that the group is full

    def test_prices(self) -> None:
        assert prices(["2.5"]) == {"": 2.5}
        named = prices(["input=2.5", "output=10"])
        assert Count(tokens=2_000_000).cost(named) == {"input": 5.0, "output": 20.0}
        for wrong in (["x"], ["-1"], ["nan"], ["a=inf"], ["1", "2"], ["a=1", "a=2"], [""]):
            with pytest.raises(UsageError, match="--price"):
                prices(wrong)


class TestWords:
    def test_what_a_word_is(self) -> None:
        found = count_words(["The fox's den, (the fox) don't—'yes' 3.14 नमस्ते दुनिया; the"])
        assert found == Counter(
            ["The", "fox's", "den", "the", "fox", "don't", "yes", "3", "14", "नमस्ते", "दुनिया", "the"]
        )
        assert not count_words(["狐狸在夜里过河。 the"])
        assert not count_words(["x" * 101])

    def test_fertility(self, ours: Tokenizer) -> None:
        words = Counter({"river": 3, "zqxj": 1})
        sizes = {word: len(ours.encode(f"a {word}")) - 1 for word in words}
        found = cut_words(ours, words)
        assert found.fertility == (3 * sizes["river"] + sizes["zqxj"]) / 4
        assert found.share_continued == sum(words[word] for word in words if sizes[word] > 1) / 4
        assert cut_words(ours, Counter()).fertility is None

    def test_in_every_kind(self, folders: dict[str, Path]) -> None:
        """A word that is one entry counts as one, whatever the vocabulary does with the space before it."""
        for kind, marked in (("wordpiece", "the"), ("llama2", "▁the"), ("ours", "Ġthe")):
            tokenizer = Tokenizer.load(folders[kind])
            assert tokenizer.token_id(marked) is not None
            assert cut_words(tokenizer, Counter(["the"])).fertility == 1, kind


class TestUse:
    def test_what_is_lost(self, folders: dict[str, Path]) -> None:
        lossy = Tokenizer.load(folders["wordpiece"])
        found = use(lossy, ["the fox", "The ქართული"])
        assert (found.changed, found.unknown) == (1, len(lossy.encode("The ქართული")) - 1)
        assert found.example.startswith("'The ქართული' → 'the ")
        assert use(Tokenizer.load(folders["ours"]), ["The 狐狸"]).changed == 0

    def test_what_is_used(self, ours: Tokenizer) -> None:
        measured = measure("ours", ours, SENTENCES, count_words(SENTENCES), {})
        seen = {number for text in SENTENCES for number in ours.encode(text)}
        assert measured.use.seen == len(seen)
        assert measured.unused == 1 - len(seen) / (ours.vocab - len(ours.specials))


class TestSplits:
    @pytest.mark.parametrize(
        ("pieces", "rule"),
        [
            (["1|2|3|4", "5|6"], "single digits"),
            (["123|4", "123|456|78"], "3 from the left"),
            (["1|234", "12|345|678"], "3 from the right"),
            (["12|34", "123|4"], "irregular"),
            (["12|[?]"], "irregular"),
        ],
    )
    def test_grouping(self, pieces: list[str], rule: str) -> None:
        assert grouping([one.split("|") for one in pieces]) == rule

    def test_pieces(self, folders: dict[str, Path]) -> None:
        assert "".join(pieces(Tokenizer.load(folders["ours"]), "naïve 🦊!")) == "naïve 🦊!"
        assert "".join(pieces(Tokenizer.load(folders["llama2"]), "naïve 🦊!")) == "naïve 🦊!"
        assert pieces(Tokenizer.load(folders["wordpiece"]), "ქ") == ["[?]"]

    def test_code(self, folders: dict[str, Path]) -> None:
        assert set(split(Tokenizer.load(folders["wordpiece"])).indents.values()) == {0}  # BERT has no indentation
        found = split(Tokenizer.load(folders["ours"]))
        assert found.indents[4] > 0
        assert {name: "".join(cut) for name, cut in found.names.items()} == {name: name for name in found.names}


class TestLanguages:
    def test_parity(self, ours: Tokenizer) -> None:
        texts = read_languages(LANGUAGES)
        assert list(texts)[:2] == ["English", "German"]
        assert len(texts) == 8
        found = {one.name: one for one in measure_languages(ours, texts)}
        assert found["English"].parity == 1.0
        german = len(ours.encode(texts["German"])) / len(ours.encode(texts["English"]))
        assert found["German"].parity == german > 1
        assert found["Thai"].words.fertility is None
        assert found["Hindi"].words.fertility

    def test_a_cheap_language_that_is_lost(self, folders: dict[str, Path]) -> None:
        found = measure_languages(Tokenizer.load(folders["wordpiece"]), read_languages(LANGUAGES))
        thai = next(one for one in found if one.name == "Thai")
        assert (thai.parity or 0) < 1
        assert thai.lost > 0.8

    def test_a_zip_is_a_folder(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "texts.zip", "w") as file:
            for path in LANGUAGES.glob("*.txt"):
                file.write(path, f"texts/{path.name}")
        assert read_languages(tmp_path / "texts.zip") == read_languages(LANGUAGES)

    def test_what_is_no_such_text(self, tmp_path: Path) -> None:
        (tmp_path / "x.zip").write_bytes(b"PK nonsense")
        (tmp_path / "empty").mkdir()
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad" / "deu.txt").write_bytes(b"M\xfcnchen")
        for name, says in (("x.zip", "not a .zip"), ("empty", "holds no"), ("bad", "not UTF-8"), ("no", "No such")):
            with pytest.raises(OpenbookError, match=says):
                read_languages(tmp_path / name)

    @pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
    def test_a_damaged_zip(self, method: int, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
            archive.writestr("deu.txt", "der Fuchs " * 9)
        content = bytearray((tmp_path / "x.zip").read_bytes())
        content[60:66] = b"\xff" * 6
        (tmp_path / "x.zip").write_bytes(content)
        with pytest.raises(OpenbookError, match=r"x\.zip"):
            read_languages(tmp_path / "x.zip")

    @pytest.mark.slow
    def test_the_declaration(self) -> None:
        texts = read_languages(archive("tasks/multilingual/udhr2.zip"))
        assert len(texts) == 34
        assert all(8_000 < len(text.encode()) < 50_000 for text in texts.values())


class TestVerbs:
    def test_count(self, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = tmp_path / "text.txt"
        text.write_text("The fox. 狐狸 <|end|>", encoding="utf-8")
        asked = ["--price", "input=2.5", "--price", "output=10"]
        assert main(["tokenizer", "count", str(folders["ours"]), str(text), *asked, "--currency", "EUR"]) == 0
        assert "EUR at 10 for a million tokens" in capsys.readouterr().out
        assert main(["tokenizer", "count", str(folders["ours"]), str(text), *asked, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        tokens = len(Tokenizer.load(folders["ours"]).encode("The fox. 狐狸 <|end|>"))
        assert found["total"]["tokens"] == tokens
        assert found["total"]["characters"] == 19
        assert math.isclose(found["cost"]["output"], tokens * 10 / 1e6)

    def test_standard_input(
        self, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def given(content: bytes) -> None:
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="latin-1"))

        given("eins é\n<|endoftext|>\nzwei\n".encode())
        assert main(["tokenizer", "count", str(folders["ours"]), "-", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["files"][0]
        assert (found["path"], found["documents"], found["bytes"]) == ("-", 2, len("eins é\nzwei\n".encode()))
        given(b"caf\xe9")
        assert main(["tokenizer", "count", str(folders["ours"]), "-"]) == 1
        assert "not UTF-8" in capsys.readouterr().err
        given(b"")
        assert main(["tokenizer", "count", str(folders["ours"]), "-"]) == 1

    def test_compare(self, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = tmp_path / "text.txt"
        text.write_text("\n".join(SENTENCES), encoding="utf-8")
        words = ["tokenizer", "compare", *map(str, folders.values()), "--text", str(text)]
        assert main([*words, "--languages", str(LANGUAGES)]) == 0
        said = capsys.readouterr().out
        assert all(part in said for part in ("bytes per token", "Chinese", "1,000,000", "max_token_count", "unknown"))
        assert main([*words, "--json"]) == 0
        found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["tokenizers"]
        assert [one["name"] for one in found] == list(folders)
        assert found[0]["bytes"] == found[1]["bytes"] == len(text.read_text(encoding="utf-8").encode())

    def test_the_limit_is_shared(
        self, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name in ("a", "b"):
            (tmp_path / f"{name}.txt").write_text(name * 3000)
        words = ["tokenizer", "compare", str(folders["ours"]), "--text", str(tmp_path), "--json", "--limit", "0.002"]
        assert main(words) == 0
        said = capsys.readouterr()
        assert json.loads(said.out)["tokenizers"][0]["characters"] == 2000
        assert "--limit takes more" in said.err

    @pytest.mark.parametrize(
        "words", [["--limit", "0"], ["--out", "picture.pdf"], ["SAME"]], ids=["limit", "picture", "twice"]
    )
    def test_wrong_usage(self, words: list[str], folders: dict[str, Path]) -> None:
        path = str(folders["ours"])
        words = [path, path, "--text", "x"] if words == ["SAME"] else [path, "--text", "x", *words]
        assert main(["tokenizer", "compare", *words]) == 2

    def test_a_currency_without_a_price(self, folders: dict[str, Path]) -> None:
        assert main(["tokenizer", "count", str(folders["ours"]), "x", "--currency", "EUR"]) == 2

    def test_a_file_where_a_folder_is_written(
        self, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Refused before any work: the text that is named is not there."""
        out = tmp_path / "file"
        out.touch()
        for words in (["train", "no.txt"], ["trim", str(folders["ours"]), "--text", "no.txt"]):
            assert main(["tokenizer", *words, "--out", str(out)]) == 1
            assert "--out is a folder" in capsys.readouterr().err

    def test_train(self, tmp_path: Path) -> None:
        text = tmp_path / "text.txt"
        text.write_text("\n".join(SENTENCES * 3), encoding="utf-8")
        words = ["tokenizer", "train", str(text), "--vocab", "310", "--out"]
        assert main([*words, str(tmp_path / "chat")]) == 0
        assert Tokenizer.load(tmp_path / "chat").templates
        assert main([*words, str(tmp_path / "plain"), "--no-chat"]) == 0
        assert not Tokenizer.load(tmp_path / "plain").templates
        assert main([*words, str(tmp_path / "closed"), "--closed", "--specials", "<s>", "</s>"]) == 0
        for kind in ("wordpiece", "unigram"):
            assert main([*words, str(tmp_path / kind), "--kind", kind]) == 0
            assert Tokenizer.load(tmp_path / kind).specials
        closed = Tokenizer.load(tmp_path / "closed")
        assert list(closed.specials) == ["<s>", "</s>"]
        assert closed.prompt("a")[-1] == closed.eos


@pytest.mark.slow
def test_the_picture(folders: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    text = tmp_path / "text.txt"
    text.write_text("a $x$ b\n" + "\n".join(SENTENCES), encoding="utf-8")
    words = ["tokenizer", "compare", *map(str, folders.values()), "--text", str(text), "--out", str(tmp_path / "p.png")]
    for more in ([], ["--languages", str(LANGUAGES)]):
        assert main([*words, *more]) == 0
        assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_names_that_are_no_formulas(ours: Tokenizer, tmp_path: Path) -> None:
    """Of folders, files and languages: neither read as a formula nor left out of the legend."""
    pytest.importorskip("matplotlib")
    from openbook.text.compare import picture
    from openbook.train.curve import blank_figure, write_png

    languages = {"English": "the fox", "$\\x$": "der Fuchs"}
    names = ["a$\\frac$b", "_under", "two\nlines", "x" * 99]
    measured = [measure(name, ours, SENTENCES, count_words(SENTENCES), languages) for name in names]
    figure = blank_figure("A picture", picture.size(measured))
    picture.draw(measured, figure, "$\\frac$")
    write_png(figure, tmp_path / "p.png")
    legend = next(axes.get_legend() for axes in figure.axes if axes.get_legend())
    said = [text.get_text().strip() for text in legend.get_texts()]
    assert said == ["a$\\frac$b", "_under", "two lines", "…" + "x" * 23]


def test_the_table_lines_up(ours: Tokenizer) -> None:
    one = measure("ours", ours, SENTENCES, count_words(SENTENCES), read_languages(LANGUAGES))
    blocks = [block.splitlines() for block in table([one, one]).split("\n\n")]
    assert all(len({len(line) for line in block}) == 1 for block in blocks)
