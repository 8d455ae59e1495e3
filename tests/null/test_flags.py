"""Flags, keywords and environment variables: one description, one parser, sentences for what is wrong."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.config import env, flags, sections
from penstock.config.sizes import parse_size
from penstock.errors import ConfigError

ALL = (*flags.engine_flags(), *flags.server_flags())


def test_every_field_of_every_section_is_one_flag():
    expected = [
        field.name
        for section in (*flags.ENGINE_SECTIONS.values(), sections.ServerConfig)
        for field in dataclasses.fields(section)
    ]
    assert [flag.name for flag in ALL] == expected
    assert len(set(expected)) == len(expected), "flat names must not collide"
    assert set(flags.ENGINE_SECTIONS) == {field.name for field in dataclasses.fields(sections.EngineConfig)}
    assert all(flag.text.endswith(".") for flag in ALL)


@pytest.mark.parametrize("flag", ALL, ids=lambda flag: flag.name)
def test_defaults_pass_their_own_check(flag):
    if flag.default is not None:
        assert flag.value_of(flag.default) == flag.default


def test_defaults_make_the_default_config():
    assert flags.engine_config_from() == sections.EngineConfig()
    assert flags.server_config_from() == sections.ServerConfig()
    assert flags.engine_config_from(max_model_len=None, served_model_name=()) == sections.EngineConfig()


def test_text_and_values_give_the_same_config():
    text = flags.engine_config_from(max_model_len="128", kv_cache_memory="1.5GiB", served_model_name=["a", "b"])
    value = flags.engine_config_from(max_model_len=128, kv_cache_memory=3 << 29, served_model_name=("a", "b"))
    assert text == value
    assert text.model.served_model_name == ("a", "b")
    assert flags.flat_values(text)["kv_cache_memory"] == 3 << 29


def test_flat_values_round_trip():
    config = flags.engine_config_from(dtype="float32", threads=2, enable_prefix_caching=False, model=Path("x"))
    assert flags.engine_config_from(**flags.flat_values(config)) == config


def test_flat_values_hold_no_secret():
    assert "secret" not in repr(flags.flat_values(flags.server_config_from(api_key="secret")))


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"max_modl_len": 3}, "no engine option 'max_modl_len'. Did you mean max_model_len"),
        ({"zzz": 3}, "Known are model, tokenizer"),
        ({"dtype": "float8"}, "dtype is 'float8', but it must be one of auto, float32"),
        ({"max_num_seqs": 0}, "max_num_seqs is 0, but it must be at least 1"),
        ({"max_num_seqs": True}, "must be a whole number"),
        ({"max_num_seqs": "12.5"}, "must be a whole number"),
        ({"max_num_seqs": 1.0}, "must be a whole number"),
        ({"kv_cache_memory": "lots"}, "a size such as 512MiB"),
        ({"kv_cache_memory": -1}, "at least 1"),
        ({"enable_prefix_caching": "yes"}, "must be true or false"),
        ({"tokenizer": ""}, "tokenizer is empty"),
        ({"tokenizer": 3}, "must be text"),
        ({"served_model_name": 3}, "a list of texts"),
        ({"served_model_name": ["a", 3]}, "must be text"),
    ],
)
def test_wrong_keywords_are_sentences(keywords, sentence):
    with pytest.raises(ConfigError, match=r"\w") as caught:
        flags.engine_config_from(**keywords)
    assert sentence in str(caught.value)


def test_options_are_spelt_as_options():
    with pytest.raises(ConfigError, match=r"^--port is 70000, but it must be at most 65535"):
        flags.server_config_from("option", port="70000")
    with pytest.raises(ConfigError, match=r"^--drain-timeout is 'soon', but it must be a number"):
        flags.server_config_from("option", drain_timeout="soon")
    with pytest.raises(ConfigError, match="nan"):
        flags.server_config_from("option", request_timeout="nan")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("17", 17), ("17B", 17), ("1k", 1 << 10), ("1KiB", 1 << 10), ("1KB", 1000), ("1 GiB", 1 << 30),
        ("4G", 4 << 30), ("4gb", 4 * 10**9), ("1.5GiB", 3 << 29), ("2TiB", 2 << 40), ("0.5K", 512),
    ],
)  # fmt: skip
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1PiB", "1 2", "1e9", "1,5G", None, 1.5, True])
def test_no_sizes(text):
    with pytest.raises(ConfigError):
        parse_size(text)


@given(st.integers(0, 2**40), st.sampled_from(["", "B", "K", "MiB", "GB"]))
def test_sizes_of_whole_numbers_are_exact(number, unit):
    factor = {"": 1, "B": 1, "K": 1024, "MiB": 1 << 20, "GB": 10**9}[unit]
    assert parse_size(f"{number}{unit}") == number * factor


def test_a_flag_wins_over_its_variable(monkeypatch):
    monkeypatch.setenv("PENSTOCK_API_KEY", "one, two")
    assert flags.server_config_from().api_key == ("one", "two")
    assert flags.server_config_from(api_key="three").api_key == ("three",)


@pytest.mark.parametrize("text", [",", " ", " , "])
def test_a_key_variable_without_a_key_does_not_open_the_server(monkeypatch, text):
    monkeypatch.setenv("PENSTOCK_API_KEY", text)
    with pytest.raises(ConfigError, match="holds no value"):
        flags.server_config_from()


def test_variables_are_typed_and_checked():
    assert env.log_level({}) == "info"
    assert env.log_level({"PENSTOCK_LOG_LEVEL": "DEBUG"}) == "debug"
    assert env.debug({"PENSTOCK_DEBUG": "yes"}) is True
    assert env.debug({"PENSTOCK_DEBUG": ""}) is False
    for name, value in [("PENSTOCK_LOG_LEVEL", "loud"), ("PENSTOCK_DEBUG", "maybe")]:
        with pytest.raises(ConfigError, match=f"{name} is '{value}'"):
            env.check_environment({name: value})


def test_cache_directory_order():
    assert env.cache_dir({}) == Path("~/.cache/penstock").expanduser()
    assert env.cache_dir({"XDG_CACHE_HOME": "/x"}) == Path("/x/penstock")
    assert env.cache_dir({"XDG_CACHE_HOME": "/x", "PENSTOCK_CACHE": "/y"}) == Path("/y")


def test_misspelt_variables_are_remarked_on_and_foreign_ones_are_not():
    (remark,) = env.check_environment({"PENSTOCK_CAHCE": "/x", "PENSTOCK_SERVICE_HOST": "10.0.0.1", "HOME": "/"})
    assert "PENSTOCK_CAHCE" in remark
    assert "PENSTOCK_CACHE?" in remark


def test_every_variable_that_a_flag_names_is_declared():
    declared = {variable.name for variable in env.VARIABLES}
    assert {flag.env for flag in ALL if flag.env} <= declared


def test_nothing_else_reads_our_variables():
    root = Path(flags.__file__).parent.parent
    access = re.compile(r"(environ|getenv).*PENSTOCK_")
    readers = [path.relative_to(root).as_posix() for path in root.rglob("*.py") if access.search(path.read_text())]
    assert readers == []


def test_set_for_children_takes_declared_names_and_good_values_only(monkeypatch):
    monkeypatch.setenv("PENSTOCK_LOG_LEVEL", "info")
    env.set_for_children("PENSTOCK_LOG_LEVEL", "debug")
    assert env.log_level() == "debug"
    with pytest.raises(ConfigError, match="must be one of"):
        env.set_for_children("PENSTOCK_LOG_LEVEL", "loud")
