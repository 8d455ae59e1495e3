"""Checkpoint formats, one file each: from stored bytes to canonical weight records."""
