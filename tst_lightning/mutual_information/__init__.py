"""How much a token tells about one some tokens further on: measured on shards, fitted by a power law, and drawn."""
