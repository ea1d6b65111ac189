"""The names users type, whatever was imported before."""

from __future__ import annotations

import subprocess
import sys

import pytest

FIRST = ["", "import openbook.generate.loop", "import openbook.api", "from openbook.generate.sampling import Sampling"]
LATER = "import openbook.generate.loop as loop; assert loop.generate_ids; assert ob.generate.loop is loop"


@pytest.mark.slow
@pytest.mark.parametrize("first", FIRST)
def test_generate_is_callable(first: str) -> None:
    code = f"{first}\nimport openbook as ob\nassert callable(ob.generate)\n{LATER}\nassert callable(ob.generate)"
    code += "\nfrom openbook import generate\nassert callable(generate)\nassert ob.load and ob.save and ob.Sampling"
    code += "\nassert all(getattr(ob, name) for name in ob.__all__) and ob.Engine and ob.Schema and ob.Settings"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_import_brings_no_torch() -> None:
    code = "import sys, openbook; assert 'torch' not in sys.modules; assert 'generate' in dir(openbook)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
