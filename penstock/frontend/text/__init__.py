"""Between text and token ids: tokenizers, streaming detokenization, stop strings, request preparation.

Knows no HTTP, no engine internals and no torch.
"""
