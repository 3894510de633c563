"""What a person sees, on a terminal, in a log file and on the other ranks."""

import io

import pytest

from bigssl.report.progress import ProgressBar, duration, notable


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(progress: ProgressBar, steps: range) -> None:
    for step in steps:
        progress.update(step, 2.0, 6.236, 800.0, 0.03, {"knn": 0.61})
    progress.close()


@pytest.mark.parametrize("seconds, text", [(-1, "0:00"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_facts_show_loss_beside_blind() -> None:
    assert notable(2.31, 6.2364, 812.4, 0.031, {"knn": 0.61}) == (
        "loss 2.310 (blind 6.236), 812 samples/s, data wait 3 %, knn 0.61")
    assert notable(2.31, None, 812.4, 0.0, {}) == "loss 2.310, 812 samples/s, data wait 0 %"


def test_plain_lines_are_few_and_the_last_step_is_always_there() -> None:
    out, now = io.StringIO(), iter(range(1000))
    run(ProgressBar(25, 0, enabled=True, stream=out, every=10, clock=lambda: float(next(now))), range(1, 26))
    lines = out.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/25", "11/25", "21/25", "25/25"]
    assert "\r" not in out.getvalue() and all("blind 6.236" in line for line in lines)


def test_eta_counts_from_the_first_step_seen() -> None:
    out, now = io.StringIO(), iter([100.0, 102.0, 104.0])
    run(ProgressBar(110, 100, enabled=True, stream=out, every=0, clock=lambda: next(now)), range(101, 104))
    assert [line.rsplit(" ", 1)[1] for line in out.getvalue().splitlines()] == ["?", "0:16", "0:14"]


def test_nothing_on_other_ranks() -> None:
    out = Terminal()
    progress = ProgressBar(3, 0, enabled=False, stream=out)
    run(progress, range(1, 4))
    progress.note("checkpoint written")
    assert out.getvalue() == ""


def test_bar_on_a_terminal() -> None:
    out = Terminal()
    progress = ProgressBar(3, 1, enabled=True, stream=out)
    progress.update(2, 2.0, None, 800.0, 0.5, {})
    progress.note("checkpoint written")
    run(progress, range(3, 4))
    text = out.getvalue()
    assert "3/3" in text and "data wait" in text and "checkpoint written\n" in text


def test_note_without_a_terminal_is_a_line() -> None:
    out = io.StringIO()
    ProgressBar(3, 0, enabled=True, stream=out).note("checkpoint written")
    assert out.getvalue() == "checkpoint written\n"
