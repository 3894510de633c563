"""How do stored bytes become batches? Rooms: remote, shards, order, kinds, loading, tools."""
