"""Which vocabulary do so many texts fill?"""

from __future__ import annotations

from bigssl.config.errors import ConfigError
from bigssl.starter.looking import Look

ENTRIES = (512, 4096)
CHARACTERS_PER_ENTRY = 64  # of the training part: an entry is seen some times at least
MOST_CHARACTERS = 1 << 28  # of which all words fit into memory, and that are read in minutes


def vocabulary_size(look: Look, data: str) -> int:
    """Entries at most: a power of two, by the characters of the texts.

    Raises:
        ConfigError: more texts than a tokenizer is trained on here.
    """
    lengths = look.held["text"].numbers["characters"]
    characters = int(sum(lengths)) * look.samples // len(lengths)
    if characters > MOST_CHARACTERS:
        raise ConfigError(
            f"init: {data} holds about {characters / 1e9:.1f} · 10^9 characters, too many to train a tokenizer on; "
            f"allowed: --tokenizer FILE, e.g. of a part: `bigssl shards split {data} PART --part some=0.01`, "
            "then `bigssl tokenizer train PART/some tokenizer.json`"
        )
    wanted = max(ENTRIES[0], min(ENTRIES[1], characters // CHARACTERS_PER_ENTRY))
    return int(2 ** (wanted.bit_length() - 1))
