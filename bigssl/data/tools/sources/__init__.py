"""What can samples be packed from? Folders, tables, texts, series, shards."""
