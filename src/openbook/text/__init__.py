"""Strings to ids and back, without torch: tokenizers, incremental decoding, chat templates."""

from openbook.text.stream import TextStream
from openbook.text.tokenizer import Tokenizer, check_fits

__all__ = ["TextStream", "Tokenizer", "check_fits"]
