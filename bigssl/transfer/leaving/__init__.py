"""How does a network leave? Our export folder, and the formats of other libraries, each with a proof."""
