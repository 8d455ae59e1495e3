"""Attacks on a running server, each with its size as an argument: tests run them small, a script runs them whole."""
