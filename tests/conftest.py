"""What every test shares: few threads (several workers run side by side), a cache of its own, repeatable examples."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported anywhere
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches for the network


def pytest_configure() -> None:
    """Hypothesis without time limits: a busy machine is not a failing test."""
    from hypothesis import HealthCheck, settings

    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    settings.register_profile("openbook", deadline=None, derandomize=True, suppress_health_check=checks)
    settings.load_profile("openbook")


@pytest.fixture(autouse=True)
def same_start() -> None:
    """The same global random state at the start of each test, if torch is loaded at all."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Measurements of this machine are not read from, nor written to, the user's cache."""
    os.environ["OPENBOOK_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def project() -> Path:
    """The root of the repository."""
    return Path(__file__).parents[1]
