"""Law 7, the documents: the Python on the pages runs, in order, as a reader would run it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STORIES = [
    "Once upon a time there was a small cat. The cat liked to sleep in the sun.",
    "One day a dog came to the house. The dog and the cat became friends.",
] * 30


def examples(page: Path) -> str:
    """All Python blocks of a page as one program, each preceded by a line that says where it stands."""
    text = page.read_text(encoding="utf-8")
    blocks = []
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        line = text[: block.start()].count("\n") + 2
        blocks.append(f"\n# {page.name}, line {line}\n{block[1]}")
    return "".join(blocks)


PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if examples(page)]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `runs/stories` is a small model, made as `openbook pretrain` makes it but not trained."""
    from openbook.models.load import save
    from openbook.models.make import make, spec_of
    from openbook.text.tokenizer import Tokenizer
    from openbook.train.pretrain import CONTINUE

    root = tmp_path_factory.mktemp("documents")
    tokenizer = Tokenizer.train(STORIES, 300, chat_template=CONTINUE)
    sizes = {"vocab": tokenizer.vocab, "dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 64, "context": 64}
    save(make(spec_of("llama", sizes), 0), root / "runs" / "stories")
    tokenizer.save(root / "runs" / "stories")
    return root


def run(program: str, place: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], cwd=place, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page: Path, place: Path) -> None:
    done = run(examples(page), place)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_table_of_families_is_current() -> None:
    generator = ROOT / "docs" / "compatibility.py"
    program = f"import runpy; print(runpy.run_path({str(generator)!r})['page'](), end='')"
    written = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert written == (ROOT / "docs" / "compatibility.md").read_text("utf-8"), "run: python docs/compatibility.py"


def test_an_example_that_is_wrong_is_found(tmp_path: Path) -> None:
    """The seeded fault: a page whose second block contradicts its first."""
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\ntext\n```python\nassert x == 2\n```\n")
    assert run(examples(page), tmp_path).returncode != 0
    page.write_text("```python\nx = 1\n```\ntext\n```python\nassert x == 1\n```\n")
    assert run(examples(page), tmp_path).returncode == 0
