"""`openbook completion bash|zsh|fish`: a completion script, made from the verb table and the verbs' options.

eval "$(openbook completion bash)"        openbook completion fish | source
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from openbook.cli import VERBS
from openbook.options import Positional, option_names, parse


@dataclass(frozen=True, kw_only=True)
class Config:
    """Print a completion script. In .bashrc and .zshrc: eval "$(openbook completion bash)"; fish: pipe it to source."""

    shell: Positional[Literal["bash", "zsh", "fish"]]
    """The shell to write for."""


def main(args: Sequence[str], prog: str) -> int:
    """The verb."""
    config = parse(Config, args, prog=prog)
    options = {verb: options_of(verb) for verb in VERBS}
    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[config.shell](options))
    return 0


def options_of(verb: str) -> list[str]:
    """The options of a verb, from its config dataclass."""
    return [*option_names(importlib.import_module(VERBS[verb].module).Config), "--help"]


def _first_words() -> list[str]:
    return list(dict.fromkeys(verb.split()[0] for verb in VERBS))


def _second_words(first: str) -> list[str]:
    return [verb.split()[1] for verb in VERBS if verb.startswith(f"{first} ")]


def _cases(options: dict[str, list[str]]) -> str:
    """Branches of a `case` over the first two words, setting `words` to what may follow them."""
    lines = []
    for verb, names in options.items():
        pattern = f'"{verb}"*' if " " in verb else f'"{verb} "*'
        lines.append(f'    {pattern}) words="{" ".join(names)}" ;;')
    for first in _first_words():
        if inner := _second_words(first):
            lines.append(f'    "{first} "*) words="{" ".join(inner)}" ;;')
    return "\n".join(lines)


def _bash(options: dict[str, list[str]]) -> str:
    return f"""_openbook() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{" ".join(_first_words())} --help --version" -- "$current"))
    return
  fi
  case "${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}}" in
{_cases(options)}
  esac
  case "$words" in
    --*) case "$current" in -*) COMPREPLY=($(compgen -W "$words" -- "$current")) ;; esac ;;
    *) COMPREPLY=($(compgen -W "$words" -- "$current")) ;;
  esac
}}
complete -o default -o bashdefault -F _openbook openbook"""


def _zsh(options: dict[str, list[str]]) -> str:
    described = "\n".join(f"    '{first}:{_about(first)}'" for first in _first_words())
    return f"""#compdef openbook
_openbook() {{
  local words_="" verbs
  verbs=(
{described}
  )
  if (( CURRENT == 2 )); then
    _describe 'verb' verbs
    return
  fi
  local words=("${{words[@]}}")
  case "${{words[2]}} ${{words[3]}}" in
{_cases(options).replace('words="', 'words_="')}
  esac
  if [[ "$words_" != --* || "${{words[CURRENT]}}" == -* ]]; then
    compadd -- ${{=words_}}
  else
    _files
  fi
}}
if [[ "$funcstack[1]" == _openbook ]]; then _openbook "$@"; else compdef _openbook openbook; fi"""


def _about(first: str) -> str:
    verb = VERBS.get(first)
    text = verb.help if verb else ", ".join(_second_words(first))
    return text.replace("'", "'\\''").replace(":", r"\:")


def _fish(options: dict[str, list[str]]) -> str:
    lines = [
        "complete -c openbook -f -n __fish_use_subcommand -l help",
        "complete -c openbook -n __fish_use_subcommand -l version",
    ]
    for first in _first_words():
        about = (VERBS[first].help if first in VERBS else ", ".join(_second_words(first))).replace("'", r"\'")
        lines.append(f"complete -c openbook -f -n __fish_use_subcommand -a {first} -d '{about}'")
        inner = _second_words(first)
        if inner:
            unset = f"__fish_seen_subcommand_from {first}; and not __fish_seen_subcommand_from {' '.join(inner)}"
            lines.append(f"complete -c openbook -f -n '{unset}' -a '{' '.join(inner)}'")
    for verb, names in options.items():
        seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in verb.split())
        lines += [f"complete -c openbook -n '{seen}' -l '{name.removeprefix('--')}'" for name in names]
    return "\n".join(lines)
