"""Frozen configuration sections, the flags and environment variables that fill them, and one pure resolver."""
