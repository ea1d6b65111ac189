"""The DeepSeek line at full size: parameters equal the reference's on the meta device, and are told in a moment."""

from __future__ import annotations

import time

import pytest
import torch

from openbook.models.describe import describe
from tests.models.published_latent import KNOWN, V3, Known


@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN)
def test_published_sizes_are_exact(known: Known) -> None:
    began = time.process_time()
    told = describe(known.config)
    ahead = told.parts.get("further tokens", 0)
    assert told.total - ahead == known.total
    assert told.active == known.active
    assert told.state.token == known.kept * len(told.model.stack.blocks)
    assert f"{told.total:,}" in told.page()
    assert time.process_time() - began < 5  # of 61 layers of 256 experts


@pytest.mark.slow
@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN)
def test_published_sizes_are_the_reference_s(known: Known) -> None:
    import transformers

    values = {key: value for key, value in known.config.items() if key not in ("model_type", "architectures")}
    config = getattr(transformers, known.reference)(**values)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    corrections = [buffer for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias")]
    assert sum(tensor.numel() for tensor in [*model.parameters(), *corrections]) == known.total


def test_a_token_of_deepseek_v3_is_kept_in_70_kilobytes() -> None:
    """576 numbers a layer; keys and values of 128 heads would be 40,960 (DeepSeek-AI 2024a, table 1)."""
    told = describe(V3)
    assert told.state.bytes(1, 2) == 61 * 576 * 2 == 70_272
    expanded = 61 * 128 * (128 + 64 + 128) * 2
    assert expanded / told.state.bytes(1, 2) == pytest.approx(71.1, abs=0.1)
