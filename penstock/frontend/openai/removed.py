"""Request fields that were taken once, or are taken elsewhere: they answer with what to write instead, and are never
ignored.

Each table maps a field to a sentence without its end: who last took it, and what to use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from penstock.errors import InvalidRequestError

_GUIDED = "it was last taken by vLLM 0.11"
_V0 = "it was last obeyed by vLLM 0.10"
_BEAM = "it belonged to beam search, which this server does not have. Ask for n answers with logprobs and choose"

REMOVED: Mapping[str, str] = {
    "guided_json": f"{_GUIDED}. Use structured_outputs.json, or response_format of type json_schema",
    "guided_regex": f"{_GUIDED}. Use structured_outputs.regex",
    "guided_choice": f"{_GUIDED}. Use structured_outputs.choice",
    "guided_grammar": f"{_GUIDED}. Use structured_outputs.grammar",
    "guided_json_object": f"{_GUIDED}. Use structured_outputs.json_object",
    "guided_decoding_backend": f"{_GUIDED}. The server's operator names a backend with --structured-backend",
    "guided_whitespace_pattern": f"{_GUIDED}. Whitespace in JSON is bounded here",
    "structural_tag": f"{_GUIDED}. Use structured_outputs.structural_tag, or response_format of type structural_tag",
    "logits_processors": f"{_V0}. Use logit_bias, allowed_token_ids, bad_words or structured_outputs",
    "logits_processor": f"{_V0}. Use logit_bias, allowed_token_ids, bad_words or structured_outputs",
    "logit_processors": "no server has taken it. Use logit_bias, allowed_token_ids, bad_words or structured_outputs",
    "use_beam_search": _BEAM,
    "length_penalty": _BEAM,
    "early_stopping": _BEAM,
    "truncate_prompt_tokens": "prompts are not cut here. Shorten the prompt; /tokenize counts its tokens",
    "prompt_embeds": "prompts are text or token ids here. Use prompt",
    "max_output_tokens": "it belongs to /v1/responses. Use max_tokens, or max_completion_tokens in chat",
    "max_new_tokens": "it belongs to other servers. Use max_tokens",
    "stop_sequences": "it belongs to /v1/messages. Use stop",
}
"""Of both generation routes."""

COMPLETION_REMOVED: Mapping[str, str] = {
    **REMOVED,
    "max_completion_tokens": "it belongs to /v1/chat/completions. Use max_tokens",
    "messages": "it belongs to /v1/chat/completions. Use prompt, or that route",
    "tools": "it belongs to /v1/chat/completions. Use that route",
}

_FUNCTIONS = "it was last taken by OpenAI's chat API of 2023"

CHAT_REMOVED: Mapping[str, str] = {
    **REMOVED,
    "functions": f"{_FUNCTIONS}. Use tools",
    "function_call": f"{_FUNCTIONS}. Use tool_choice",
    "prompt": "it belongs to /v1/completions. Use messages, or that route",
    "input": "it belongs to /v1/responses. Use messages, or that route",
    "system": "it belongs to /v1/messages. Use a message of role system",
    "enable_thinking": "it is a variable of chat templates. Use chat_template_kwargs.enable_thinking",
    "thinking": "it belongs to /v1/messages. Use reasoning_effort or chat_template_kwargs",
    "documents": "documents are not put into prompts here. Write them into messages",
    "echo": "answers do not repeat the prompt. Use /v1/completions, or /tokenize to see it",
}


def refuse_removed(fields: Iterable[str], table: Mapping[str, str]) -> None:
    """Raises InvalidRequestError for the first of ``fields`` that the table has."""
    for name in fields:
        if name in table:
            raise InvalidRequestError(f"{name} is not taken: {table[name]}.", param=name, code="removed_field")
