"""A model that thinks and calls tools: its template, a tool, and a mock that says what a test wants it to say."""

from __future__ import annotations

from penstock.frontend.chat.template import ChatTemplate
from penstock.mock.tokenizer import ByteTokenizer

# In the style of Qwen 3: calls in tags, thinking that the prompt can open or close.
TEMPLATE = """{% if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.reasoning_content %}<think>
{{ m.reasoning_content }}
</think>

{% endif %}{{ m.content }}{% for c in m.tool_calls or [] %}
<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking %}<think>
{% elif enable_thinking is defined %}<think>

</think>

{% endif %}{% endif %}"""
USER = {"role": "user", "content": "What is the weather in Köln?"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln 🦊"}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rom"}}\n</tool_call>'


def prompt_length(*, tools=(WEATHER,), messages=(USER,), **kwargs):
    """The position of an answer's first token."""
    return len(ByteTokenizer().encode(ChatTemplate(TEMPLATE, {}).render(messages, tools=tools, **kwargs)))


def says(text, **conversation):
    """A token function of a model that answers this conversation with ``text`` and stops."""
    ids = [*ByteTokenizer().encode(text), ByteTokenizer.eos_token_id]
    start = prompt_length(**conversation)
    return lambda _seed, _request, position: ids[min(position - start, len(ids) - 1)]
