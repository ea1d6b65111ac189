"""Tokenizer folders of every kind that can be loaded, trained on a few sentences: what the tests of text/ run over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SENTENCES = [
    "The fox said: don't wait, I'll be there at 12:45! The river was cold and the night was long.",
    "Once upon a time there was a little girl who counted 1, 2, 3, 45 and 6789 stones by the river.",
    "    indented\n\n\tcode(x) == [1, 2]  # tabs\r\nand   spaces  ",
    "Быстрая лиса прыгнула через реку. Ночь была длинной.",
    "नमस्ते दुनिया, यह एक छोटी कहानी है।",
    "你好，世界。狐狸跳过了小河。 こんにちは、世界。",
    "שלום עולם — مرحبا بالعالم",
    "naïve café, Ångström, ﬁne, e\u0301 and é, Straße",
    "🙂 🦊 👩‍👩‍👧‍👦 🇮🇹 and a flag",
]
ODD = [
    "",
    " ",
    "  two leading spaces",
    "trailing ",
    "\n\n\n",
    "\x00\x01\x7f control",
    "▁ the sentencepiece space ▁▁ itself",
    "Ġ the byte-level space Ċ itself",
    "<0x41><0xE2> byte tokens as text",
    "## a ##ing",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ﷽ \u202eright to left\u202c zero\u200bwidth \ufeff bom \ue000 private \U000f1234",
    "a" * 300,
    "🙂" * 40,
]


def byte_level() -> tuple[Tokenizer, dict[str, Any]]:
    """GPT-2: the special token is in the vocabulary, nothing is put around a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        SENTENCES * 3,
        trainers.BpeTrainer(
            vocab_size=500, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    config = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    return tokenizer, config


def llama3() -> tuple[Tokenizer, dict[str, Any]]:
    """Llama 3: a split by a pattern, whole entries before merges, many special tokens, bos by the post-processor."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        SENTENCES * 3, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    )
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer.add_special_tokens(names)
    bos = ("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A $B", special_tokens=[bos]
            ),
        ]
    )
    config = {
        "bos_token": {"__type": "AddedToken", "content": "<|begin_of_text|>", "special": True, "normalized": False},
        "eos_token": "<|eot_id|>",
        "added_tokens_decoder": _added_decoder(tokenizer),
    }
    return tokenizer, config


def llama2() -> tuple[Tokenizer, dict[str, Any]]:
    """Llama 2: sentencepiece BPE by normalizers, bytes for what the vocabulary lacks."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    _train_pieces(tokenizer, specials)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return _unmark_bytes(tokenizer), {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def gemma() -> tuple[Tokenizer, dict[str, Any]]:
    """Gemma: the same without the space in front, and nothing around a text, whatever add_bos_token says."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    _train_pieces(tokenizer, specials)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    config = {
        "bos_token": "<bos>",
        "eos_token": {"__type": "AddedToken", "content": "<eos>", "lstrip": False, "rstrip": False},
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"],
    }
    return _unmark_bytes(tokenizer), config


def unigram() -> tuple[Tokenizer, dict[str, Any]]:
    """T5: unigram with Metaspace; the special tokens are entries that plain text could match; eos after a text."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens([AddedToken("<extra_id_0>", lstrip=True, rstrip=True, special=True, normalized=False)])
    return tokenizer, {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def wordpiece() -> tuple[Tokenizer, dict[str, Any]]:
    """BERT: lower case, words and their parts, [CLS] and [SEP] around a text."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=names, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    roles = dict(zip(["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"], names, strict=True))
    return tokenizer, roles


def word_level() -> tuple[Tokenizer, dict[str, Any]]:
    """Whole words and no decoder: the name of a special token is an entry like any other, and easily written."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(vocab_size=200, special_tokens=["[UNK]", "[EOS]"], show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    return tokenizer, {"unk_token": "[UNK]", "eos_token": "[EOS]"}


KINDS: dict[str, Callable[[], tuple[Tokenizer, dict[str, Any]]]] = {
    "byte_level": byte_level,
    "llama3": llama3,
    "llama2": llama2,
    "gemma": gemma,
    "unigram": unigram,
    "wordpiece": wordpiece,
    "word_level": word_level,
}


def write(kind: str, folder: Path, **config: Any) -> Path:
    """Write the tokenizer of this kind as a Hugging Face folder; `config` adds to tokenizer_config.json."""
    tokenizer, own = KINDS[kind]()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    full = {"tokenizer_class": "PreTrainedTokenizerFast", **own, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(full), encoding="utf-8")
    return folder


def _train_pieces(tokenizer: Tokenizer, specials: list[str]) -> None:
    """BPE over whole sentences would make phrases of them, so training splits at ▁, as sentencepiece does."""
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=420, limit_alphabet=60, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    tokenizer.pre_tokenizer = None  # type: ignore[assignment]


def _unmark_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """Byte tokens are entries of the vocabulary, not special tokens."""
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(state))


def _added_decoder(tokenizer: Tokenizer) -> dict[str, Any]:
    state = json.loads(tokenizer.to_str())
    return {str(token.pop("id")): token for token in state["added_tokens"]}
