"""Attention: the backend contract, its per-step metadata, the candidate table and the backends."""
