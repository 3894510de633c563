"""Which vocabulary do so many texts fill?"""

from __future__ import annotations

from bigssl.config.errors import ConfigError
from bigssl.data.kinds.vocabularies.training import least_entries
from bigssl.starter.looking import Look

ENTRIES = (512, 4096)
MOST_ENTRIES = 1 << 14  # where the characters are many
CHARACTERS_PER_ENTRY = 64  # of the training part: an entry is seen some times at least
MOST_CHARACTERS = 1 << 28  # of which all words fit into memory, and that are read in minutes


def vocabulary_size(look: Look, data: str) -> int:
    """Entries at most: a power of two, by the length of the texts, and as large as their different characters need (in
    Chinese, thousands).

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
    size = 1 << (wanted.bit_length() - 1)
    while size < min(least_entries(look.held["text"].texts), MOST_ENTRIES):
        size *= 2
    return size
