"""HTTP routes: thin; each parses a request, calls, and encodes. Knows no engine beyond EngineClient."""
