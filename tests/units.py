"""What the laws of the row operators share: the units they run on, random rows, and the search for neighbours."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from openbook.hardware import cpu_features
from openbook.native import build
from openbook.native import rows as native

EMULATED = ("-DOPENBOOK_AMX", "-DOPENBOOK_EMULATE_AMX")
# -O1: quick to compile
UNITS = {
    "own": (),
    "avxvnni": ("-O1", "-mavx2", "-mfma", "-mavxvnni"),
    "avx2": ("-O1", "-mavx2", "-mfma"),
    "plain": ("-O1",),
    "amx": ("-O1", *EMULATED),
}
NEEDS = {"avxvnni": "AVX-VNNI", "avx2": "AVX2"}


@pytest.fixture(params=UNITS)
def unit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The operators, compiled for one unit."""
    name: str = request.param
    if name != "own":
        library = compiled(name)
        monkeypatch.setattr(native, "library", lambda: library)
    return name


def compiled(name: str) -> ctypes.CDLL:
    features = cpu_features()
    if name in NEEDS and NEEDS[name] not in features:
        pytest.skip(f"no {NEEDS[name]} here")
    wide = (*native.WIDE, "-mavx512bf16") if name == "amx" and "AVX-512 BF16" in features else ()
    library = build.load("rows", native.SOURCES, [(*native.EXACT, *wide, *UNITS[name])])
    assert library is not None
    native.declared(library)
    assert library.openbook_rows_machine(2) == (2 if name == "amx" else 1)
    return library


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) * torch.exp(torch.randn(shape[0], *[1] * (len(shape) - 1)))


def unlike_alone(operator: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether a row of x [R,D] gets other bits among others, at another place, or on other threads, than alone."""
    alone = torch.cat([operator(x[row : row + 1]) for row in range(len(x))])
    threads = torch.get_num_threads()
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        try:
            together, shifted = operator(x), operator(x.roll(1, 0)).roll(-1, 0)
        finally:
            torch.set_num_threads(threads)
        if not torch.equal(together, alone) or not torch.equal(shifted, alone):
            return True
    return False
