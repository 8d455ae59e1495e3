"""Text of the mock engine, for the process that speaks with clients: it needs no core, and so imports none."""

from __future__ import annotations

from dataclasses import replace

from penstock.config.sections import EngineConfig, MockConfig
from penstock.frontend.chat.template import ChatTemplate
from penstock.frontend.text.load import TextAssets, load_text_assets
from penstock.mock.specs import MockOrder, garbage_texts
from penstock.mock.tokenizer import ByteTokenizer

MOCK_NAME = "mock"
_CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def mock_assets(config: EngineConfig | None = None) -> TextAssets:
    """Text of the mock model: that of ``--tokenizer``, else bytes and a chat template of the usual shape.

    Raises what ``load_text_assets`` raises.
    """
    if config is not None and config.model.tokenizer is not None:
        from penstock.loader.sources import resolve_source

        assets = load_text_assets(resolve_source(config.model.tokenizer), chat_template=config.model.chat_template)
        template = assets.chat_template or ChatTemplate(_CHAT_TEMPLATE, {})
        return replace(assets, chat_template=template, sampling_defaults={}, max_new_tokens=None)
    tokenizer = ByteTokenizer()
    return TextAssets(
        tokenizer=tokenizer,
        chat_template=ChatTemplate(_CHAT_TEMPLATE, {}),
        stop_token_ids=frozenset({tokenizer.eos_token_id}),
    )


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
