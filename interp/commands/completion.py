"""Completion of commands, options and their values in a shell.

The script holds all words, so that a shell that completes starts no Python.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from interp.commands.options import Option, Parser

Shell = Literal["bash", "zsh"]
"""Shells that can be completed in."""

_ZSH = """\
autoload -U +X compinit && compinit
autoload -U +X bashcompinit && bashcompinit
"""

_SCRIPT = """\
# What can follow: the command, the last option before the cursor, and how many words ago that was.
_interp_words() {
    case "$1 $2 $3" in
CASES
    esac
}

_interp() {
    local word="${COMP_WORDS[COMP_CWORD]}" command="${COMP_WORDS[1]}" option="" words=""
    local index=$((COMP_CWORD - 1))
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "COMMANDS --help --version --json" -- "$word"))
        return
    fi
    while [ "$index" -gt 1 ]; do
        case "${COMP_WORDS[index]}" in
            --*) option="${COMP_WORDS[index]}"; break ;;
        esac
        index=$((index - 1))
    done
    case "$word" in
        -*) words="$(_interp_words "$command" options)" ;;
        *) words="$(_interp_words "$command" "$option" "$((COMP_CWORD - index))")" ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}

complete -o default -F _interp interp
"""


def completion_script(shell: Shell, commands: Mapping[str, type]) -> str:
    """What the shell has to read, in a line of its start-up file or once."""
    cases = [case for name, command in commands.items() for case in _cases(name, command)]
    script = _SCRIPT.replace("CASES", "\n".join(cases)).replace("COMMANDS", " ".join(commands))
    return (_ZSH if shell == "zsh" else "") + script


def _cases(name: str, command: type) -> Iterator[str]:
    """The options of a command; the words that their values, and its first argument, can be."""
    options = Parser(name, command).options
    flags = [option.named for option in options if option.either or not option.positional]
    yield _case(f'"{name} options "', [*flags, "--help"])
    for option in options:
        if option.choices:
            yield _case(f'"{name} {_pattern(option)}', option.choices)


def _pattern(option: Option) -> str:
    if option.positional:
        return ' 1"'
    return f'{option.named} "*' if option.n_values is None else f'{option.named} 1"'


def _case(pattern: str, words: Sequence[str]) -> str:
    return f'        {pattern}) echo "{" ".join(words)}" ;;'
