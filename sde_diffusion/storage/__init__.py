"""Files that appear whole or not at all: checkpoints, shards of samples, records."""
