"""Dialects: how models write tool calls and reasoning, and the one machine that reads them as a stream."""
