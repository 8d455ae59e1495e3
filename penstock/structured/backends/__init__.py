"""One file per library that compiles grammars to token masks."""
