"""The output of a `pipe:` command, and whether the command went well: that is known after its last byte."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO

from bigssl.data.errors import DataError, display, redact
from bigssl.data.sample import Readable

PIPE = "pipe:"
_STDERR = 500  # characters of a command's last words
_PATIENCE = 1.0  # seconds in which a command whose output is wrong may still say that it failed


@contextmanager
def output_of(url: str) -> Iterator[Readable]:
    """The standard output of a `pipe:` command, run by a shell in which a pipeline fails with any of its parts.

    Raises DataError (with a cause only) when the command fails, also after its last byte; and adds that to a DataError
    of its reader. A reader that stops early ends the command.
    """
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            _shell(url.removeprefix(PIPE)), stdout=subprocess.PIPE, stderr=words, start_new_session=True
        )
        assert process.stdout is not None
        try:
            yield process.stdout
            process.wait()
        except DataError as error:
            said = _failure(process, words, url)
            cause, advice = error.cause + said, error.advice
            raise DataError(str(error), key=error.key, offset=error.offset, cause=cause, advice=advice) from None
        finally:
            _end(process)
        if said := _failure(process, words, url):
            raise DataError("", cause=said.removeprefix("; "))


def _shell(command: str) -> list[str]:
    bash = shutil.which("bash")  # sh need not know pipefail
    return [bash, "-o", "pipefail", "-c", command] if bash else ["/bin/sh", "-c", command]


def _failure(process: subprocess.Popen[bytes], words: IO[bytes], url: str) -> str:
    """What a command that failed says about it; empty for one that did not."""
    try:
        code = process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        return ""
    if not code:
        return ""
    words.seek(0)
    text = words.read().decode("utf-8", "replace")[-_STDERR:].strip()
    hidden = set(url.split()) - set(display(url).split())
    return f"; the command ended with exit status {code}" + (f": {redact(text, _parts(hidden))}" if text else "")


def _parts(words: Iterable[str]) -> set[str]:
    """The words of a command that are not shown, and what stands behind their = and : signs."""
    bare = {word.strip("'\"") for word in words}
    return bare | {part for word in bare for sign in "=:" for part in word.split(sign)[1:]}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the whole pipeline. SIGTERM would not do: it is blocked in workers and what they start."""
    if process.stdout is not None:
        process.stdout.close()
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
