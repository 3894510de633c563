"""`bigssl report`: how a run folder looks."""

from __future__ import annotations

from pathlib import Path

from bigssl.cli.recipes import recipe_of


def report(run_folder: Path, /) -> None:
    """
    Args:
        run_folder: for example runs/demo
    """
    from bigssl.report.html import write_report

    recipe_of(run_folder)
    print(f"report: {write_report(run_folder)}")
