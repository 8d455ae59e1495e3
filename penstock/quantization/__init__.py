"""Quantized weights: canonical schemes, the formats that are converted to them, and the methods that run them."""
