"""Changing the vocabulary of a tokenizer that a model was trained with, and what that means for the model's rows.

    extend       new tokens behind the old ones
    trim         only the tokens that a corpus needs
    transplant   the vocabulary of another tokenizer

Each gives a `Change`: the new tokenizer, and for each of its ids the old ids that its row is the mean of. The model's
side is models/vocabulary.py, which knows nothing of text.
"""

from openbook.text.surgery.change import Change
from openbook.text.surgery.extend import extend
from openbook.text.surgery.transplant import transplant
from openbook.text.surgery.trim import trim

__all__ = ["Change", "extend", "transplant", "trim"]
