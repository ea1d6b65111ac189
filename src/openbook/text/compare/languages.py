"""The same text in many languages: what a tokenizer charges whom.

    parity    tokens of a language / tokens of English, for the same text (Petrov et al. 2023, Language Model Tokenizers
              Introduce Unfairness Between Languages); 2: a question costs twice as much, half as much fits a context

The Universal Declaration of Human Rights is such a text: `udhr2.zip` of the NLTK data, or any folder of .txt files
named by language.
"""

from __future__ import annotations

import lzma
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openbook.errors import DataError
from openbook.files import explain_os_error
from openbook.text.compare.counting import Count
from openbook.text.compare.words import Words, count_words, cut_words
from openbook.text.tokenizer import Tokenizer

# Of the hundreds of languages in such an archive: many speakers, many scripts, many ways to make words.
CHOSEN = {
    "eng": "English", "deu": "German", "nld": "Dutch", "fra": "French", "spa": "Spanish", "por_PT": "Portuguese",
    "ita": "Italian", "pol": "Polish", "rus": "Russian", "ukr": "Ukrainian", "ell_monotonic": "Greek",
    "tur": "Turkish", "fin": "Finnish", "hun": "Hungarian", "ind": "Indonesian", "vie": "Vietnamese",
    "swh": "Swahili", "yor": "Yoruba", "zul": "Zulu", "amh": "Amharic", "arb": "Arabic", "heb": "Hebrew",
    "pes_1": "Persian", "urd": "Urdu", "hin": "Hindi", "ben": "Bengali", "tam": "Tamil", "kat": "Georgian",
    "tha": "Thai", "khm": "Khmer", "mya": "Burmese", "cmn_hans": "Chinese", "jpn": "Japanese", "kor": "Korean",
}  # fmt: skip
REFERENCE = ("eng", "en", "english")
FEW = 4  # chosen languages at least; an archive with fewer has names of its own, and all of it is read
LARGEST = 1 << 22  # bytes of one language


@dataclass(frozen=True, kw_only=True)
class Language:
    """One language under one tokenizer."""

    name: str
    counted: Count
    unknown: int  # tokens that stand for what the vocabulary cannot say: a low parity made of them is worth nothing
    words: Words
    parity: float | None  # None: no English among the languages

    @property
    def lost(self) -> float:
        """The part of the tokens that are unknown: from 0 to 1."""
        return self.unknown / max(1, self.counted.tokens)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **self.counted.plain(),
            "unknown_tokens": self.unknown,
            "fertility": self.words.fertility,
            "continued": self.words.share_continued,
            "parity": self.parity,
        }


def read_languages(path: Path) -> dict[str, str]:
    """Name of a language → its text, from a .zip or a folder of .txt files, English first. DataError: it cannot be."""
    try:
        files = _zipped(path) if path.is_file() else _foldered(path)
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        RuntimeError,
    ) as error:  # RuntimeError: it wants a password
        raise DataError(f"'{path}' is not a .zip of texts ({error}). Give one, or a folder of LANGUAGE.txt.") from error
    if not files:
        raise DataError(f"'{path}' holds no LANGUAGE.txt. Give a folder or a .zip of one text per language.")
    chosen = [stem for stem in CHOSEN if stem in files]
    names = {stem: CHOSEN[stem] for stem in chosen} if len(chosen) >= FEW else {stem: stem for stem in sorted(files)}
    first = _reference(names)
    ordered = [*([first] if first else []), *(stem for stem in names if stem != first)]
    return {names[stem]: _decoded(files[stem], path, stem) for stem in ordered}


def measure_languages(tokenizer: Tokenizer, texts: Mapping[str, str]) -> list[Language]:
    """Each of the `texts` (name → text), and how it compares with English where that is among them."""
    encoded = {name: tokenizer.encode(text) for name, text in texts.items()}
    first = _reference({name: name for name in texts})
    base = len(encoded[first]) if first else 0
    return [
        Language(
            name=name,
            counted=Count(documents=1, bytes=len(text.encode()), characters=len(text), tokens=len(encoded[name])),
            unknown=0 if tokenizer.unk is None else encoded[name].count(tokenizer.unk),
            words=cut_words(tokenizer, count_words([text])),
            parity=len(encoded[name]) / base if base else None,
        )
        for name, text in texts.items()
    ]


def _reference(names: Mapping[str, str]) -> str | None:
    return next((stem for stem, name in names.items() if stem.lower() in REFERENCE or name.lower() in REFERENCE), None)


def _zipped(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        entries = {Path(entry.filename).stem: entry for entry in archive.infolist() if entry.filename.endswith(".txt")}
        wanted = {stem: entry for stem, entry in entries.items() if stem in CHOSEN}
        entries = wanted if len(wanted) >= FEW else entries
        if large := next((entry for entry in entries.values() if entry.file_size > LARGEST), None):
            raise DataError(f"'{large.filename}' in '{path}' has {large.file_size:,} bytes: {LARGEST:,} at most.")
        return {stem: archive.read(entry) for stem, entry in entries.items()}


def _foldered(path: Path) -> dict[str, bytes]:
    found = {file.stem: file for file in sorted(path.iterdir()) if file.suffix == ".txt" and file.is_file()}
    if large := next((file for file in found.values() if file.stat().st_size > LARGEST), None):
        raise DataError(f"'{large}' has {large.stat().st_size:,} bytes: {LARGEST:,} at most.")
    return {stem: file.read_bytes() for stem, file in found.items()}


def _decoded(content: bytes, path: Path, stem: str) -> str:
    """The text without indentation: how far that goes is a habit of who typed it, and tokens are counted here."""
    try:
        return "\n".join(line.strip() for line in content.decode("utf-8-sig").splitlines())
    except UnicodeDecodeError as error:
        raise DataError(f"'{stem}.txt' in '{path}' is not UTF-8 (byte {error.start}): convert it first.") from error
