"""Shards to rows: one exact, resumable stream that serves every phase and the baseline alike."""
