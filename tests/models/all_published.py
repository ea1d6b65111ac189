"""Every published configuration at full size that the tests know, under its name."""

from __future__ import annotations

from typing import Any

from tests.models import (
    published,
    published_classic,
    published_encoders,
    published_experts,
    published_latent,
    published_local,
    published_modern,
    published_pairs,
    published_ssm,
)

SOURCES: list[list[tuple[str, dict[str, Any]]]] = [
    [(name, config) for name, config, _ in published.PARAMETERS],
    [(name, config) for name, config, _ in published_classic.PARAMETERS],
    [(name, config) for name, config, _ in published_modern.PARAMETERS],
    [(name, config) for name, config, *_ in published_experts.SIZES],
    [(name, known.config) for name, known in published_latent.KNOWN.items()],
    [(name, config) for name, (config, _) in published_encoders.PUBLISHED.items()],
    [(name, config) for name, (config, *_) in published_local.COUNTS.items()],
    [(name, config) for name, config, _ in published_pairs.PARAMETERS],
    [(name, config) for name, config, _ in published_ssm.PARAMETERS],
]
# The first to name a configuration keeps it.
EVERYTHING: dict[str, dict[str, Any]] = {}
for _source in SOURCES:
    for _name, _config in _source:
        if _config not in EVERYTHING.values():
            EVERYTHING.setdefault(_name.lower().replace(" ", "-"), _config)
