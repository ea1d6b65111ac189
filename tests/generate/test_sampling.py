"""`Sampling`: every field is honoured or refused with a clear error."""

from __future__ import annotations

import math

import pytest

from openbook.errors import InputError
from openbook.generate.sampling import Sampling


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", -1), ("max_tokens", 1.5), ("max_tokens", True), ("max_tokens", "5"), ("max_tokens", None),
        ("min_tokens", -1), ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf),
        ("temperature", "hot"), ("top_k", -1), ("top_k", 2.0), ("top_p", 1.1), ("top_p", -0.1), ("min_p", 2),
        ("typical_p", 0.0), ("typical_p", 1.5), ("repetition_penalty", 0), ("repetition_penalty", -1.0),
        ("presence_penalty", math.inf), ("frequency_penalty", math.nan), ("no_repeat_ngram", -2),
        ("logit_bias", [1]), ("logit_bias", {-1: 2.0}), ("logit_bias", {"1": 2.0}), ("logit_bias", {1: math.nan}),
        ("logit_bias", {1: math.inf}), ("banned", (-1,)), ("banned", (1.0,)), ("banned", 3), ("banned", "12"),
        ("forced", (True,)), ("seed", 1.5), ("seed", 2**64), ("stop_ids", {1: 2}), ("stop", 5), ("stop", ("",)),
        ("stop", (b"",)), ("stop", (1,)), ("stop", ("\ud800",)), ("ignore_eos", 1), ("logprobs", -1),
        ("prompt_logprobs", 1.0), ("n", 0), ("n", 5000), ("beams", 0), ("length_penalty", math.nan),
        ("early_stopping", 1), ("early_stopping", "always"),
    ],
)  # fmt: skip
def test_out_of_range_names_the_field(field: str, value: object) -> None:
    with pytest.raises(InputError, match=f"`{field}`"):
        Sampling(**{field: value})


def test_defaults_and_limits_are_accepted() -> None:
    Sampling()
    Sampling(
        max_tokens=0, temperature=0, top_k=10**9, top_p=0, min_p=1, typical_p=1, seed=-5, logit_bias={3: -math.inf}
    )
    Sampling(beams=4, n=4, early_stopping="never", temperature=0.0)


def test_sequences_become_tuples_and_one_stop_is_a_stop() -> None:
    sampling = Sampling(stop="\n\n", banned=[1, 2], stop_ids=range(3))
    assert sampling.stop == ("\n\n",)
    assert sampling.banned == (1, 2)
    assert sampling.stop_ids == (0, 1, 2)
    assert Sampling(stop=("é", b"\xff")).stop_bytes == (b"\xc3\xa9", b"\xff")
    assert isinstance(hash(Sampling(logit_bias={1: 2.0})), int)


@pytest.mark.parametrize(
    "fields",
    [
        {"min_tokens": 5, "max_tokens": 4},
        {"banned": (1, 2), "forced": (2,)},
        {"beams": 2, "n": 3},
        {"beams": 2, "temperature": 0.7},
        {"beams": 2, "top_k": 5},
        {"beams": 2, "top_p": 0.5},
        {"beams": 2, "min_p": 0.5},
        {"beams": 2, "typical_p": 0.5},
        {"beams": 2, "logprobs": 1},
    ],
)
def test_what_cannot_be_honoured_together_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Sampling(**fields)


@pytest.mark.parametrize("field", ["logit_bias", "banned", "forced", "stop_ids"])
def test_ids_beyond_the_vocabulary_are_refused(field: str) -> None:
    value = {10: 1.0} if field == "logit_bias" else (10,)
    Sampling(**{field: value}).check_vocab(11)
    with pytest.raises(InputError, match=rf"`{field}` names id 10.*0 to 9"):
        Sampling(**{field: value}).check_vocab(10)


def test_banning_everything_and_too_many_logprobs_are_refused() -> None:
    with pytest.raises(InputError, match="forbids all 3"):
        Sampling(banned=(0, 1, 2)).check_vocab(3)
    with pytest.raises(InputError, match="`logprobs` must be at most"):
        Sampling(logprobs=4).check_vocab(3)
