"""Changing a vocabulary: what is trimmed cuts its corpus as before, what is added is found, what is given fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, processors

from openbook.cli import main
from openbook.errors import TokenizerError
from openbook.models.load import load, save
from openbook.models.make import make, spec_of
from openbook.text import Tokenizer
from openbook.text.folder import Added, Settings
from openbook.text.stream import Kind
from openbook.text.surgery import Change, extend, transplant, trim
from openbook.text.training import SPECIALS
from tests.text.kinds import KINDS, ODD, SENTENCES, write

CUT = [kind for kind in KINDS if kind != "word_level"]
TRAINED = ("bpe", "wordpiece", "unigram")
ALL = [*CUT, *(f"trained {kind}" for kind in TRAINED)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    root = tmp_path_factory.mktemp("kinds")
    loaded = {kind: Tokenizer.load(write(kind, root / kind)) for kind in CUT}
    return loaded | {f"trained {kind}": Tokenizer.train(SENTENCES * 3, 600, kind=kind) for kind in TRAINED}


def spelled(tokenizer: Tokenizer, ids: list[int]) -> list[str | None]:
    return [tokenizer.token(number) for number in ids]


def same_cuts(change: Change, tokenizer: Tokenizer, texts: list[str]) -> None:
    """The trimmed tokenizer cuts the texts as the whole one does, and its ids are the old ones renumbered."""
    for text in texts:
        ids = change.tokenizer.encode(text)
        assert spelled(change.tokenizer, ids) == spelled(tokenizer, tokenizer.encode(text)), text
        assert [change.rows[number] for number in ids] == [(number,) for number in tokenizer.encode(text)]


@pytest.mark.parametrize("kind", ALL)
class TestTrim:
    def test_the_corpus_is_cut_as_before(self, kind: str, made: dict[str, Tokenizer]) -> None:
        tokenizer = made[kind]
        for texts in (SENTENCES[:2], [*SENTENCES[1:3], *ODD], []):
            change = trim(tokenizer, texts)
            same_cuts(change, tokenizer, texts)
            assert change.tokenizer.vocab == len(change.rows) < tokenizer.vocab
            assert set(change.tokenizer.specials) == set(tokenizer.specials)

    def test_what_is_around_a_text_stays(self, kind: str, made: dict[str, Tokenizer], tmp_path: Path) -> None:
        tokenizer = made[kind]
        change = trim(tokenizer, SENTENCES[:1])
        change.tokenizer.save(tmp_path)
        again = Tokenizer.load(tmp_path)
        assert again.fingerprint == change.tokenizer.fingerprint
        for text in SENTENCES[:1]:
            assert spelled(again, again.prompt(text)) == spelled(tokenizer, tokenizer.prompt(text))
        for role in ("bos", "eos", "pad", "unk", "mask", "sep", "cls"):
            old, new = vars(tokenizer)[role], vars(again)[role]
            assert (old is None) == (new is None)
            assert old is None or tokenizer.token(old) == again.token(new)

    def test_other_text_can_still_be_read(self, kind: str, made: dict[str, Tokenizer]) -> None:
        small = trim(made[kind], ["The fox"]).tokenizer
        for text in [*SENTENCES, *ODD]:
            whole = made[kind].decode(made[kind].encode(text))
            if made[kind].decoding.kind is Kind.BYTES or kind in ("llama2", "trained unigram"):
                assert small.decode(small.encode(text)) == whole

    def test_a_fault_is_found(self, kind: str, made: dict[str, Tokenizer]) -> None:
        """One token too few: the longest that the corpus was cut into."""
        tokenizer = made[kind]
        longest = max(tokenizer.encode(SENTENCES[1]), key=lambda number: len(tokenizer.token(number) or ""))
        rest = [text for text in SENTENCES[1].split() if longest not in tokenizer.encode(" " + text)]
        with pytest.raises(AssertionError):
            same_cuts(trim(tokenizer, [" ".join(rest[:3])]), tokenizer, [SENTENCES[1]])


class TestWhatIsNotAmongTheAddedTokens:
    """Tokens that a tokenizer.json needs though it does not list them as added."""

    @pytest.mark.parametrize(
        "around",
        [
            processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]),
            processors.RobertaProcessing(("</s>", 1), ("<s>", 0)),
            processors.Sequence([processors.BertProcessing(("</s>", 1), ("<s>", 0))]),
        ],
    )
    def test_around_a_text(self, around: Any) -> None:
        backend = tokenizers.Tokenizer(models.WordPiece({"<s>": 0, "</s>": 1, "[UNK]": 2, "x": 3, "a": 4, "##b": 5}))
        backend.post_processor = around
        tokenizer = Tokenizer(backend)
        small = trim(tokenizer, ["ab"]).tokenizer
        assert small.vocab == 5
        assert spelled(small, small.prompt("ab")) == spelled(tokenizer, tokenizer.prompt("ab"))

    @pytest.mark.parametrize(
        "model",
        [
            models.BPE({"<unk>": 0, "<s>": 1, "a": 2, "b": 3, "ab": 4}, [("a", "b")], unk_token="<unk>"),
            models.Unigram([("<unk>", 0.0), ("<s>", 0.0), ("a", -1.0), ("b", -2.0), ("ab", -1.5)], unk_id=0),
            models.WordPiece({"<unk>": 0, "<s>": 1, "a": 2, "##b": 3}, unk_token="<unk>"),
        ],
    )
    def test_the_unknown_token(self, model: Any) -> None:
        """It is the model's, whatever the configuration calls `unk_token`."""
        tokenizer = Tokenizer(tokenizers.Tokenizer(model), Settings(roles={"unk": Added(content="<s>")}))
        small = trim(tokenizer, ["ab"]).tokenizer
        for text in ("ab", "zab", "z"):
            assert spelled(small, small.encode(text)) == spelled(tokenizer, tokenizer.encode(text))


class TestKeep:
    def test_tokens_by_name(self, made: dict[str, Tokenizer]) -> None:
        tokenizer = made["trained bpe"]
        change = trim(tokenizer, ["a"], keep=["Ġriver"])
        assert change.tokenizer.token_id("Ġriver") is not None
        assert spelled(change.tokenizer, change.tokenizer.encode(" river")) == ["Ġriver"]

    def test_refusals(self, made: dict[str, Tokenizer], tmp_path: Path) -> None:
        with pytest.raises(TokenizerError, match="is not a token"):
            trim(made["trained bpe"], ["a"], keep=["nothing like it"])
        with pytest.raises(TokenizerError, match="WordLevel"):
            trim(Tokenizer.load(write("word_level", tmp_path)), ["a"])


@pytest.mark.parametrize("kind", ALL)
def test_extended(kind: str, made: dict[str, Tokenizer], tmp_path: Path) -> None:
    tokenizer = made[kind]
    change = extend(tokenizer, ["<tool>", "riverfox"])
    new = change.tokenizer
    numbers = [tokenizer.vocab, tokenizer.vocab + 1]
    assert [new.token_id("<tool>"), new.token_id("riverfox")] == numbers
    assert set(numbers) <= set(new.encode("a <tool> of riverfox"))
    assert change.rows[numbers[1]] == tuple(tokenizer.encode("riverfox"))
    assert extend(tokenizer, ["<tool>"], start="mean").rows[-1] == ()
    for text in SENTENCES:
        assert new.encode(text) == tokenizer.encode(text)
        assert new.prompt(text) == tokenizer.prompt(text)
    new.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == new.fingerprint
    special = extend(tokenizer, ["<tool>"], special=True).tokenizer
    assert special.specials["<tool>"] == tokenizer.vocab
    assert tokenizer.vocab not in special.encode("a <tool>")


@pytest.mark.parametrize("tokens", [[], [""], ["  "], ["x1y2", "x1y2"], ["<|bos|>"]])
def test_what_cannot_be_added(tokens: list[str], made: dict[str, Tokenizer]) -> None:
    with pytest.raises(TokenizerError):
        extend(made["trained bpe"], tokens)


class TestTransplant:
    @pytest.mark.parametrize("donor", ALL)
    @pytest.mark.parametrize("kind", [f"trained {kind}" for kind in TRAINED])
    def test_rows_stand_for_the_same_text(self, kind: str, donor: str, made: dict[str, Tokenizer]) -> None:
        old, new = made[donor], made[kind]
        change = transplant(old, new)
        assert change.known == old.vocab
        assert len(change.rows) == new.vocab
        ordinary = {old.token_bytes(number) for number in range(old.vocab) if number not in old.specials.values()}
        shared = 0
        for number in range(new.vocab):
            data, sources = new.token_bytes(number), change.rows[number]
            if number in new.specials.values():
                continue
            if data in ordinary:
                shared += 1
                assert [old.token_bytes(one) for one in sources] == [data]
            elif old.decoding.kind is Kind.BYTES:
                assert b"".join(old.token_bytes(one) for one in sources) == data
        assert shared > 50

    def test_to_itself_is_nothing(self, made: dict[str, Tokenizer]) -> None:
        for kind in ("trained bpe", "trained wordpiece"):
            rows = transplant(made[kind], made[kind]).rows
            assert rows == tuple((number,) for number in range(made[kind].vocab))

    def test_special_tokens_by_role(self, made: dict[str, Tokenizer]) -> None:
        old, new = made["trained bpe"], made["trained wordpiece"]
        rows = transplant(old, new).rows
        assert [rows[new.cls or 0], rows[new.pad or 0], rows[new.sep or 0]] == [(old.bos,), (old.pad,), (old.eos,)]
        assert rows[new.mask or 0] == ()


# ------------------------------------------------------------------------------------------------ the verbs


@pytest.fixture
def model(made: dict[str, Tokenizer], tmp_path: Path) -> Path:
    tokenizer = made["trained bpe"]
    sizes = {"vocab": tokenizer.vocab + 5, "dim": 16, "layers": 1, "heads": 2, "hidden": 32, "context": 64}
    folder = tmp_path / "model"
    save(make(spec_of("llama", sizes)), folder)
    tokenizer.save(folder)
    return folder


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_the_verbs(model: Path, made: dict[str, Tokenizer], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text(SENTENCES[0])
    ids = made["trained bpe"].vocab
    out = ["--out", str(tmp_path / "out"), "--json"]
    assert main(["tokenizer", "trim", str(model), "--text", str(text), *out]) == 0
    facts = said(capsys)
    small = Tokenizer.load(tmp_path / "out")
    assert facts["ids"] == facts["rows"] == small.vocab == load(tmp_path / "out").spec.embed.vocab
    assert small.vocab < ids
    assert main(["tokenizer", "extend", str(model), "--token", "<a>", "--token", "<b>", *out]) == 1  # it is taken
    assert "--overwrite" in capsys.readouterr().err
    more = ["--token", "<a>", "--token", "<b>", "--multiple", "64", "--overwrite"]
    assert main(["tokenizer", "extend", str(model), *more, *out]) == 0
    facts = said(capsys)
    assert (facts["ids"], facts["ids_before"], facts["means_of_pieces"]) == (ids + 2, ids, 2)
    assert load(tmp_path / "out").spec.embed.vocab % 64 == 0
    made["trained unigram"].save(tmp_path / "other")
    other = ["--tokenizer", str(tmp_path / "other")]
    assert main(["tokenizer", "transplant", str(model), *other, "--overwrite", *out]) == 0
    assert said(capsys)["ids"] == made["trained unigram"].vocab
    assert Tokenizer.load(tmp_path / "out").fingerprint == made["trained unigram"].fingerprint
    assert main(["tokenizer", "transplant", str(model), *other, "--body", "theirs", "--overwrite", *out]) == 1
    assert "no config.json" in capsys.readouterr().err


def test_a_tokenizer_alone(made: dict[str, Tokenizer], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made["trained bpe"].save(tmp_path / "alone")
    assert main(["tokenizer", "extend", str(tmp_path / "alone"), "--token", "<a>", "--out", str(tmp_path / "out")]) == 0
    assert "1 the mean of their pieces" in capsys.readouterr().out
    assert not (tmp_path / "out" / "config.json").exists()
    assert (
        main(["tokenizer", "extend", str(tmp_path / "alone"), "--token", "<a>", "--out", str(tmp_path / "alone")]) == 1
    )


def test_a_chat_survives(made: dict[str, Tokenizer]) -> None:
    tokenizer = made["trained bpe"]
    talk = [{"role": "user", "content": SENTENCES[1]}]
    small = trim(tokenizer, [SENTENCES[1], "\n"]).tokenizer
    assert spelled(small, small.chat(talk)) == spelled(tokenizer, tokenizer.chat(talk))
    assert [small.token(number) for number in small.stops] == [tokenizer.token(number) for number in tokenizer.stops]
    assert set(SPECIALS) <= set(small.specials)
