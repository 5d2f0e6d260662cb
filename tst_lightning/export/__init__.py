"""A checkpoint as an ordinary Hugging Face folder: read (trained), described (card), written (folder), loaded (reload)."""
