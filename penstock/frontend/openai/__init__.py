"""OpenAI's HTTP protocol as records and pure functions: requests, chunks, answers, errors. Knows no socket."""
