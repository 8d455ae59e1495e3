"""Request fields that other servers once took: they answer with what to write instead, and are never ignored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from penstock.errors import InvalidRequestError

_LAST = "it was last taken by vLLM 0.11"

REMOVED: Mapping[str, str] = {
    "guided_json": f"{_LAST}. Use structured_outputs.json, or response_format of type json_schema",
    "guided_regex": f"{_LAST}. Use structured_outputs.regex",
    "guided_choice": f"{_LAST}. Use structured_outputs.choice",
    "guided_grammar": f"{_LAST}. Use structured_outputs.grammar",
    "guided_json_object": f"{_LAST}. Use structured_outputs.json_object",
    "guided_decoding_backend": f"{_LAST}. The server's operator names a backend with --structured-backend",
    "guided_whitespace_pattern": f"{_LAST}. Whitespace in JSON is bounded here",
    "structural_tag": f"{_LAST}. Use structured_outputs.structural_tag, or response_format of type structural_tag",
}


def refuse_removed(unknown: Iterable[str]) -> None:
    """Raises InvalidRequestError for the first of the unknown fields that is such a one."""
    for name in unknown:
        if name in REMOVED:
            raise InvalidRequestError(f"{name} is not taken: {REMOVED[name]}.", param=name, code="removed_field")
