"""Documents turned into tokenised LitData shards, with a manifest that says what is in them."""
