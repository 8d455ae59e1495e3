"""Anthropic's Messages API as records and pure functions: requests, blocks, events, errors. Knows no socket."""
