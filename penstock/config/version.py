"""The version, stated once: packaging reads it from here, and it holds in a tree that is not installed, too."""

__version__ = "0.1.0"
