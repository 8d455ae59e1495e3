"""The engine core: requests, scheduling and KV bookkeeping over integers. Knows no tensor, no text, no socket."""
