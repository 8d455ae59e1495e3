"""The stack without weights: mock executor, byte tokenizer, virtual clock. Knows no torch."""
