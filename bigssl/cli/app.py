"""What all our commands have in common: a parser whose mistakes are one line, with the nearest match."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from cyclopts import App, CycloptsError, Parameter, Token, convert

from bigssl.config.errors import ConfigError


def new_app(name: str, about: str) -> App:
    """A command `name`, or a group of them. Switches have no `--no-` twin; a call gives what its function returns."""
    plain = Parameter(negative=(), consume_multiple=False, converter=_converted)
    return App(name=name, help=about, version_flags=[], default_parameter=plain, result_action="return_value",
               suppress_keyboard_interrupt=False)  # fmt: skip


def _converted(hint: Any, tokens: Sequence[Token]) -> Any:
    """As cyclopts does, but a whole number is what `int` reads (2.6 is not 3, 0x10 not 16), and an option that may be
    left out has no value `none` that would leave it out."""
    kind = _given(hint)
    if kind is not int:
        return convert(kind, tokens)
    (token,) = tokens
    try:
        return int(token.value)
    except ValueError:
        raise ValueError(f"{token.value!r}; allowed: a whole number.") from None


def _given(hint: Any) -> Any:
    """The type of what is given, of a type that may be None."""
    if get_origin(hint) is Annotated:
        return _given(get_args(hint)[0])
    kinds = [each for each in get_args(hint) if each is not NoneType]
    return _given(kinds[0]) if get_origin(hint) in (Union, UnionType) and len(kinds) == 1 else hint


Change = Annotated[
    str, Parameter(help="FIELD,FIELD: recipe fields that differ on purpose from those of the run that goes on")
]


AllowPartial = Annotated[
    bool, Parameter(help="make anew what a folder named by init_from lacks, or has in other shapes")
]


def fields_of(change: str) -> list[str]:
    """The fields that `--change` names."""
    return [field.strip() for field in change.split(",") if field.strip()]


def called(app: App, arguments: Sequence[str] | None) -> Any:
    """What the function returns that `arguments` (default: those of the process) name.

    Raises:
        ConfigError: they do not fit.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return app(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        what = " ".join(error.command_chain or ())
        help = " ".join((*app.name, *(error.command_chain or ()), "--help"))
        raise ConfigError(f"{what}{': ' if what else ''}{' '.join(str(error).split())} See {help}") from None
