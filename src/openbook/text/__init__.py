"""Strings to ids and back, without torch: tokenizers, incremental decoding, chat templates."""

from openbook.text.backend import check_fits
from openbook.text.stream import TextStream
from openbook.text.tokenizer import Tokenizer

__all__ = ["TextStream", "Tokenizer", "check_fits"]
