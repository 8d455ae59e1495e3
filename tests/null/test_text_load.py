"""What is read from a model directory: tokenizer, templates, stop ids and sampling defaults."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from text_fixtures import SPECIAL, trained_byte_level

from penstock.errors import ConfigError, ModelSourceError, UnsupportedModelError
from penstock.frontend.text.load import load_text_assets
from penstock.loader.sources import ModelSource
from penstock.mock.tokenizer import ByteTokenizer

END, START, STOP = SPECIAL


@pytest.fixture
def folder(tmp_path):
    trained_byte_level().save(str(tmp_path / "tokenizer.json"))
    write(
        tmp_path,
        "tokenizer_config.json",
        {"bos_token": START, "eos_token": {"content": STOP}, "chat_template": "inline"},
    )
    write(tmp_path, "config.json", {"eos_token_id": 2})
    return tmp_path


def write(folder: Path, name: str, data: dict) -> None:
    (folder / name).write_text(json.dumps(data))


def load(folder, **options):
    return load_text_assets(ModelSource(name="tiny", kind="directory", path=folder), **options)


def test_named_tokens_are_found(folder):
    tokenizer = load(folder).tokenizer
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.special_token_ids == {0, 1, 2}
    assert tokenizer.decode(tokenizer.encode(f"a{STOP}b")) == "ab"


def test_special_tokens_map_fills_what_the_configuration_leaves_open(folder):
    write(folder, "tokenizer_config.json", {"bos_token": None, "eos_token": STOP})
    write(folder, "special_tokens_map.json", {"bos_token": {"content": START}, "eos_token": END})
    tokenizer = load(folder).tokenizer
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


def test_tokens_that_only_the_configuration_declares_are_added_at_their_id(folder):
    size = load(folder).tokenizer.vocab_size
    declared = {
        str(size): {"content": "<extra>", "special": True},
        str(size + 7): {"content": "<elsewhere>", "special": True},
        "50": {"content": "<taken>", "special": False},
    }
    write(folder, "tokenizer_config.json", {"added_tokens_decoder": declared})
    tokenizer = load(folder).tokenizer
    assert tokenizer.encode("<extra>") == [size]
    assert size in tokenizer.special_token_ids
    assert len(tokenizer.encode("<elsewhere>")) > 1
    assert tokenizer.vocab_size == size + 1


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({"eos_token_id": 0}, {}, {0, 2}),
        ({"eos_token_id": [0, 1]}, {"eos_token_id": [2, 5]}, {0, 1, 2, 5}),
        ({"text_config": {"eos_token_id": 7}}, {"eos_token_id": 9}, {2, 7, 9}),
        ({"eos_token_id": None}, {}, {2}),
    ],
)
def test_stop_ids_are_the_union_of_all_files(folder, config, generation, expected):
    write(folder, "config.json", config)
    write(folder, "generation_config.json", generation)
    assert load(folder).stop_token_ids == expected
    assert load(folder, generation_config="none").stop_token_ids == expected


def test_sampling_defaults_are_the_models_unless_ignored(folder):
    generation = {"temperature": 0.6, "top_p": None, "top_k": 40, "do_sample": True, "max_new_tokens": 99}
    write(folder, "generation_config.json", generation)
    assets = load(folder)
    assert (assets.sampling_defaults, assets.max_new_tokens) == ({"temperature": 0.6, "top_k": 40}, 99)
    assets = load(folder, generation_config="none")
    assert (assets.sampling_defaults, assets.max_new_tokens) == ({}, None)


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_p": "high"}, {"max_new_tokens": "many"}])
def test_sampling_defaults_that_cannot_be_used_say_how_to_ignore_them(folder, wrong):
    write(folder, "generation_config.json", wrong)
    with pytest.raises(ModelSourceError, match="--generation-config none"):
        load(folder)
    assert load(folder, generation_config="none").sampling_defaults == {}


def test_a_template_file_beats_the_inline_one_and_the_callers_beats_both(folder):
    messages = [{"role": "user", "content": "Hi"}]
    assert load(folder).chat_template.render(messages) == "inline"
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ eos_token }}")
    assert load(folder).chat_template.render(messages) == START + STOP
    (folder / "mine.jinja").write_text("mine {{ eos_token }}")
    assert load(folder, chat_template=str(folder / "mine.jinja")).chat_template.render(messages) == f"mine {STOP}"
    with pytest.raises(ConfigError, match="nowhere"):
        load(folder, chat_template=str(folder / "nowhere"))


def test_named_templates_come_from_lists_and_folders(folder):
    write(folder, "tokenizer_config.json", {"chat_template": [{"name": "default", "template": "a"}]})
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("b")
    template = load(folder).chat_template
    assert template.render([]) == "a"
    assert template.render([], tools=[{"type": "function"}]) == "b"


def test_a_model_without_template_has_none(folder):
    write(folder, "tokenizer_config.json", {})
    assert load(folder).chat_template is None


def test_another_directory_can_give_the_tokenizer(folder, tmp_path_factory):
    bare = tmp_path_factory.mktemp("bare")
    write(bare, "config.json", {"eos_token_id": 3})
    with pytest.raises(ModelSourceError, match="--tokenizer"):
        load(bare)
    assets = load(bare, tokenizer=str(folder))
    assert assets.stop_token_ids == {2, 3}
    assert assets.chat_template.render([]) == "inline"


def test_the_models_own_templates_serve_another_tokenizer_without_any(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    trained_byte_level().save(str(other / "tokenizer.json"))
    assert load(folder, tokenizer=str(other)).chat_template.render([]) == "inline"


@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json", "generation_config.json"])
@pytest.mark.parametrize("text", ["{", "[]", "\x80"])
def test_a_damaged_file_is_named(folder, name, text):
    (folder / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelSourceError, match=name):
        load(folder)


def test_a_stand_in_serves_a_model_without_a_tokenizer_and_no_other(folder, tmp_path_factory):
    stand_in = ByteTokenizer()
    bare = tmp_path_factory.mktemp("bare")
    write(bare, "config.json", {"eos_token_id": 7})
    assets = load(bare, stand_in=stand_in)
    assert assets.tokenizer is stand_in
    assert assets.stop_token_ids == {7}
    assert assets.chat_template is None
    with pytest.raises(ModelSourceError, match=r"no tokenizer\.json"):
        load(bare)
    assert load(folder, stand_in=stand_in).tokenizer is not stand_in
    assert load(bare, stand_in=stand_in, tokenizer=str(folder)).tokenizer is not stand_in


def test_a_damaged_template_file_is_named(folder):
    (folder / "chat_template.jinja").write_bytes(b"\x80")
    with pytest.raises(ModelSourceError, match=r"chat_template\.jinja"):
        load(folder)


def test_a_damaged_tokenizer_is_named(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.json"):
        load(folder)


def test_a_tokenizer_json_that_truncates_does_not(folder):
    tokenizer = trained_byte_level().from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert len(load(folder).tokenizer.encode("x y z q w")) == len(trained_byte_level().encode("x y z q w").ids)
