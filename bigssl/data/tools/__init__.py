"""What do `bigssl shards ...` do with whole datasets? Pack, clean, survey, verify."""
