"""The configuration tree: round trips, and what a person is told about a wrong recipe or option."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openbook import config
from openbook.errors import ConfigError, OpenbookError, UsageError
from openbook.options import Positional, Repeated, parse


@dataclass(frozen=True, kw_only=True)
class Source:
    """One of several."""

    path: Path = Path("here")
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where the text comes from."""

    block: int = 512
    """Tokens in a row."""
    paths: tuple[str, ...] = ("a",)
    out_dir: Path | None = None
    ratio: float = 0.1
    shuffle: bool = True
    mix: Mapping[str, float] = field(default_factory=dict)
    kind: Literal["a", "b"] = "a"
    workers: int | Literal["auto"] = "auto"
    sources: tuple[Source, ...] = ()
    betas: tuple[float, float] = (0.9, 0.95)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe."""

    data: Data = field(default_factory=Data)
    warm: Data = field(default_factory=lambda: Data(block=7, out_dir=Path("x")))
    name: str | None = "x"
    need: int
    limit: int | None = 3
    low: int = 0
    high: int = 10

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ConfigError(f"`low` must not exceed `high`: got {self.low} and {self.high}.")


@dataclass(frozen=True, kw_only=True)
class Verb:
    """A verb."""

    dir: Positional[str]
    prompt: Repeated[tuple[str, ...]] = ()
    json: bool = False
    cached: bool = True
    temperature: float | None = None


def recipe(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------ round trips

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = st.floats(allow_nan=False)
sources = st.builds(Source, path=words.map(Path), weight=numbers)
datas = st.builds(
    Data,
    block=st.integers(-(2**62), 2**62),
    paths=st.lists(words, max_size=3).map(tuple),
    out_dir=st.none() | words.filter(lambda w: w != "None").map(Path),
    ratio=numbers,
    shuffle=st.booleans(),
    mix=st.dictionaries(words, numbers, max_size=3),
    kind=st.sampled_from(["a", "b"]),
    workers=st.integers(0, 9) | st.just("auto"),
    sources=st.lists(sources, max_size=2).map(tuple),
    betas=st.tuples(numbers, numbers),
)
optional_words = st.none() | words.filter(lambda w: w != "None")
recipes = st.builds(
    Recipe,
    data=datas,
    warm=datas,
    name=optional_words,
    need=st.integers(-5, 5),
    limit=st.none() | st.integers(),
    low=st.just(0),
    high=st.just(1),
)


def reads_back(value: Any, written: str, path: Path) -> bool:
    path.write_text(written, encoding="utf-8", newline="")
    return config.load(type(value), path) == value


@given(value=recipes)
def test_config_to_file_to_config(value: Recipe, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert reads_back(value, config.to_toml(value), tmp_path_factory.getbasetemp() / "round.toml")


def test_round_trip_seeded_fault(tmp_path: Path) -> None:
    """Leaving every `None` out, as a plain writer would, loses a `None` whose default is something else."""
    value = Recipe(need=1, name=None)
    written = config.to_toml(value)
    assert reads_back(value, written, tmp_path / "r.toml")
    without = "\n".join(line for line in written.splitlines() if '"None"' not in line)
    assert not reads_back(value, without, tmp_path / "r.toml")


def test_none_as_a_text_is_refused_not_confused() -> None:
    with pytest.raises(ConfigError, match="cannot be told from no value"):
        config.to_toml(Recipe(need=1, name="None"))


def test_save_is_what_load_reads(tmp_path: Path) -> None:
    value = Recipe(need=4, data=Data(mix={"ä b": 1.0}, sources=(Source(),)))
    config.save(value, tmp_path / "deep" / "recipe.toml")
    assert config.load(Recipe, tmp_path / "deep" / "recipe.toml") == value


def test_windows_line_ends_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_bytes(b"\xef\xbb\xbfneed = 1\r\n[data]\r\nblock = 3\r\n")
    assert config.load(Recipe, path).data.block == 3


# ------------------------------------------------------------------------------------------------ wrong recipes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "`need` must be given"),
        ("need = 1\nblok = 3", "Unknown key 'blok'"),
        ("need = 1\nblock = 3", "It belongs to `data.block`"),
        ("need = 1\n[data]\nblck = 1", r"Unknown key 'blck' in \[data\].*Did you mean 'block'"),
        ("need = 1.5", "`need` must be a whole number: got 1.5"),
        ("need = true", "`need` must be a whole number: got true"),
        ("need = '1'", "`need` must be a whole number: got the text '1'"),
        ("need = 1\nlimit = 'x'", "`limit` must be a whole number or 'None'"),
        ("need = 1\ndata = 3", "`data` must be a table: got 3"),
        ("need = 1\n[data]\nkind = 'c'", "`data.kind` must be one of 'a', 'b': got the text 'c'"),
        ("need = 1\n[data]\npaths = 'x'", "`data.paths` must be a list"),
        ("need = 1\n[data]\npaths = [1]", r"`data.paths\[0\]` must be a text"),
        ("need = 1\n[data]\nbetas = [1]", "`data.betas` must be a list of 2 values"),
        ("need = 1\n[data]\nworkers = 'aut'", "Did you mean 'auto'"),
        ("need = 1\n[data.mix]\nq = 'x'", "`data.mix.q` must be a number"),
        ("need = 1\n[[data.sources]]\npth = 'x'", r"Unknown key 'pth' in \[data.sources\[0\]\]"),
        ("need = 1\nlow = 11", "`low` must not exceed `high`"),
        ("need 1", "is not valid TOML.*line 1"),
        ("need = 1\nneed = 2", "is not valid TOML"),
    ],
)
def test_wrong_recipe_says_what_and_where(tmp_path: Path, text: str, says: str) -> None:
    path = recipe(tmp_path, text)
    with pytest.raises(ConfigError, match=says) as caught:
        config.load(Recipe, path)
    assert "recipe.toml" in str(caught.value)
    assert str(caught.value).count("recipe.toml") == 1


def test_missing_recipe_names_those_that_are_there(tmp_path: Path) -> None:
    recipe(tmp_path, "")
    with pytest.raises(ConfigError, match=r"no recipe.*Did you mean .*recipe\.toml"):
        config.load(Recipe, tmp_path / "recipes.toml")


def test_folder_and_binary_are_not_recipes(tmp_path: Path) -> None:
    with pytest.raises(OpenbookError, match="Cannot read"):
        config.load(Recipe, tmp_path)
    (tmp_path / "r.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        config.load(Recipe, tmp_path / "r.toml")


# ------------------------------------------------------------------------------------------------ the command line


@pytest.mark.parametrize(
    ("line", "change"),
    [
        ("--need 2", {"need": 2}),
        ("--need=-2", {"need": -2}),
        ("--need -2", {"need": -2}),
        ("--limit None", {"limit": None}),
        ("--low 20 --high 30", {"low": 20, "high": 30}),
    ],
)
def test_overrides(tmp_path: Path, line: str, change: dict[str, Any]) -> None:
    path = recipe(tmp_path, "need = 1")
    assert config.load(Recipe, path, line.split()) == replace(Recipe(need=1), **change)


@pytest.mark.parametrize(
    ("line", "change"),
    [
        ("--data.block 64", {"block": 64}),
        ("--data.out-dir x", {"out_dir": Path("x")}),
        ("--data.out_dir x", {"out_dir": Path("x")}),
        ("--data.shuffle false", {"shuffle": False}),
        ("--data.shuffle=False", {"shuffle": False}),
        ("--data.no-shuffle", {"shuffle": False}),
        ("--data.shuffle", {"shuffle": True}),
        ("--data.paths a b", {"paths": ("a", "b")}),
        ("--data.paths", {"paths": ()}),
        ("--data.workers 3", {"workers": 3}),
        ("--data.mix.new 3", {"mix": {"old": 1.0, "new": 3.0}}),
        ("--data.mix.old=0.5", {"mix": {"old": 0.5}}),
    ],
)
def test_overrides_inside(tmp_path: Path, line: str, change: dict[str, Any]) -> None:
    path = recipe(tmp_path, "need = 1\n[data.mix]\nold = 1")
    start = Data(mix={"old": 1.0})
    assert config.load(Recipe, path, line.split()).data == replace(start, **change)


def test_a_check_across_fields_sees_the_result_only(tmp_path: Path) -> None:
    """The recipe alone is inconsistent; with the override it is not."""
    path = recipe(tmp_path, "need = 1\nlow = 20")
    assert config.load(Recipe, path, ["--high", "30"]).high == 30
    with pytest.raises(ConfigError, match=r"recipe\.toml"):
        config.load(Recipe, path, ["--need", "2"])


def test_a_missing_value_may_come_from_the_command_line(tmp_path: Path) -> None:
    assert config.load(Recipe, recipe(tmp_path, "low = 1"), ["--need", "5"]).need == 5


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--data.blok 3", "Unknown option '--data.blok'.*Did you mean --data.block"),
        ("--block 3", "Did you mean --data.block or --warm.block"),
        ("--zzzz 3", "Unknown option '--zzzz'"),
        ("--data.block x", "--data.block.*'x'"),
        ("--data.block", "--data.block"),
        ("--data.kind c", "'c'.*--data.kind.*'a'.*'b'"),
        ("--data.shuffle=maybe", "true or false: got 'maybe'"),
        ("--data.mix.a", "needs a value"),
        ("stray", "stray"),
    ],
)
def test_wrong_option_says_which(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        config.load(Recipe, recipe(tmp_path, "need = 1"), line.split(), prog="openbook pretrain")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_verb_with_positional_and_repeated_options() -> None:
    words = ["there", "--json", "--prompt", "a b", "--prompt=--c", "--no-cached", "--temperature", "0"]
    expected = Verb(dir="there", json=True, prompt=("a b", "--c"), cached=False, temperature=0.0)
    assert parse(Verb, words, prog="openbook verb") == expected
    assert parse(Verb, ["d", "--json", "false", "--cached", "true"], prog="openbook verb") == Verb(dir="d")


@pytest.mark.parametrize(
    ("line", "says"), [("", "DIR"), ("a b", "b"), ("a --temperature hot", "hot"), ("a --promt x", "--prompt")]
)
def test_wrong_verb_line(line: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse(Verb, line.split(), prog="openbook verb")


def test_help_shows_options_with_their_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        config.load(Recipe, None, ["--help"], prog="openbook pretrain")
    assert not caught.value.code
    page = capsys.readouterr().out
    assert "--data.block" in page
    assert "Tokens in a row" in page
