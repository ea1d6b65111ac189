"""The verbs on real input: text → tokenizer → shards → model → page, text and conversation."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from openbook import cli, config
from openbook.models.load import load, save
from openbook.models.make import make, spec_of
from openbook.text.tokenizer import Tokenizer

STORIES = [
    "Once upon a time there was a small cat. The cat liked to sleep in the sun.",
    "One day a dog came to the house. The dog and the cat became friends.",
    "The sun was warm. They played all day, and then they went home.",
] * 20


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "stories.jsonl"
    path.write_text("".join(json.dumps({"text": story}) + "\n" for story in STORIES))
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that was never trained, with its tokenizer."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    tokenizer = Tokenizer.train(STORIES, 300)
    sizes = {"vocab": tokenizer.vocab, "dim": 16, "layers": 2, "heads": 2, "hidden": 32, "context": 64}
    save(make(spec_of("llama", sizes), 0), path)
    tokenizer.save(path)
    return path


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]):
    """Run a command line in this process; (status, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        status = cli.main([str(word) for word in words])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


# ------------------------------------------------------------------------------------------------ text


def test_tokenizer_then_shards(say: Any, text: Path, tmp_path: Path) -> None:
    assert say("tokenizer", "train", text, "--out", tmp_path / "tok", "--vocab", 300)[0] == 0
    status, out, _ = say("tokenizer", "count", tmp_path / "tok", text, "--json")
    counted = json.loads(out)["total"]
    assert status == 0
    assert counted["documents"] == len(STORIES)
    assert counted["bytes"] == sum(len(story.encode()) for story in STORIES)
    assert counted["tokens"] == sum(map(len, Tokenizer.load(tmp_path / "tok").encode_batch(STORIES)))
    assert "bytes/token" in say("tokenizer", "count", tmp_path / "tok", text)[1]
    prepare = ("data", "prepare", text, "--tokenizer", tmp_path / "tok", "--out", tmp_path / "shards", "--json")
    first, second = json.loads(say(*prepare)[1]), json.loads(say(*prepare)[1])
    assert first == second
    assert first["tokens"] == counted["tokens"] + 2 * len(STORIES), "each document has a begin and an end"


def test_a_tokenizer_that_is_there_stays(say: Any, text: Path, folder: Path, tmp_path: Path) -> None:
    train = ("tokenizer", "train", text, "--vocab", 300, "--out")
    before = (folder / "tokenizer.json").read_bytes()
    assert "needs the tokenizer it has" in say(*train, folder, "--overwrite")[2]
    assert (folder / "tokenizer.json").read_bytes() == before
    assert say(*train, tmp_path / "tok")[0] == 0
    status, _, err = say(*train, tmp_path / "tok")
    assert status == 1
    assert "--overwrite" in err
    assert say(*train, tmp_path / "tok", "--overwrite")[0] == 0


def test_a_run_that_is_not_finished_is_no_model_yet(say: Any, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("")
    status, _, err = say("generate", tmp_path, "--prompt", "a")
    assert status == 1
    assert f"openbook pretrain {tmp_path / 'recipe.toml'}" in err


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "empty"), (b"\x00\x01\xff\xfe" * 100, "not"), (b'{"text": 3}\n', "text")]
)
def test_text_that_is_none(say: Any, tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    status, out, err = say("tokenizer", "train", path, "--out", tmp_path / "tok")
    assert status == 1
    assert says in err
    assert "Traceback" not in err
    assert not out
    assert not (tmp_path / "tok").exists()


# ------------------------------------------------------------------------------------------------ generate


def test_generate_is_the_library(say: Any, folder: Path) -> None:
    from openbook.generate.loop import generate_ids
    from openbook.generate.sampling import Sampling

    tokenizer = Tokenizer.load(folder)
    sampling = Sampling(max_tokens=8, temperature=0.0)
    ids = tokenizer.prompt("Once upon")
    (expected,) = generate_ids(load(folder), [ids], sampling, eos=tokenizer.stops)
    words = ("generate", folder, "--prompt", "Once upon", "--max-tokens", 8, "--temperature", 0)
    status, out, err = say(*words, "--json")
    (record,) = json.loads(out)["generations"]
    assert (status, err) == (0, "")
    assert record["ids"] == expected.ids
    assert record["prompt"] == "Once upon"
    assert say(*words)[1] == "Once upon" + record["text"] + "\n"
    assert json.loads(say(*words, "--no-cached", "--json")[1])["generations"] == [record]


def test_generate_is_repeatable_by_seed(say: Any, folder: Path) -> None:
    words = ("generate", folder, "--prompt", "The", "--max-tokens", 6, "--json", "--n", 3)
    first, again, other = (json.loads(say(*words, "--seed", seed)[1])["generations"] for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == 3


def test_generate_stops_before_a_stop(say: Any, folder: Path) -> None:
    words = ("generate", folder, "--prompt", "The", "--max-tokens", 20, "--temperature", 0, "--json")
    whole = json.loads(say(*words)[1])["generations"][0]["text"]
    stop = next(character for character in whole[3:] if character.isascii())
    record = json.loads(say(*words, "--stop", stop)[1])["generations"][0]
    assert record["text"] == whole[: whole.index(stop)]
    assert record["finish"] == "stop"
    assert record["stop"] == stop
    plain = say(*[word for word in words if word != "--json"], "--stop", stop)[1]
    assert plain == "The" + record["text"] + "\n"


def test_generate_several_prompts_and_beams(say: Any, folder: Path) -> None:
    words = ("generate", folder, "--prompt", "The", "--prompt", "Once", "--max-tokens", 3, "--beams", 2)
    records = json.loads(say(*words, "--json")[1])["generations"]
    assert [record["prompt"] for record in records] == ["The", "Once"]
    assert all(record["score"] < 0 for record in records)
    assert say(*words)[1].count("\n\n") >= 1


@pytest.mark.slow
def test_generate_reads_standard_input(folder: Path) -> None:
    command = [sys.executable, "-m", "openbook", "generate", str(folder), "--max-tokens", "2", "--seed", "1"]
    done = subprocess.run(command, input="Ünder the\n".encode(), capture_output=True, check=False)
    assert done.stdout.decode().startswith("Ünder the")
    done = subprocess.run(command, input=b"\xff\xfe", capture_output=True, check=False)
    assert done.returncode == 1
    assert b"not UTF-8" in done.stderr


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["--prompt", "word " * 200], 1, "context"),
        (["--prompt", "a", "--temperature", "-1"], 2, "`temperature`"),
        (["--prompt", "a", "--top-p", "x"], 2, "--top-p"),
        (["--prompt", "a", "--max-token", "3"], 2, "Did you mean --max-tokens"),
        (["--prompt", "a", "--dtype", "float8"], 1, "float8"),
        (["--prompt", "a", "--device", "tpu"], 1, "tpu"),
        (["--prompt", "a", "--logprobs", "2"], 2, "--json"),
        (["--prompt", "a", "--threads", "0"], 1, "threads"),
    ],
)
def test_generate_refuses(say: Any, folder: Path, words: list[str], status: int, says: str) -> None:
    got, out, err = say("generate", folder, *words)
    assert (got, out) == (status, "")
    assert says in err


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_half_copied_folder(say: Any, folder: Path, tmp_path: Path, name: str) -> None:
    """Each file missing, and each file cut in half: a message, no traceback."""
    for cut in (False, True):
        copy = tmp_path / f"copy-{cut}"
        copy.mkdir()
        for file in folder.iterdir():
            if file.name != name or cut:
                data = file.read_bytes()
                (copy / file.name).write_bytes(data[: len(data) // 2] if file.name == name else data)
        status, out, err = say("generate", copy, "--prompt", "a", "--max-tokens", 1)
        assert (status, out) == (1, "")
        assert "defect" not in err, err


# ------------------------------------------------------------------------------------------------ other kinds


@pytest.fixture(scope="session")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that sees both ways and fills masks."""
    path = tmp_path_factory.mktemp("model") / "masked"
    specials = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    tokenizer = Tokenizer.train(STORIES, 300, specials)
    more = {"architectures": ["BertForMaskedLM"]}
    sizes = {"vocab": tokenizer.vocab, "dim": 16, "layers": 2, "heads": 2, "hidden": 32, "context": 64}
    save(make(spec_of("bert", sizes, more), 0), path)
    tokenizer.save(path)
    return path


def test_generate_fills_masks(say: Any, masked: Path) -> None:
    words = ("generate", masked, "--prompt", "The [MASK] slept in the [MASK].")
    status, out, err = say(*words, "--json")
    assert status == 0, err
    (record,) = json.loads(out)["generations"]
    assert len(record["masks"]) == 2
    assert all(len(mask["top"]) == 5 for mask in record["masks"])
    assert "[MASK]" not in record["text"]
    assert say(*words)[1] == record["text"] + "\n"


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["--prompt", "no blank"], 1, "write [MASK]"),
        (["--prompt", "a [MASK]", "--beams", "2"], 2, "--beams has no meaning"),
        (["--prompt", "a [MASK]", "--max-tokens", "9"], 2, "--max-tokens has no meaning"),
        (["--prompt", "a [MASK]", "--no-cached"], 2, "no meaning"),
    ],
)
def test_filling_refuses(say: Any, masked: Path, words: list[str], status: int, says: str) -> None:
    got, out, err = say("generate", masked, *words)
    assert (got, out) == (status, "")
    assert says in err


def test_generate_with_an_encoder_decoder(say: Any, tmp_path: Path) -> None:
    """The prompt is read, not continued: the text begins with the output."""
    tokenizer = Tokenizer.train(STORIES, 300, ("<pad>", "</s>", "<unk>"))
    more = {"d_kv": 8, "num_decoder_layers": 2, "decoder_start_token_id": 0}
    sizes = {"vocab": tokenizer.vocab, "dim": 16, "layers": 2, "heads": 2, "hidden": 32}
    save(make(spec_of("t5", sizes, more), 0), tmp_path)
    tokenizer.save(tmp_path)
    words = ("generate", tmp_path, "--prompt", "The cat", "--max-tokens", 4, "--temperature", 0)
    status, out, err = say(*words, "--json")
    assert status == 0, err
    (record,) = json.loads(out)["generations"]
    assert say(*words)[1] == record["text"] + "\n"
    assert say(*words, "--beams", 2)[0] == 0


# ------------------------------------------------------------------------------------------------ describe


def test_describe(say: Any, folder: Path) -> None:
    status, page, _ = say("describe", folder)
    report = json.loads(say("describe", folder / "config.json", "--json")[1])
    total = sum(parameter.numel() for parameter in load(folder).parameters())
    assert status == 0
    assert report["parameters"]["total"] == total
    assert max(map(len, page.splitlines())) <= 100
    assert say("describe", folder, "--rows", 0)[0] == 1


# ------------------------------------------------------------------------------------------------ chat


def chat(folder: Path, said: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "openbook", "chat", str(folder), "--seed", "1", "--max-tokens", "5", *words]
    return subprocess.run(command, input=said, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_chat_from_a_pipe(folder: Path, tmp_path: Path) -> None:
    done = chat(folder, f"hello\nand now\n/save {tmp_path}/talk.json\n")
    assert done.returncode == 0, done.stderr
    messages = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [message["content"] for message in messages if message["role"] == "user"] == ["hello", "and now"]
    assert done.stdout == "".join(message["content"] + "\n" for message in messages if message["role"] == "assistant")
    assert chat(folder, "", "--load", f"{tmp_path}/talk.json").returncode == 0


@pytest.mark.slow
def test_chat_with_a_model_that_was_only_pretrained(folder: Path, tmp_path: Path) -> None:
    """Its template joins messages: what the model sees is one text, as it was trained."""
    from openbook.cli.chat import only_continues
    from openbook.train.pretrain import CONTINUE

    base = tmp_path / "base"
    shutil.copytree(folder, base)
    assert not only_continues(Tokenizer.load(base))
    Tokenizer.load(folder).with_chat_template(CONTINUE).save(base)
    assert only_continues(Tokenizer.load(base))
    done = chat(base, f"Once upon\na time\n/save {tmp_path}/talk.json\n", "--temperature", "0")
    said = [message["content"] for message in json.loads((tmp_path / "talk.json").read_text())["messages"]]
    assert done.returncode == 0
    assert said[2] == " a time"
    whole = "".join(said[:3])
    ids = [Tokenizer.load(base).bos, *Tokenizer.load(base).encode(whole)]
    assert Tokenizer.load(base).chat([{"role": "user", "content": whole}]) == ids


@pytest.mark.slow
def test_chat_trims_loudly_and_refuses_what_cannot_fit(folder: Path) -> None:
    done = chat(folder, "one two three\n" * 6)
    assert done.returncode == 0
    assert "no longer sees the oldest" in done.stderr
    done = chat(folder, "word " * 200 + "\nhi\n")
    assert done.returncode == 1
    assert "The last turn alone" in done.stderr
    assert done.stdout.count("\n") >= 1, "the next turn is answered"


def test_chat_with_an_address(say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its keys come from the environment alone; what only a folder or only an address has is refused for the other."""
    from tests.chat.wires import endpoint, reply, said, stream

    monkeypatch.setenv("MY_KEY", "sk-secret")
    monkeypatch.delenv("OPENBOOK_API_KEY", raising=False)
    talk = stream(said("Hi", "stop"))
    with endpoint(talk, reply({"error": "no"}, 401)) as there:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello\nagain\n")))
        status, out, err = say("chat", there.url, "--model", "m", "--key-env", "MY_KEY", "--top-k", 3)
    assert (status, out) == (1, "Hi\n")
    assert "Look at the key from the environment variable MY_KEY" in err
    assert "sk-secret" not in out + err
    assert {one.headers["authorization"] for one in there.asked} == {"Bearer sk-secret"}
    first = there.asked[0].body
    assert (first["model"], first["top_k"], first["messages"]) == ("m", 3, [{"role": "user", "content": "hello"}])
    for words in (
        ("http://h", "--key-env", "NOT_SET"), ("http://h", "--dtype", "float32"), ("http://h", "--context", 9),
        ("ftp://h",), ("http://[",), ("x", "--model", "m"), ("x", "--key-env", "MY_KEY"),
    ):  # fmt: skip
        assert say("chat", *words)[0] == 2, words


@pytest.mark.parametrize(
    ("url", "set_", "key"),
    [
        ("http://h", {"OPENBOOK_API_KEY": "a", "OPENAI_API_KEY": "b"}, "a"),
        ("http://h", {"OPENAI_API_KEY": "b"}, None),
        ("https://api.openai.com", {"OPENAI_API_KEY": "b"}, "b"), ("https://api.openai.com", {}, None),
        ("https://api.openai.com/v1", {"OPENBOOK_API_KEY": "a", "OPENAI_API_KEY": "b"}, "a"),
        ("https://api.openai.com.evil", {"OPENAI_API_KEY": "b"}, None),
    ],
)  # fmt: skip
def test_keys_go_where_they_belong(
    url: str, set_: dict[str, str], key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openbook.cli.chat import endpoint

    for name in ("OPENBOOK_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in set_.items():
        monkeypatch.setenv(name, value)
    assert endpoint(url, "m", None)._wire._key == key


# ------------------------------------------------------------------------------------------------ pretrain

RECIPE = """
out = "{out}"
[data]
text = ["{text}"]
block = 32
[tokenizer]
vocab = 300
[model]
family = "llama"
dim = 16
layers = 1
heads = 2
hidden = 32
[train]
steps = 6
rows = 2
compile = "off"
prompt = ""
"""


@pytest.mark.slow
def test_pretrain_writes_what_the_other_verbs_read(say: Any, text: Path, tmp_path: Path) -> None:
    from openbook.cli.chat import only_continues
    from openbook.train.recipe import Recipe

    recipe, out = tmp_path / "recipe.toml", tmp_path / "run"
    recipe.write_text(RECIPE.format(out=out, text=text))
    status, said, err = say("pretrain", recipe, "--train.rows", 3)
    assert status == 0, err
    assert said == f"{out}\n"
    assert config.load(Recipe, out / "recipe.toml") == config.load(Recipe, recipe, ["--train.rows", "3"])
    assert only_continues(Tokenizer.load(out))
    assert say("generate", out, "--prompt", "The", "--max-tokens", 2)[0] == 0
    assert say("describe", out)[0] == 0
    before = (out / "model.safetensors").read_bytes()
    assert say("pretrain", recipe, "--train.rows", 3)[0] == 0, "finished: nothing is trained again"
    assert (out / "model.safetensors").read_bytes() == before


def test_pretrain_refuses(say: Any, tmp_path: Path) -> None:
    assert say("pretrain")[0] == 2
    assert "no recipe" in say("pretrain", tmp_path / "x.toml")[2]
    (tmp_path / "r.toml").write_text(RECIPE.format(out="x", text="y"))
    assert say("pretrain", tmp_path / "r.toml", "--data.blok", 3)[0] == 2
    (tmp_path / "r.toml").write_text(RECIPE.format(out="x", text="y") + "blok = 3\n")
    status, _, err = say("pretrain", tmp_path / "r.toml")
    assert status == 1
    assert "Unknown key 'blok' in [train]" in err


# ------------------------------------------------------------------------------------------------ doctor, bench


def test_doctor(say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from openbook import runtime

    peaks = runtime.Peaks(threads=1, read=20.0, float32=100.0, bfloat16=400.0, int8=None)
    monkeypatch.setattr(runtime, "peaks", lambda threads=None, again=False: peaks)  # noqa: ARG005
    report = json.loads(say("doctor", "--json")[1])
    assert report["peaks"]["read"] == 20.0
    assert report["estimates"]["decode_1b_int8"] == 20.0
    page = say("doctor")[1]
    assert "20.0 GB/s" in page
    assert len(page.splitlines()) < 30
    assert json.loads(say("doctor", "--json", "--no-measure")[1])["peaks"] is None


def test_doctor_without_torch(tmp_path: Path) -> None:
    """A torch that does not load is what a doctor is for."""
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so: wrong ELF class')")
    command = [sys.executable, "-m", "openbook", "doctor"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "wrong ELF class" in done.stdout
    assert "does not load" in done.stdout


def test_bench_lists_and_refuses(say: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from openbook.cli import bench

    (tmp_path / "one.py").write_text('"""The first."""\nimport sys\nsys.exit(len(sys.argv) - 3)\n')
    monkeypatch.setattr(bench, "measurements", lambda: {"one": tmp_path / "one.py"})
    assert say("bench") == (0, "one          The first.\n", "")
    assert "Did you mean 'one'" in say("bench", "ome")[2]
    assert say("bench", "one", "--out", tmp_path)[0] == 0
    assert say("bench", "all", "--out", tmp_path, "--", "--more")[0] == 1


def test_a_read_only_or_full_target(say: Any, text: Path) -> None:
    if os.access("/dev/full", os.W_OK):
        status, _, err = say("tokenizer", "train", text, "--out", "/dev/full/x", "--vocab", 300)
        assert status == 1
        assert "Cannot write" in err
