"""HTTP, text and templates. Knows no torch and no engine internals; reaches an engine only through ``client``."""
