"""Cross-origin requests (Fetch standard, CORS protocol): which pages in a browser may read this server's answers."""

from __future__ import annotations

from penstock.frontend.exchange import Exchange

_METHODS = "GET, POST, DELETE"
_EXPOSED = "x-request-id, request-id, retry-after, penstock-warning"
_MAX_AGE_S = 600


class Cors:
    """``origins`` are allowed; "*" allows all. Credentials are never: keys travel in a header that scripts set."""

    def __init__(self, origins: tuple[str, ...]) -> None:
        self._origins = frozenset(origins)
        self._all = "*" in origins

    def mark(self, exchange: Exchange) -> bool:
        """Put into the answer what an allowed origin needs to read it. True when an origin was given and allowed."""
        origin = exchange.headers.get("origin")
        if origin is None:
            return False
        if not self._all:
            exchange.extra_headers.append(("vary", "Origin"))
        if not self._all and origin not in self._origins:
            return False
        exchange.extra_headers.append(("access-control-allow-origin", "*" if self._all else origin))
        exchange.extra_headers.append(("access-control-expose-headers", _EXPOSED))
        return True

    async def answer_preflight(self, exchange: Exchange, allowed: bool) -> bool:
        """Answer the question that a browser asks before a request; False when this is not one."""
        headers = exchange.headers
        if exchange.method != "OPTIONS" or "origin" not in headers or "access-control-request-method" not in headers:
            return False
        if not allowed:
            await exchange.answer(400, b"This origin is not allowed (--cors-origins).", "text/plain; charset=utf-8")
            return True
        asked = headers.get("access-control-request-headers")
        named = [("access-control-allow-methods", _METHODS), ("access-control-max-age", str(_MAX_AGE_S))]
        if asked:
            named.append(("access-control-allow-headers", asked))
        await exchange.answer(200, b"OK", "text/plain; charset=utf-8", named)
        return True
