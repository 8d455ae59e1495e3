"""The op list: signature, plain reference, declared tolerance, implementations. Knows nothing above it."""
