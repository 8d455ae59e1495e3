"""Rendered conversations and their token ids equal transformers' for every family's style of template."""

from __future__ import annotations

import json

import pytest
from chat_template_fixtures import LLAMA3, QWEN, STYLES
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_fixtures import RANDOM_TEXT, TEXTS, transformers_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from penstock.errors import InvalidRequestError
from penstock.frontend.chat.template import ChatTemplate
from penstock.frontend.text.load import load_text_assets
from penstock.frontend.text.requests import prepare_request
from penstock.loader.sources import ModelSource, resolve_source
from penstock.types.request import SamplingParams

CONVERSATIONS = {
    "user": [{"role": "user", "content": "What is the capital of France?"}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi there \n"}],
    "turns": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello! 🙂"},
        {"role": "user", "content": "Größe? 漢字"},
    ],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Wetter für <Ort> & Zeit",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALL = {"id": "abcdefgh1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "n": 1}}}
TOOL_TURNS = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "abcdefgh1", "content": '{"sky": "blue"}'},
]


def write_hub_directory(folder, style, template=None):
    """tokenizer.json, tokenizer_config.json and config.json of a tiny byte-level model with the style's tokens."""
    special = [token for token in (style.bos, style.eos, *style.extra) if token is not None]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if style.adds_bos:
        ends = [(style.bos, tokenizer.token_to_id(style.bos))]
        tokenizer.post_processor = processors.TemplateProcessing(single=[style.bos, "$A"], special_tokens=ends)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": {"content": style.eos, "__type": "AddedToken", "special": True},
        "add_bos_token": not style.adds_bos,  # tokenizer.json wins
        "chat_template": template or style.template,
        "clean_up_tokenization_spaces": False,
    }
    if style.bos is not None:
        config["bos_token"] = style.bos
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "eos_token_id": [tokenizer.token_to_id(style.eos)]})
    )


@pytest.fixture(scope="module", params=STYLES)
def pair(request, tmp_path_factory):
    """(style, our assets, transformers' tokenizer) of one directory."""
    folder = tmp_path_factory.mktemp(request.param)
    style = STYLES[request.param]
    write_hub_directory(folder, style)
    assets = load_text_assets(ModelSource(name="tiny", kind="directory", path=folder))
    return style, assets, AutoTokenizer.from_pretrained(folder)


def render_both(pair, messages, **options):
    _, assets, theirs = pair
    expected = theirs.apply_chat_template(messages, tokenize=False, **options)
    return assets.chat_template.render(messages, **options), expected


@pytest.mark.parametrize("generation", [True, False])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_renders_as_transformers(pair, name, generation):
    ours, expected = render_both(pair, CONVERSATIONS[name], add_generation_prompt=generation)
    assert ours == expected


@given(text=st.one_of(RANDOM_TEXT, st.text(max_size=20), st.sampled_from(["{{ 7 * 7 }}", "{% raw %}", "<s>", "{#"])))
def test_request_data_is_only_data(pair, text):
    ours, expected = render_both(pair, [{"role": "user", "content": text}], add_generation_prompt=True)
    assert ours == expected
    assert "{{ 7 * 7 }}" not in text or "{{ 7 * 7 }}" in ours


@pytest.mark.parametrize("final", ["Paris is", "Paris is ", " \nThe", "x" * 50, "\n"])
def test_continues_the_final_message_as_transformers(pair, final):
    messages = [{"role": "user", "content": "Paris is where?"}, {"role": "assistant", "content": final}]
    ours, expected = render_both(pair, messages, continue_final_message=True, add_generation_prompt=False)
    assert ours == expected


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_prompt_ids_equal_transformers_with_one_beginning_of_sequence(pair, name):
    style, assets, theirs = pair
    rendered = assets.chat_template.render(CONVERSATIONS[name])
    expected = theirs.apply_chat_template(CONVERSATIONS[name], add_generation_prompt=True)["input_ids"]
    chat = prepare(assets, rendered, add_special_tokens=False)
    assert list(chat) == expected
    if style.writes_bos:
        begins = 2 if style is STYLES["llama2"] and name == "turns" else 1
        assert list(chat).count(assets.tokenizer.bos_token_id) == begins
        assert prepare(assets, rendered, add_special_tokens=True) == chat


@pytest.mark.parametrize("text", ["Once upon a time", " leading", *TEXTS])
def test_completion_prompts_get_what_transformers_adds(pair, text):
    style, assets, theirs = pair
    ids = prepare(assets, text, add_special_tokens=True)
    assert list(ids) == theirs(text)["input_ids"]
    assert (ids[0] == assets.tokenizer.bos_token_id) == style.adds_bos


def prepare(assets, prompt, *, add_special_tokens):
    prepared = prepare_request(
        assets,
        prompt,
        SamplingParams(),
        new_request_id=lambda: 1,
        max_model_len=10_000,
        add_special_tokens=add_special_tokens,
    )
    return prepared.prompt_token_ids


@pytest.mark.parametrize("style", ["llama3", "qwen", "mistral"])
@pytest.mark.parametrize("tools", [TOOLS, None])
def test_tools_and_tool_calls_render_as_transformers(style, tools, tmp_path):
    write_hub_directory(tmp_path, STYLES[style])
    ours = load_text_assets(ModelSource(name="tiny", kind="directory", path=tmp_path)).chat_template
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for messages in (CONVERSATIONS["system"], TOOL_TURNS):
        expected = theirs.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
        assert ours.render(messages, tools=tools) == expected


def test_content_parts_render_as_transformers_where_the_template_takes_them(tmp_path):
    write_hub_directory(tmp_path, STYLES["gemma"])
    ours = load_text_assets(ModelSource(name="tiny", kind="directory", path=tmp_path)).chat_template
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    messages = [{"role": "user", "content": parts}]
    assert ours.traits().takes_parts
    assert ours.render(messages) == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    messages.append({"role": "assistant", "content": [{"type": "text", "text": "three"}]})
    options = {"continue_final_message": True, "add_generation_prompt": False}
    assert ours.render(messages, **options) == theirs.apply_chat_template(messages, tokenize=False, **options)


def test_named_templates_are_chosen_as_transformers_does(tmp_path):
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools | length }} tools"}]
    write_hub_directory(tmp_path, STYLES["qwen"], template=named)
    ours = load_text_assets(ModelSource(name="tiny", kind="directory", path=tmp_path)).chat_template
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for tools in (None, TOOLS):
        messages = CONVERSATIONS["user"]
        assert ours.render(messages, tools=tools) == theirs.apply_chat_template(messages, tools=tools, tokenize=False)


def test_reasoning_and_extra_variables_render_as_transformers():
    template = QWEN + "{{ mode }}{{ documents[0].title }}{{ messages[-1].thinking }}"
    messages = [*CONVERSATIONS["user"], {"role": "assistant", "content": "x", "reasoning_content": "hm"}]
    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    options = {"documents": [{"title": "T", "text": "t"}], "mode": "fast", "add_generation_prompt": False}
    expected = theirs.apply_chat_template(messages, chat_template=template, tokenize=False, **options)
    assert ChatTemplate(template, {}).render(messages, **options) == expected


def test_a_refusing_template_is_an_error_of_the_request():
    template = ChatTemplate(STYLES["gemma"].template, {"bos_token": "<bos>"})
    with pytest.raises(InvalidRequestError, match="must alternate"):
        template.render([{"role": "assistant", "content": "first"}])
    with pytest.raises(InvalidRequestError, match="Only one call"):
        ChatTemplate(LLAMA3, {"bos_token": ""}).render(
            [*CONVERSATIONS["user"], {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]}]
        )


@pytest.mark.slow
def test_the_real_models_chat_ids_equal_transformers():
    source = resolve_source("smollm2")
    assets = load_text_assets(source)
    theirs = transformers_tokenizer(source.path)
    for messages in CONVERSATIONS.values():
        ids = prepare(assets, assets.chat_template.render(messages), add_special_tokens=False)
        assert list(ids) == theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert assets.stop_token_ids == {assets.tokenizer.eos_token_id}
