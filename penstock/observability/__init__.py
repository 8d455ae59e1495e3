"""Logs, metrics and statistics as plain objects."""
