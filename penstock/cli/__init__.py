"""Verbs: serve, run, chat, pull, bench, explain, check. Knows not how a step works."""
