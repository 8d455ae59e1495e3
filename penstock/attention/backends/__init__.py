"""Attention backends, one file each, named kind_implementation."""
