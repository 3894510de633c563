"""Block sizes of the Triton kernels: shipped per architecture, replaced by tuned winners kept on disk.

`choose` looks for a tuned winner of this card first, then for the shipped block of its architecture, then falls back to
one that fits every card. With BIGSSL_KERNELS_TUNE=1 the first call of each kind times the candidates and keeps the
winner in $BIGSSL_KERNELS_CACHE (default ~/.cache/bigssl_kernels).
"""

import contextlib
import csv
import functools
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Block:
    """rows x cols logits at a time, `features` of a product at a time, `out` features of a gradient per program."""

    rows: int
    cols: int
    features: int
    out: int
    warps: int
    stages: int


WIDE = 256  # features beyond this are walked over in blocks
FALLBACK = Block(64, 32, 64, 64, 4, 2)
TUNE = "BIGSSL_KERNELS_TUNE"
CACHE = "BIGSSL_KERNELS_CACHE"


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number` and 16."""
    return max(16, 1 << (number - 1).bit_length())


def bucket(features: int) -> int:
    """Feature counts that share a block: 64, 128, 256 and everything above."""
    return min(max(64, power_of_two(features)), 2 * WIDE)


Key = tuple[str, str, int, int]  # architecture, kernel, bytes of an element, bucket of features


def _shipped_table() -> dict[Key, Block]:
    with (Path(__file__).with_name("tables") / "contrastive.csv").open() as file:
        _, *lines = csv.reader(file)
    return {
        (arch, kernel, int(width), int(features)): Block(*map(int, rest))
        for arch, kernel, width, features, *rest in lines
    }


SHIPPED = _shipped_table()
ARCHITECTURES = tuple(dict.fromkeys(arch for arch, *_ in SHIPPED))


@functools.cache
def architecture(device: torch.device) -> str:
    """The shipped architecture whose blocks fit `device`: the newest that is not newer; "" where there is none."""
    if device.type != "cuda":
        return ""
    if torch.version.hip:
        name = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
        return name if name in ARCHITECTURES else ""
    major, minor = torch.cuda.get_device_capability(device)
    # 8.6, 8.9 and 12.x have less shared memory than 8.0 and 10.0
    return {(8, 0): "sm_80", (9, 0): "sm_90", (10, 0): "sm_100", (10, 3): "sm_100"}.get((major, minor), "")


def shipped(arch: str, kernel: str, width: int, features: int) -> Block:
    """The block shipped for an architecture, or the one that fits every card."""
    return SHIPPED.get((arch, kernel, width, bucket(features)), FALLBACK)


def candidates(arch: str, kernel: str, width: int, features: int) -> list[Block]:
    """Blocks worth timing: every block that is shipped for this kernel and width of element, and the fallback."""
    same = [b for (_, k, w, f), b in SHIPPED.items() if (k, w) == (kernel, width) and f == bucket(features)]
    return list(dict.fromkeys([shipped(arch, kernel, width, features), *same, FALLBACK]))


def cache_file() -> Path:
    """Where tuned winners are kept."""
    return _file_in(os.environ.get(CACHE))


@functools.cache
def _file_in(folder: str | None) -> Path:
    return Path(folder or Path.home() / ".cache" / "bigssl_kernels") / "tuned.json"


@functools.cache
def _winners(file: Path) -> dict[str, Block]:
    """Winners on disk; an absent or damaged file holds none."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        return {key: Block(**block) for key, block in json.loads(file.read_text()).items()}
    return {}


def remember(key: str, block: Block) -> None:
    """Keep a winner, for this process and on disk (atomically; a disk that cannot be written is no obstacle)."""
    file = cache_file()
    winners = _winners(file)
    winners[key] = block
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as staged:
            json.dump({name: asdict(winner) for name, winner in winners.items()}, staged, indent=1)
        Path(staged.name).replace(file)


def choose(kernel: str, data: torch.Tensor, time: Callable[[Block], float] | None = None) -> Block:
    """The block for `kernel` on `data` [m, D].

    Args:
        kernel: "reduce" or "gradient".
        data: its rows.
        time: seconds a block takes; called only while tuning. A block that cannot be launched may raise.
    """
    arch, width, features = architecture(data.device), data.element_size(), data.shape[1]
    others = functools.partial(candidates, arch, kernel, width, features)
    key = f"{kernel}/{data.dtype}/{bucket(features)}"
    return tuned(key, data.device, shipped(arch, kernel, width, features), others, time)


def tuned(
    key: str,
    device: torch.device,
    block: Block,
    others: Callable[[], list[Block]],
    time: Callable[[Block], float] | None,
) -> Block:
    """`block`, or what did better than it and `others` on this card, now (where tuning is asked for) or earlier.

    Asked at every launch, which small losses wait for: where nothing was ever tuned it looks no further.

    Args:
        key: what was tuned, beside the card.
        others: makes the blocks to compare with.
        time: seconds a block takes, or None where nothing can be timed. A block that cannot be launched may raise.
    """
    winners, tuning = _winners(cache_file()), time is not None and os.environ.get(TUNE) == "1"
    if not winners and not tuning:
        return block
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    winner = winners.get(f"{name}/{key}")
    if winner is not None or not tuning or time is None:
        return winner or block
    seconds = {candidate: _try(time, candidate) for candidate in dict.fromkeys([block, *others()])}
    best = min(seconds, key=lambda candidate: seconds[candidate])
    remember(f"{name}/{key}", best)
    return best


def _try(time: Callable[[Block], float], block: Block) -> float:
    """Seconds, infinite for a block that does not fit the card (Triton raises its own error for that)."""
    try:
        return time(block)
    except Exception as error:
        if type(error).__module__.split(".")[0] != "triton":
            raise
        return float("inf")
