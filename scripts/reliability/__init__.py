"""Attacks on a running server, each with its size as an argument; tests run them small, measure_reliability.py whole."""
