"""Frozen records that cross a boundary. Standard library only; no record here knows who produces or reads it.

Import from the submodules: ``request``, ``plan``, ``result``, ``kv``, ``output``, ``facts``, ``decision``, ``control``.
"""
