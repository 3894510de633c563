"""What all our commands have in common: a parser whose mistakes are one line, with the nearest match."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from cyclopts import App, CycloptsError, Parameter

from bigssl.config.errors import ConfigError


def new_app(name: str, about: str) -> App:
    """A command `name`, or a group of them. Switches have no `--no-` twin; a call gives what its function returns."""
    plain = Parameter(negative=(), consume_multiple=False)
    return App(name=name, help=about, version_flags=[], default_parameter=plain, result_action="return_value",
               suppress_keyboard_interrupt=False)  # fmt: skip


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
