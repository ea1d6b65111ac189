"""`openbook pretrain RECIPE.toml [--key value …]`: train a model from a recipe; the same command resumes."""

from __future__ import annotations

from collections.abc import Sequence

from openbook import config, log
from openbook.errors import UsageError
from openbook.train.recipe import Recipe

Config = Recipe


def main(args: Sequence[str], prog: str) -> int:
    """The verb: the first word is the recipe, the rest are its keys: `--data.block 512`."""
    path, overrides = (args[0], args[1:]) if args and not args[0].startswith("-") else (None, args)
    if path is None and not {"-h", "--help"} & set(args):
        raise UsageError(f"The recipe comes first: {prog} RECIPE.toml [--key value …]. See: {prog} --help")
    recipe = config.load(Recipe, path, overrides, prog=f"{prog} RECIPE.toml" if path is None else prog)
    from openbook.train.pretrain import pretrain

    log.note(config.to_toml(recipe))
    print(pretrain(recipe))
    return 0
