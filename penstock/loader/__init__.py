"""From files to weight records: sources, readers, the asserting config reader and the weight-map rules."""
