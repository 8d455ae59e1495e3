"""The page at / and its files, served from the package. Static; its data comes from the other routes."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from penstock.frontend.exchange import Exchange

FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page/chart.js": ("chart.js", "text/javascript; charset=utf-8"),
}
_FOLDER = Path(__file__).parent.parent / "page"
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'"


@cache
def _load(name: str) -> bytes:
    return (_FOLDER / name).read_bytes()


async def show_page(exchange: Exchange, *_: object) -> None:
    name, content_type = FILES[exchange.path]
    headers = (
        ("cache-control", "no-cache"),
        ("content-security-policy", _POLICY),
        ("x-content-type-options", "nosniff"),
    )
    await exchange.answer(200, _load(name), content_type, headers)
