"""The engines that are compared, each behind one call: prompts and how many ids each is to be followed by → done.

A contender says which packages it needs, in which Python they are looked for (bench/README.md), which format of the
model it reads, and how it is opened. All decode greedily, ignore end ids, keep no prefixes and use the same threads.
Nothing is imported before a contender is opened: this file is read by the Python of every one of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Ids = Sequence[Sequence[int]]
Run = Callable[[Ids, Sequence[int]], dict[str, float]]  # writes new[i] ids after prompts[i]; what it knows of its time


@dataclass(frozen=True)
class Place:
    """What a contender is opened for: its model, how many rows at most together, the longest row, threads."""

    path: Path
    rows: int
    context: int
    threads: int


@dataclass(frozen=True)
class Kind:
    """One engine: packages it needs, variables that name its Python, the format it reads, bytes per weight."""

    open: Callable[[Place], Run]
    packages: tuple[str, ...]
    format: str
    weight_bytes: float
    variables: tuple[str, ...] = ()
    mixed: bool = True  # whether it takes rows of different lengths together


# ------------------------------------------------------------------------------------------------ ours


def _ours_loop(place: Place) -> Run:
    """The plain loop, the reference of the engine: bf16."""
    import openbook as ob
    from openbook import runtime
    from openbook.generate.loop import generate_ids
    from openbook.generate.sampling import Sampling

    runtime.keep_memory()
    model = ob.load(str(place.path), dtype="bfloat16")

    def run(prompts: Ids, new: Sequence[int]) -> dict[str, float]:
        sampling = [Sampling(max_tokens=count, temperature=0.0, ignore_eos=True) for count in new]
        done = generate_ids(model, [list(ids) for ids in prompts], sampling)
        return _check([len(one.ids) for one in done], new)

    return run


def our_engine(place: Place, who: str, *, prefix_cache: bool) -> Any:
    """Our engine at its defaults but for what is said here; `ours-int8` or `ours-bf16`."""
    import openbook as ob
    from openbook import runtime
    from openbook.generate.engine import Engine
    from openbook.generate.settings import Settings

    runtime.keep_memory()
    model = ob.load(str(place.path), dtype="bfloat16", quantize="int8" if who == "ours-int8" else None)
    return Engine(model, Settings(rows=place.rows, prefix_cache=prefix_cache), memory="2GiB")


def _ours(place: Place, who: str) -> Run:
    from openbook.generate.sampling import Sampling

    engine = our_engine(place, who, prefix_cache=False)

    def run(prompts: Ids, new: Sequence[int]) -> dict[str, float]:
        sampling = [Sampling(max_tokens=count, temperature=0.0, ignore_eos=True) for count in new]
        before = engine.stats.as_dict()
        done = engine.generate([list(ids) for ids in prompts], sampling)
        _check([len(one.ids) for one in done], new)
        return {name: round(value - before[name], 4) for name, value in engine.stats.as_dict().items()}

    return run


def _ours_int8(place: Place) -> Run:
    return _ours(place, "ours-int8")


def _ours_bf16(place: Place) -> Run:
    return _ours(place, "ours-bf16")


# ------------------------------------------------------------------------------------------------ the peers


def _transformers(place: Place) -> Run:
    import torch
    import transformers

    torch.set_num_threads(place.threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(place.path, dtype=torch.bfloat16)

    def run(prompts: Ids, new: Sequence[int]) -> dict[str, float]:
        ids = torch.tensor(prompts)  # [B,T]: rows of one length
        most = max(new)
        more: dict[str, Any] = {"max_new_tokens": most, "min_new_tokens": most, "do_sample": False, "pad_token_id": 0}
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **more)
        return _check([out.shape[1] - ids.shape[1]] * len(new), new)

    return run


def _transformers_continuous(place: Place) -> Run:
    """`generate_batch` has one length for all its requests: its manager takes a length for each."""
    import torch
    import transformers

    torch.set_num_threads(place.threads)
    options: dict[str, Any] = {"dtype": torch.bfloat16, "attn_implementation": "sdpa"}
    model = transformers.AutoModelForCausalLM.from_pretrained(place.path, **options)
    config = transformers.GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
    blocks = 2 * 2**30 // (256 * 2 * 2 * model.config.num_hidden_layers * _kv_width(model.config))
    batching = transformers.ContinuousBatchingConfig(
        num_blocks=max(64, blocks), max_batch_tokens=2048, allow_block_sharing=False, max_requests_per_batch=place.rows
    )

    def run(prompts: Ids, new: Sequence[int]) -> dict[str, float]:
        written: dict[int, int] = {}
        opened = model.continuous_batching_context_manager(
            generation_config=config, continuous_batching_config=batching, block=True, timeout=30
        )
        with opened as manager:
            for number, (ids, count) in enumerate(zip(prompts, new, strict=True)):
                manager.add_request(list(ids), request_id=str(number), max_new_tokens=count)
            while len(written) < len(new):
                result = manager.get_result(timeout=600)
                if result is None:
                    raise RuntimeError(f"{len(written)} of {len(new)} requests came back within ten minutes")
                if result.is_finished():
                    written[int(result.request_id)] = len(result.generated_tokens)
        return _check([written[number] for number in range(len(new))], new)

    return run


def _kv_width(config: Any) -> int:
    return int(config.num_key_value_heads * config.hidden_size // config.num_attention_heads)


def _llama_cpp(place: Place) -> Run:
    from _llama_cpp import LlamaCpp

    return LlamaCpp(place.path, place.rows, place.context, place.threads).run


def _openvino(place: Place) -> Run:
    import numpy
    import openvino
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 2
    scheduler.enable_prefix_caching = False
    scheduler.max_num_seqs = max(place.rows, 1)
    scheduler.max_num_batched_tokens = 2048
    options = {"INFERENCE_NUM_THREADS": place.threads}
    pipeline = openvino_genai.ContinuousBatchingPipeline(str(place.path), scheduler, "CPU", options)

    def run(prompts: Ids, new: Sequence[int]) -> dict[str, float]:
        configs = []
        for count in new:
            config = openvino_genai.GenerationConfig()
            config.max_new_tokens, config.ignore_eos, config.do_sample = count, True, False
            configs.append(config)
        inputs = [openvino.Tensor(numpy.array([ids], dtype=numpy.int64)) for ids in prompts]
        done = pipeline.generate(inputs, configs)
        return _check([len(one.m_generation_ids[0]) for one in done], new)

    return run


def _ctranslate2(place: Place) -> Run:
    import json

    import ctranslate2

    options = {"compute_type": "int8", "intra_threads": place.threads, "inter_threads": 1}
    generator = ctranslate2.Generator(str(place.path), device="cpu", **options)
    words = json.loads((place.path / "vocabulary.json").read_text())

    def run(prompts: Ids, new: Sequence[int]) -> dict[str, float]:
        most = max(new)
        done = generator.generate_batch(
            [[words[i] for i in ids] for ids in prompts],
            max_length=most,
            min_length=most,
            sampling_topk=1,
            include_prompt_in_result=False,
            max_batch_size=0,
        )
        return _check([len(one.sequences_ids[0]) for one in done], new)

    return run


def _vllm(place: Place) -> Run:
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{place.threads - 1}",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    import vllm

    model = vllm.LLM(
        str(place.path),
        dtype="bfloat16",
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        max_model_len=place.context,
        max_num_seqs=place.rows,
        max_num_batched_tokens=2048,
        disable_log_stats=True,
    )

    def run(prompts: Ids, new: Sequence[int]) -> dict[str, float]:
        greedy = {"temperature": 0.0, "ignore_eos": True, "detokenize": False}
        sampling = [vllm.SamplingParams(max_tokens=count, min_tokens=count, **greedy) for count in new]
        inputs = [{"prompt_token_ids": list(ids)} for ids in prompts]
        done = model.generate(inputs, sampling, use_tqdm=False)
        return _check([len(one.outputs[0].token_ids) for one in done], new)

    return run


def _check(written: Sequence[int], new: Sequence[int]) -> dict[str, float]:
    """Nobody wins by writing less; there is nothing else to say."""
    if list(written) != list(new):
        raise RuntimeError(f"asked for {list(new)[:8]} ids, written {list(written)[:8]}")
    return {}


PEERS = ("OPENBOOK_PEERS",)
KINDS: dict[str, Kind] = {
    "llama.cpp": Kind(_llama_cpp, ("llama_cpp", "gguf"), "gguf", 34 / 32, PEERS),
    "openvino": Kind(_openvino, ("openvino_genai", "optimum"), "openvino", 1, PEERS),
    "ctranslate2": Kind(_ctranslate2, ("ctranslate2", "transformers"), "ctranslate2", 1, PEERS, mixed=False),
    "vllm": Kind(_vllm, ("vllm",), "hf", 2, ("OPENBOOK_PEERS_VLLM", *PEERS)),
    "transformers": Kind(_transformers, ("transformers",), "hf", 2, mixed=False),
    "transformers-continuous": Kind(_transformers_continuous, ("transformers",), "hf", 2),
    "ours-loop": Kind(_ours_loop, ("openbook",), "hf", 2),
    "ours-bf16": Kind(_ours_bf16, ("openbook.generate.engine",), "hf", 2),
    "ours-int8": Kind(_ours_int8, ("openbook.generate.engine",), "hf", 1),
}


# ------------------------------------------------------------------------------------------------ where they live


def python_of(name: str) -> str:
    """The Python of a contender: that of the first environment variable that is set (a folder or the program)."""
    for variable in KINDS[name].variables:
        if value := os.environ.get(variable):
            path = Path(value)
            return str(path / "bin" / "python") if path.is_dir() else str(path)
    return sys.executable


def missing(name: str) -> str | None:
    """Why a contender is not here, in one line; None if it is."""
    kind, python = KINDS[name], python_of(name)
    seek = "import importlib.util as u, sys; sys.exit(' '.join(p for p in sys.argv[1:] if not u.find_spec(p)) or 0)"
    try:
        done = subprocess.run([python, "-c", seek, *kind.packages], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{python} cannot be run ({error.strerror})"
    if not done.returncode:
        return None
    set_it = f"; {kind.variables[0]} says where to look (bench/README.md)" if kind.variables else ""
    lines = done.stderr.strip().splitlines()
    return f"without {lines[-1] if lines else kind.packages} in {python}{set_it}"


def environment_of(name: str, threads: int) -> dict[str, str]:
    """The environment of a contender: its threads, and our source for our own."""
    found = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    if name == "vllm":  # as its installation page advises: the OpenMP that it was built for
        libraries = sorted(Path(python_of(name)).parent.parent.glob("lib/libiomp5.so"))
        found["LD_PRELOAD"] = ":".join(str(path) for path in libraries)
    return found


def version_of(name: str) -> str:
    """The release of a contender, asked in its own process."""
    from importlib.metadata import packages_distributions, version

    package = KINDS[name].packages[0].split(".")[0]
    found = packages_distributions().get(package, [package])
    return f"{found[0]} {version(found[0])}"


def chosen(names: str, default: list[str]) -> dict[str, str]:
    """The contenders that are here → their Python; a line for each that is not."""
    here = {}
    for name in names.split(",") if names else default:
        if name not in KINDS:
            raise SystemExit(f"There is no contender '{name}': " + ", ".join(KINDS))
        if why := missing(name):
            print(f"  {name}: left out, {why}", file=sys.stderr)
        else:
            here[name] = python_of(name)
    return here


def starting(size: str, here: dict[str, str], models: Path, words: str) -> dict[str, Any]:
    """How each is started (NAME|WORDS|THREADS|MODEL after --child), its model written where need be."""
    from _folders import folder
    from _harness import Contender
    from openbook import runtime

    threads, found = runtime.default_threads(), {}
    for name, python in here.items():
        try:
            path = folder(models, size, KINDS[name].format, python)
        except RuntimeError as error:
            print(f"  {name}: left out, {error}", file=sys.stderr)
            continue
        child = f"{name}|{words}|{threads}|{path}"
        found[name] = Contender(["--child", child], python, environment_of(name, threads))
    return found


def prompts_of(rows: int, length: int, vocab: int, seed: int) -> list[list[int]]:
    """Prompts of random ids."""
    import random

    draw = random.Random(seed)
    return [[draw.randrange(300, vocab) for _ in range(length)] for _ in range(rows)]
