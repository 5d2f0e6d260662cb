"""Text on disk as a stream of documents."""
