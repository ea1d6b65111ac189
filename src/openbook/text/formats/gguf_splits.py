"""How llama.cpp splits text before byte-level merges: `tokenizer.ggml.pre` names the patterns.

Each pattern splits what the ones before it left. The table is llama.cpp's (`src/llama-vocab.cpp`), where a name stands
for the split pattern of the tokenizer that was converted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_CONTRACTED = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_ENDS = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = _CONTRACTED + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _SIGNS + _ENDS
_QWEN2 = _CONTRACTED + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _SIGNS + _ENDS
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cased(upper: str, lower: str, suffix: str, digits: str) -> str:
    """Words that begin with capitals: the family of o200k."""
    first = r"[^\r\n\p{L}\p{N}]?"
    words = f"{first}{upper}*{lower}+{suffix}|{first}{upper}+{lower}*{suffix}"
    return words + rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*" + _ENDS


_ANY_UPPER, _ANY_LOWER = r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]"
_MARKED_UPPER, _MARKED_LOWER = r"[\p{L}\p{M}&&[^a-z]]", r"[\p{L}\p{M}&&[^A-Z]]"
_MARKED = _cased(_MARKED_UPPER, _MARKED_LOWER, _CONTRACTED + "?", r"\p{N}{1,3}")
_SENTENCE = r" ?[^(\s|.,!?…。，、।۔،)]+"
_ASCII_SIGN = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
_SIGNED = _ASCII_SIGN + r"[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*" + _ENDS
_RUNS = "".join(rf"|\s{{{count}}}(?!\S)" for count in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2")) + r"|\s"
# Letters with case, as ranges of code points: some of them are canonically equal to others, and must not be repaired.
_CASED = (
    "0041-005A 0061-007A 00B5 00C0-00D6 00D8-00F6 00F8-01BA 01BC-01BF 01C4-0293 0295-02AF 0370-0373 0376 "
    "0377 037B-037D 037F 0386 0388-038A 038C 038E-03A1 03A3-03F5 03F7-0481 048A-052F 0531-0556 10A0-10C5 "
    "13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 "
    "1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 "
    "1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D "
    "212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D "
    "A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A "
    "10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943 "
)
_LETTERS = r"\s?[" + re.sub(r"(\w+) ?", r"\\x{\1}", _CASED) + "]+"
_EAST = r"[一-龥ࠀ-一가-퟿]+"


@dataclass(frozen=True)
class Split:
    """The patterns, whether an entry of the vocabulary is taken whole, and whether a text begins with bos."""

    patterns: tuple[str, ...]
    whole_first: bool = False
    bos: bool = False


_BY_NAMES: dict[str, Split] = {
    "default": Split((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": Split((_LLAMA3,), True, True),
    "dbrx smaug-bpe glm4 chatglm-bpe": Split((_LLAMA3,)),
    "jais-2": Split(
        (_CONTRACTED + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _SIGNS + r"|\s*[\r\n]+" + _RUNS,),
    ),
    "deepseek-llm": Split((r"[\r\n]", _LETTERS, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _EAST, r"\p{N}+")),
    "deepseek-coder": Split((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EAST, r"\p{N}")),
    "deepseek-v3 hunyuan-dense joyai-llm": Split((r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", _SIGNED)),
    "youtu": Split(
        (
            r"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+",
            _cased(_UPPER, _LOWER, _CONTRACTED + "?", r"\p{N}"),
        ),
        True,
    ),
    "falcon": Split((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2": Split((r"\p{N}", _GPT2)),
    "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert": Split((_GPT2,)),
    "mpt olmo jais trillion granite-docling exaone4 jina-v1-en jina-v2-code roberta-bpe": Split((_GPT2,)),
    "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2": Split((_QWEN2,)),
    "qwen35": Split((_CONTRACTED + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _ENDS,)),
    "poro-chat bloom gpt3-finnish": Split((_SENTENCE,)),
    "viking": Split((_SENTENCE, r"\p{N}")),
    "tekken": Split((_cased(_ANY_UPPER, _ANY_LOWER, "", r"\p{N}"),), True, True),
    "gpt-4o llama4 kanana2 talkie minimax-m2": Split(
        (_cased(_ANY_UPPER, _ANY_LOWER, _CONTRACTED + "?", r"\p{N}{1,3}"),)
    ),
    "inkling": Split((_MARKED,)),
    "granite-embed-multi-97m": Split((_MARKED,), True),
    "tiny_aya cohere2moe": Split(
        (r"\d{1,3}(?=(?:\d{3})*\b)", _cased(_UPPER, _LOWER, _CONTRACTED + "?", r"\p{N}{1,3}")),
    ),
    "superbpe": Split((r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    "bailingmoe bailingmoe2 llada-moe": Split(
        (
            r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
            + _SIGNS
            + r"|\s*[\r\n]|\s+(?!\S)|\s+",
        )
    ),
    "seed-coder": Split(
        (_CONTRACTED + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+" + _ENDS,),
    ),
    "laguna": Split((r"[^\n]+|[\n]+", _QWEN2)),
    "exaone-moe": Split(
        (
            _CONTRACTED
            + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?"
            + r"|\s*[\r\n]|\s+(?!\S)|\s+",
        )
    ),
    "minicpm5": Split(
        (r"\p{N}{1,3}", _CONTRACTED + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+" + _SIGNS + _ENDS),
        True,
    ),
    "chameleon": Split(
        (
            r"<sentinel:[0-9]+>",
            r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
        bos=True,
    ),
}
SPLITS = {name: entry for names, entry in _BY_NAMES.items() for name in names.split()}
