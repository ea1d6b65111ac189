"""Random-weight Llamas in the format of every engine that is compared: kept in a folder, written once.

    hf            our bf16 weights as a Hugging Face folder, with a small tokenizer for the engines that insist on one
    gguf          Q8_0 of the same weights          (package gguf)
    gguf-words    the same with the words of the small tokenizer, for servers
    openvino      8-bit IR of the same folder       (optimum-intel)
    ctranslate2   int8 of the same folder           (ctranslate2, transformers)

The last three are written by a process of the Python that has the packages: `_contenders.python_of`.
"""

from __future__ import annotations

import json
import shutil
import string
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from _shapes import LLAMA_SHAPES, ours


def folder(root: Path, size: str, kind: str, python: str = sys.executable) -> Path:
    """The folder (or file) of a size in a format, written if it is not there."""
    target = root / size / (f"model-q8_0{kind[4:]}.gguf" if kind.startswith("gguf") else kind)
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"{target.stem}-unfinished{target.suffix}")
    if unfinished.is_dir():
        shutil.rmtree(unfinished)
    if kind == "hf":
        _write_hf(size, unfinished)
    else:
        source = folder(root, size, "hf")
        print(f"  writing {target}", file=sys.stderr)
        command = [python, __file__, kind, str(source), str(unfinished)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{kind} could not be written: " + " | ".join(done.stderr.strip().splitlines()[-3:]))
    unfinished.rename(target)
    return target


def _write_hf(size: str, target: Path) -> None:
    from openbook.models.load import save
    from openbook.models.make import make

    save(make(ours(size)), target, dtype="bfloat16")
    vocab = LLAMA_SHAPES[size]["vocab"]
    words = ["<unk>", "<s>", "</s>", *string.ascii_lowercase]
    words += [f"w{number}" for number in range(len(words), vocab)]
    model = {"type": "BPE", "vocab": {word: i for i, word in enumerate(words)}, "merges": [], "unk_token": "<unk>"}
    special = [
        {"id": i, "content": words[i], "special": True, "normalized": False, "single_word": False}
        | {"lstrip": False, "rstrip": False}
        for i in range(3)
    ]
    tokenizer = {"version": "1.0", "added_tokens": special, "model": model}
    tokenizer["decoder"] = {"type": "Fuse"}
    (target / "tokenizer.json").write_text(json.dumps(tokenizer))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>"}
    (target / "tokenizer_config.json").write_text(json.dumps(about | {"eos_token": "</s>"}))


# ------------------------------------------------------------------------------- in the Python of the engine


def _write_gguf(source: Path, target: Path, words: bool = False) -> None:
    """What llama.cpp's converter writes: its names, q and k with the rotary halves interleaved, norms in fp32."""
    import gguf
    import torch
    from gguf.quants import quantize
    from safetensors.torch import load_file

    config = json.loads((source / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    layers = config["num_hidden_layers"]
    writer = gguf.GGUFWriter(str(target), "llama")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(float((config.get("rope_parameters") or config).get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    _write_words(writer, source, words)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    tensors: dict[str, Any] = {}
    for file in sorted(source.glob("*.safetensors")):
        tensors |= load_file(file)
    for name, tensor in tensors.items():
        array = tensor.to(torch.float32).numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            groups = heads if ".q_proj" in name else kv_heads
            array = array.reshape(groups, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        told = names.get_name(name, try_suffixes=(".weight",))
        if array.ndim == 1:
            writer.add_tensor(told, array)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(told, quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_words(writer: Any, source: Path, words: bool) -> None:
    """A small letter is a token of its own, as in the tokenizer of the folder."""
    if not words:
        writer.add_tokenizer_model("none")
        return
    import gguf

    known = json.loads((source / "tokenizer.json").read_text())["model"]["vocab"]
    kinds = {"<unk>": gguf.TokenType.UNKNOWN, "<s>": gguf.TokenType.CONTROL, "</s>": gguf.TokenType.CONTROL}
    of = [kinds.get(word, gguf.TokenType.NORMAL) for word in known]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(list(known))
    writer.add_token_scores([0.0] * len(known))
    writer.add_token_types(of)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_space_prefix(False)


def _write_openvino(source: Path, target: Path) -> None:
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig, OVWeightQuantizationConfig

    main_export(
        str(source),
        target,
        task="text-generation-with-past",
        ov_config=OVConfig(quantization_config=OVWeightQuantizationConfig(bits=8)),
    )


def _write_ctranslate2(source: Path, target: Path) -> None:
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(source), load_as_float16=False).convert(str(target), quantization="int8")


if __name__ == "__main__":
    kind, source, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    words = partial(_write_gguf, words=True)
    {"gguf": _write_gguf, "gguf-words": words, "openvino": _write_openvino, "ctranslate2": _write_ctranslate2}[kind](
        source, target
    )
