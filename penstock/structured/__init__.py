"""Constrained output: grammars compiled off the engine's thread, and token masks for the rows that follow one."""
