"""Text of the mock engine, for the process that speaks with clients: it needs no core, and so imports none."""

from __future__ import annotations

from dataclasses import replace

from penstock.config.sections import EngineConfig, MockConfig
from penstock.frontend.chat.template import ChatTemplate
from penstock.frontend.dialects.select import AUTO, select_dialect
from penstock.frontend.text.load import TextAssets, load_text_assets, read_template
from penstock.mock.specs import MockOrder, garbage_texts
from penstock.mock.tokenizer import ByteTokenizer

_CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def mock_assets(config: EngineConfig | None = None) -> TextAssets:
    """Text of the mock model: that of ``--tokenizer``, else bytes; the chat template of ``--chat-template``, else the
    tokenizer's, else one of the usual shape; and the dialect that fits, or that of ``--tool-dialect``.

    Raises what ``load_text_assets`` raises.
    """
    asked = config.model if config is not None else None
    tool_dialect = asked.tool_dialect if asked is not None else AUTO
    if asked is not None and asked.tokenizer is not None:
        from penstock.loader.sources import resolve_source

        assets = load_text_assets(
            resolve_source(asked.tokenizer), chat_template=asked.chat_template, tool_dialect=tool_dialect
        )
        assets = replace(assets, sampling_defaults={}, max_new_tokens=None)
    else:
        tokenizer = ByteTokenizer()
        assets = TextAssets(tokenizer=tokenizer, stop_token_ids=frozenset({tokenizer.eos_token_id}))
    if assets.chat_template is not None:
        return assets
    own = asked.chat_template if asked is not None else None
    template = ChatTemplate(_CHAT_TEMPLATE if own is None else read_template(own), {})
    dialect = select_dialect(template.sources, template.render, assets.tokenizer, tool_dialect)
    return replace(assets, chat_template=template, dialect=dialect)


def mock_order(config: MockConfig, assets: TextAssets) -> MockOrder:
    """What the engine process has to know about text: the size of the vocabulary, and what to say as token ids.

    Raises ConfigError.
    """
    tokenizer = assets.tokenizer
    scripts = tuple(
        tuple(tokenizer.encode(text, add_special_tokens=False)) for text in garbage_texts(config.mock_fault)
    )
    size = 0 if isinstance(tokenizer, ByteTokenizer) else tokenizer.vocab_size
    order = MockOrder(config=config, vocab_size=size, scripts=scripts, end_id=tokenizer.eos_token_id)
    order.check()
    return order
