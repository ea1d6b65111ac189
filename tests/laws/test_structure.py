"""Law 7: the house stands as docs say. Import direction, names, sizes, dependencies, and what the documents promise.

A rule is a function of a project's root that returns what breaks it. Each rule is run on this project, where it must
find nothing, and on a small project with one seeded fault, which it must find.
"""

from __future__ import annotations

import ast
import functools
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

# Rooms from the ground up. An import points down, never up nor across; the exceptions are in ONLY and NEVER.
LADDER = [
    {"errors", "config", "options", "files", "hardware", "runtime", "log"},
    {"native"},
    {"text"},
    {"nn", "data"},
    {"models"},
    {"adapters", "quant"},
    {"generate"},
    {"train"},
    {"plan"},
    {"chat"},
    {"evaluate"},
    {"apps"},
    {"serve"},
    {"web"},
    {"api"},
    {"cli"},
    {"__init__", "__main__"},
]
RANK = {room: rank for rank, rooms in enumerate(LADDER) for room in rooms}
GROUND = LADDER[0]
ONLY = {"apps": {"evaluate", "chat", "text"} | GROUND}
NEVER = {"generate": {"text", "data"}, "nn": {"text"}}
WITHOUT_TORCH = ("text/", "apps/", "generate/scheduler.py", "generate/pages.py", "generate/plan.py")
OPTIONAL = {"matplotlib", "tensorboard", "huggingface_hub", "llguidance", "httpx", "ray"}
OPTIONAL |= {"zstandard", "pyarrow", "resiliparse", "fastwarc", "ftfy", "py3langid"}
PEERS = {"transformers", "peft", "trl", "bitsandbytes", "vllm", "torchao", "mamba_ssm", "gguf", "lm_eval"}
PEERS |= {"tiktoken", "sentencepiece", "mistral_common", "datasets", "datasketch"}
LONGEST_FILE, LONGEST_FUNCTION, USUAL_FUNCTION = 400, 80, 45
MACHINE_PATH = re.compile("|".join(["/wo" + r"rk/\w", "/ro" + r"ot\b", "/ho" + r"me/\w", "/Us" + r"ers/\w"]))
TEXT_FILES = {".py", ".md", ".toml", ".yml", ".yaml", ".json", ".txt", ".cfg", ".sh", ""}
UNTRACKED = {".git", ".venv", "runs", "build", "dist", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"}

Rule = Callable[[Path], list[str]]


def sources(root: Path, *folders: str) -> Iterator[tuple[str, ast.Module]]:
    """(path relative to the package or folder, syntax tree) of each Python file under `src/openbook` or `folders`."""
    for folder in folders or ("src/openbook",):
        base = root / folder
        for path in sorted(base.rglob("*.py")):
            yield path.relative_to(base).as_posix(), parsed(path.read_text(encoding="utf-8"))


@functools.cache
def parsed(text: str) -> ast.Module:
    """The syntax tree of a file, which every rule looks at."""
    return ast.parse(text)


def imports(tree: ast.AST, *, inside: bool = True) -> Iterator[str]:
    """Dotted names that a module imports; with `inside=False` only those that loading it imports."""
    for node in ast.walk(tree) if inside else loaded(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide the direction"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def loaded(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the module is loaded: not those inside functions, nor under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not typing_only:
            yield node
            yield from loaded(node)


def room_of(path: str) -> str:
    return path.split("/")[0].removesuffix(".py")


def top_packages(tree: ast.AST) -> set[str]:
    """Packages that are imported anywhere in a module; torch's own TensorBoard writer counts as TensorBoard."""
    names = set(imports(tree))
    found = {name.split(".")[0] for name in names}
    return found | ({"tensorboard"} if any(name.startswith("torch.utils.tensorboard") for name in names) else set())


# ------------------------------------------------------------------------------------------------ rules about the code


def imports_point_down(root: Path) -> list[str]:
    broken = []
    for path, tree in sources(root):
        here = room_of(path)
        if here not in RANK:
            broken.append(f"{path}: room '{here}' has no place on the ladder")
            continue
        for name in imports(tree):
            if not name.startswith("openbook.") or name == "openbook.__version__":
                continue
            there = name.split(".")[1]
            down = there == here or RANK.get(there, 99) < RANK[here] or (here in GROUND and there in GROUND)
            allowed = there == here or there in ONLY.get(here, {there})
            if not down or not allowed or there in NEVER.get(here, set()):
                broken.append(f"{path}: '{here}' imports '{there}'")
    return broken


def text_and_apps_need_no_torch(root: Path) -> list[str]:
    return [
        f"{path} imports torch"
        for path, tree in sources(root)
        if path.startswith(WITHOUT_TORCH) and "torch" in top_packages(tree)
    ]


def the_ground_and_help_load_no_torch(root: Path) -> list[str]:
    light = GROUND | {"__init__", "__main__"}
    return [
        f"loading {path} loads torch"
        for path, tree in sources(root)
        if (room_of(path) in light or path == "cli/__init__.py")
        and any(name.split(".")[0] == "torch" for name in imports(tree, inside=False))
    ]


# Where two rooms need the same package and neither may ask the other.
SEVERAL_DOORS = {"ray": ["data/corpus/cluster.py", "serve/cluster.py"]}


def optional_dependencies_have_one_door(root: Path) -> list[str]:
    doors: dict[str, list[str]] = {}
    for path, tree in sources(root):
        for package in top_packages(tree) & OPTIONAL:
            doors.setdefault(package, []).append(path)
    return [
        f"{package} is imported in {', '.join(paths)}"
        for package, paths in doors.items()
        if len(paths) > 1 and paths != SEVERAL_DOORS.get(package)
    ]


def peers_stay_outside(root: Path) -> list[str]:
    return [f"{path} imports {peer}" for path, tree in sources(root) for peer in sorted(top_packages(tree) & PEERS)]


def family_names(root: Path) -> set[str]:
    """Files that define a family."""
    found = set()
    for path, tree in sources(root):
        calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
        if path.startswith("models/families/") and any(isinstance(f, ast.Name) and f.id == "Family" for f in calls):
            found.add(path.removeprefix("models/families/").removesuffix(".py"))
    return found - {"openbook"}  # the last resort has our own name


def words_of(tree: ast.Module) -> Iterator[str]:
    """Identifiers and string constants of a module, without its docstrings."""
    prose = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            prose.add(node.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in prose:
            yield node.value
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name


def nn_names_no_family(root: Path) -> list[str]:
    families = family_names(root)
    return [
        f"{path} says '{word}'"
        for path, tree in sources(root)
        if path.startswith("nn/")
        for word in words_of(tree)
        if families & set(re.split(r"[^a-z0-9]+|(?<=[a-z])_", re.sub(r"([A-Z])", r" \1", word).lower()))
    ]


# A GGUF file calls kinds of tokenizers and split patterns by the models that had them first: words of that format.
FORMAT_WORDS = ("models/", "text/formats/gguf.py", "text/formats/gguf_splits.py")


def families_are_named_in_models_only(root: Path) -> list[str]:
    families = family_names(root)
    return [
        f"{path} says '{word}'"
        for path, tree in sources(root)
        if not path.startswith(FORMAT_WORDS)
        for word in words_of(tree)
        if word in families
    ]


def files_are_short(root: Path) -> list[str]:
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in sorted((root / "src").rglob("*.py"))}
    return [f"{path.relative_to(root)} has {count} lines" for path, count in lengths.items() if count > LONGEST_FILE]


def functions_are_short(root: Path) -> list[str]:
    lengths = {
        f"{path}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path, tree in sources(root)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    broken = [f"{name} has {count} lines" for name, count in lengths.items() if count > LONGEST_FUNCTION]
    if len(lengths) > 1:
        usual = statistics.quantiles(lengths.values(), n=20)[-1]
        if usual > USUAL_FUNCTION:
            broken.append(f"one function in twenty has more than {usual:.0f} lines")
    return broken


def files_open_with_what_they_are(root: Path) -> list[str]:
    return [f"{path} has no docstring" for path, tree in sources(root) if tree.body and not ast.get_docstring(tree)]


def no_machine_paths(root: Path) -> list[str]:
    broken = []
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        if UNTRACKED & set(inside.parts) or not path.is_file() or path.suffix not in TEXT_FILES:
            continue
        if path.stat().st_size < 1_000_000 and (hit := MACHINE_PATH.search(path.read_text("utf-8", errors="replace"))):
            broken.append(f"{inside}: {hit[0]}")
    return broken


# ------------------------------------------------------------------------------------------------ rules about documents


def documents(root: Path) -> list[Path]:
    return [
        p for p in [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").glob("*.md"))] if p.exists()
    ]


def fenced(page: Path, language: str) -> Iterator[str]:
    """The code blocks of a page in one language."""
    yield from re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def shell_lines(page: Path) -> Iterator[str]:
    """Commands in ```sh blocks, continued lines joined, and the `openbook …` and `make …` spans in running text."""
    for block in fenced(page, "sh"):
        yield from block.replace("\\\n", " ").splitlines()
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"`((?:openbook|make) [^`\n]+)`", prose)


def verb_options() -> Mapping[str, set[str]]:
    """Verb → its options, asked of the verbs themselves."""
    from openbook.cli import VERBS
    from openbook.cli.completion import options_of

    return {verb: {option.lstrip("-") for option in options_of(verb)} for verb in VERBS}


def documented_commands_exist(root: Path) -> list[str]:
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    options = verb_options()
    broken = []
    for page in documents(root):
        for line in shell_lines(page):
            said = shlex.split(line.partition(" #")[0].replace("…", "").split("|")[0] or "-")
            if said[:1] == ["make"] and not {w for w in said[1:] if "=" not in w and w[0] != "-"} <= targets:
                broken.append(f"{page.name}: {line}")
            if said[:1] != ["openbook"] or said[1:2] == ["VERB"] or said[1].startswith("-"):
                continue
            verb = next((v for n in (3, 2) if (v := " ".join(said[1:n])) in options), None)
            given = {w[2:].partition("=")[0] for w in said if w.startswith("--")} - {"help"}
            if verb is None or not {g.removeprefix("no-") for g in given} <= options[verb]:
                broken.append(f"{page.name}: {line}")
    return broken


def readme_names_every_verb(root: Path) -> list[str]:
    from openbook.cli import VERBS

    readme = (root / "README.md").read_text(encoding="utf-8")
    return [f"README.md does not say `openbook {verb}`" for verb in VERBS if f"openbook {verb}" not in readme]


def links_lead_somewhere(root: Path) -> list[str]:
    broken = []
    for page in documents(root):
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.name} → {target}")
    return broken


# ------------------------------------------------------------------------------------------------ the law, its faults

LONG = "def f() -> int:\n" + "    x = 1\n" * 80 + "    return x\n"
MANY = "".join(f"def f{i}() -> None:\n" + "    pass\n" * 46 for i in range(9))
FAMILY = {"src/openbook/models/families/zebra.py": "ZEBRA = Family(model_type='zebra')\n"}
PAGE = {"Makefile": "run:\n\ttrue\n"}

# rule → the file that breaks it, beside whatever the rule needs to see
FAULTS: list[tuple[Rule, Mapping[str, str]]] = [
    (imports_point_down, {"src/openbook/nn/x.py": "from openbook.models import load\n"}),
    (imports_point_down, {"src/openbook/nn/x.py": "def f():\n    import openbook.data.batch\n"}),
    (imports_point_down, {"src/openbook/generate/x.py": "from openbook.text.tokenizer import Tokenizer\n"}),
    (imports_point_down, {"src/openbook/apps/x.py": "from openbook.models import load\n"}),
    (imports_point_down, {"src/openbook/attic/x.py": "import openbook.errors\n"}),
    (text_and_apps_need_no_torch, {"src/openbook/text/x.py": "def f():\n    from torch import Tensor\n"}),
    (the_ground_and_help_load_no_torch, {"src/openbook/runtime.py": "import torch\n"}),
    (
        the_ground_and_help_load_no_torch,
        {"src/openbook/cli/__init__.py": "try:\n    import torch.nn\nfinally:\n    pass\n"},
    ),
    (
        optional_dependencies_have_one_door,
        {"src/openbook/train/a.py": "import matplotlib\n", "src/openbook/cli/b.py": "from matplotlib import pyplot\n"},
    ),
    (peers_stay_outside, {"src/openbook/models/x.py": "def f():\n    import transformers\n"}),
    (nn_names_no_family, {**FAMILY, "src/openbook/nn/x.py": "class ZebraAttention: ...\n"}),
    (nn_names_no_family, {**FAMILY, "src/openbook/nn/x.py": "KIND = 'zebra_style'\n"}),
    (families_are_named_in_models_only, {**FAMILY, "src/openbook/train/x.py": "if kind == 'zebra': ...\n"}),
    (files_are_short, {"src/openbook/nn/x.py": "x = 1\n" * 401}),
    (functions_are_short, {"src/openbook/nn/x.py": LONG}),
    (functions_are_short, {"src/openbook/nn/x.py": MANY}),
    (files_open_with_what_they_are, {"src/openbook/nn/x.py": "import math\n"}),
    (no_machine_paths, {"docs/x.md": "see /ho" + "me/someone/model\n"}),
    (documented_commands_exist, {**PAGE, "README.md": "```sh\nopenbook pretrian x.toml\n```\n"}),
    (documented_commands_exist, {**PAGE, "README.md": "Say `openbook doctor --jsn` first.\n"}),
    (documented_commands_exist, {**PAGE, "docs/x.md": "```sh\nmake rnu\n```\n"}),
    (readme_names_every_verb, {"README.md": "`openbook chat`\n"}),
    (links_lead_somewhere, {"README.md": "[the tour](docs/tour.md)\n"}),
]
RULES = list(dict.fromkeys(rule for rule, _ in FAULTS))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_project_keeps(rule: Rule, project: Path) -> None:
    assert rule(project) == []


@pytest.mark.parametrize(("rule", "files"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_the_rule_finds_a_seeded_fault(rule: Rule, files: Mapping[str, str], tmp_path: Path) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert rule(tmp_path)


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["tokenizer", "--help"], ["nonsense"]])
def test_help_loads_no_torch(words: list[str]) -> None:
    """In a process of its own, by what is really loaded."""
    program = (
        "import sys; from openbook.cli import main; status = main(sys.argv[1:]); "
        "heavy = {'torch', 'numpy', 'tyro', 'rich', 'tokenizers'} & set(sys.modules); "
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_loads_no_torch() -> None:
    program = "import sys, openbook; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
