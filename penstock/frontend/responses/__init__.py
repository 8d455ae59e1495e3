"""OpenAI's Responses API as records and pure functions: requests, items, events, stored responses. Knows no socket."""
