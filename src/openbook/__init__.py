"""Openbook: a whole language-model stack, open at every layer.

    import openbook as ob
    model, tokenizer = ob.load("DIR"), ob.Tokenizer.load("DIR")
    print(ob.generate(model, tokenizer, ["Once upon a time"], ob.Sampling(max_tokens=64, temperature=0.0))[0])

Names load their modules when first used, so that `import openbook` is quick and brings no torch.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from openbook.api import (
        Choice,
        Engine,
        Json,
        LanguageModel,
        Lark,
        Regex,
        Sampling,
        Schema,
        Settings,
        Tokenizer,
        generate,
        load,
        save,
    )

__all__ = [
    "Choice",
    "Engine",
    "Json",
    "LanguageModel",
    "Lark",
    "Regex",
    "Sampling",
    "Schema",
    "Settings",
    "Tokenizer",
    "generate",
    "load",
    "save",
]


class _Package(ModuleType):
    """This module; `generate` is both a function of the public face and a room of the house.

    Importing the room would put it in the function's place, so the name is a property: the room, made callable.
    """

    @property
    def generate(self) -> Any:
        from openbook import api

        return api.room

    @generate.setter
    def generate(self, room: ModuleType) -> None:
        """What the import system does; the property finds the room by itself."""


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in __all__:
        from openbook import api

        return getattr(api, name)
    raise AttributeError(f"module 'openbook' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
