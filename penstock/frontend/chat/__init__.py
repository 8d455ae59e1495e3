"""Chat messages and chat templates. Knows no HTTP and no tokenizer, only the texts of special tokens."""
