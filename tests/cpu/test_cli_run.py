"""The command line on a tiny model with random weights: explain, check and run as a user would call them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tool_fixtures import TEMPLATE

from penstock.cli.main import main
from penstock.platforms.probe import probe_platform
from penstock.platforms.recorded import RECORDED
from penstock.quantization.linear import LinearSpec
from penstock.quantization.schemes import F32
from penstock.quantization.select import choose_linear

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 260,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "eos_token_id": 259,
}
FLAGS = ("--load-format", "dummy", "--dtype", "float32", "--kv-cache-memory", "4MiB")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model directory without weights and with a byte-level tokenizer."""
    path = tmp_path_factory.mktemp("tiny")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>", "<end>"])
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    (path / "config.json").write_text(json.dumps(CONFIG))
    return str(path)


@pytest.fixture
def call(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        out, err = capsys.readouterr()
        assert ended.value.code == 0, err
        return out, err

    return run


def test_explain_writes_the_sum_out(call, tiny):
    out, _ = call("explain", tiny, *FLAGS)
    for word in ("LlamaForCausalLM", "family llama", "KV cache", "sum", "attention", "linear"):
        assert word in out


def test_explain_json_has_every_decision_with_its_reasons(call, tiny):
    record = json.loads(call("explain", tiny, *FLAGS, "--json")[0])
    assert record["model"]["num_layers"] == 2
    assert record["settings"]["dtype"] == "float32"
    subjects = " ".join(decision["subject"] for decision in record["decisions"])
    assert "attention" in subjects
    assert "linear" in subjects
    assert "dialect" in subjects
    refused = [reason for decision in record["decisions"] for reason in decision["rejected"]]
    assert all(each["reasons"] for each in refused)


@pytest.mark.parametrize(
    ("template", "flags", "dialect", "why"),
    [
        (None, (), None, "no dialect is recognised: output is text only"),
        (TEMPLATE, (), "hermes", "reasoning in <think>"),
        (TEMPLATE, ("--tool-dialect", "none"), None, "--tool-dialect none"),
        (None, ("--tool-dialect", "hermes"), "hermes", "named by --tool-dialect"),
    ],
)
def test_explain_shows_the_dialect_and_why_it_is_that(call, tiny, tmp_path, template, flags, dialect, why):
    if template is not None:
        tiny = shutil.copytree(tiny, tmp_path / "with-template")
        (tiny / "chat_template.jinja").write_text(template)
    record = json.loads(call("explain", str(tiny), *FLAGS, *flags, "--json")[0])
    (decision,) = [one for one in record["decisions"] if one["subject"] == "dialect"]
    assert decision["chosen"] == dialect
    assert why in decision["why"]
    out, _ = call("explain", str(tiny), *FLAGS, *flags)
    (line,) = [line for line in out.splitlines() if "dialect:" in line]
    assert line.startswith(f"  dialect: {dialect or 'nothing'} ({decision['why']}")


def test_explain_for_another_machine(call, tiny):
    auto = [flag for flag in FLAGS if flag not in ("--dtype", "float32")]
    out, _ = call("explain", tiny, *auto, "--platform", "laptop-avx2", "--json")
    (dtype,) = [decision for decision in json.loads(out)["decisions"] if decision["subject"] == "dtype"]
    assert dtype["chosen"] == "float32"
    assert "native kernels" in dtype["rejected"][0]["reasons"][0]


def test_explain_for_a_machine_without_a_data_plane_says_so_and_shows_the_refused(call, tiny):
    flags = [flag for flag in FLAGS if flag not in ("--dtype", "float32")]
    decisions = json.loads(call("explain", tiny, *flags, "--platform", "mi300x", "--json")[0])["decisions"]
    assert decisions[0]["subject"] == "platform"
    assert decisions[0]["chosen"] is None
    assert "no data plane for rocm yet" in decisions[0]["why"]
    (attention,) = [decision for decision in decisions if decision["subject"].startswith("attention")]
    (refused,) = [rejection for rejection in attention["rejected"] if rejection["name"] == "cpu_sdpa"]
    assert any("rocm" in reason for reason in refused["reasons"])


@pytest.mark.parametrize("platform", RECORDED)
def test_explain_answers_for_every_recorded_machine(call, tiny, platform):
    flags = [flag for flag in FLAGS if flag not in ("--dtype", "float32")]
    record = json.loads(call("explain", tiny, *flags, "--platform", platform, "--json")[0])
    chosen = {decision["subject"].split()[0]: decision["chosen"] for decision in record["decisions"]}
    assert {"platform", "dtype", "attention", "linear", "op", "max_model_len"} <= set(chosen)
    subjects = {decision["subject"] for decision in record["decisions"]}
    assert {f"op rms_norm {record['settings']['dtype']}", "op sample float32"} <= subjects
    assert record["settings"]["platform"] == record["platform"]["name"]
    assert all(rejection["reasons"] for decision in record["decisions"] for rejection in decision["rejected"])


@pytest.mark.skipif(probe_platform().name == "cuda", reason="it can run here")
def test_a_named_platform_that_cannot_run_ends_with_its_reasons(tiny, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["explain", tiny, *FLAGS, "--platform", "cuda"])
    assert ended.value.code == 2
    assert "platform: cuda cannot run" in capsys.readouterr().err


def test_explain_shows_what_was_decided_not_what_was_left_open(call, tiny):
    flags = [flag for flag in FLAGS if flag not in ("--kv-cache-memory", "4MiB")]
    settings = json.loads(call("explain", tiny, *flags, "--json")[0])["settings"]
    assert (settings["attention_backend"], settings["kv_cache_dtype"]) == ("cpu_native", "bfloat16")
    spec = LinearSpec(scheme=F32, out_features=64, in_features=64, dtype="float32", platform=probe_platform())
    assert settings["linear_backend"] == choose_linear(spec)[0].name
    assert int(settings["kv_cache_memory"]) > 0
    assert "None" not in settings.values()


def test_check_shows_facts_and_what_would_be_chosen(call):
    record = json.loads(call("check", "--json")[0])
    assert record["facts"]["num_cores"] >= 1
    assert all(decision["chosen"] for decision in record["decisions"])
    out, _ = call("check", "--platform", "server-amx")
    assert "amx_bf16" in out
    assert "What would be chosen" in out


def test_run_completes_raw_where_there_is_no_template(call, tiny):
    arguments = ("run", tiny, "abc", *FLAGS, "--temperature", "0", "--max-tokens", "6")
    answer = json.loads(call(*arguments, "--json")[0])
    assert answer["prompt"] == "abc"
    assert answer["usage"]["prompt_tokens"] == 3
    assert call(*arguments)[0].rstrip("\n") == answer["text"].rstrip("\n")


def test_only_a_seed_repeats_an_answer_that_was_drawn(call, tiny):
    """The weights stay the same, whether they have a seed or not."""

    def tokens(*more):
        out, _ = call("run", tiny, "abc", *FLAGS, "--temperature", "1", "--max-tokens", "24", "--json", *more)
        return json.loads(out)["token_ids"]

    assert tokens("--seed", "0") == tokens("--seed", "0")
    assert tokens() != tokens()
    assert tokens("--top-k", "1") == tokens("--top-k", "1")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A configuration and nothing else, of a model with more tokens than there are bytes."""
    path = tmp_path_factory.mktemp("bare")
    (path / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": 1000, "eos_token_id": 999}))
    return str(path)


def test_dummy_weights_need_a_configuration_and_nothing_else(call, bare):
    out, _ = call("run", bare, "héllo", *FLAGS, "--max-tokens", "12", "--json")
    answer = json.loads(out)
    assert answer["usage"]["prompt_tokens"] == len("héllo".encode())
    assert len(answer["token_ids"]) <= 12
    measured, _ = call(
        "bench", "latency", bare, *FLAGS, "--batch-size", "1", "--input-len", "8", "--output-len", "2", "--repeats", "1"
    )
    assert measured.strip()


def test_a_prompt_of_tokens_that_the_model_does_not_have_is_a_sentence(capsys, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": 100, "eos_token_id": 99}))
    with pytest.raises(SystemExit) as ended:
        main(["run", str(tmp_path), "x", *FLAGS])
    assert ended.value.code == 2
    assert "token id 120, but this model has ids 0 to 99" in capsys.readouterr().err


def test_run_through_a_pipe(tiny):
    arguments = ["run", tiny, "-", *FLAGS, "--raw", "--temperature", "0", "--max-tokens", "6"]
    done = subprocess.run(
        [sys.executable, "-m", "penstock.cli", *arguments], input="abc", capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("\n")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--chat"], "no chat template"),
        (["--attention-backend", "nonsense"], "there is no candidate named 'nonsense'"),
        (["--max-model-len", "100000"], "max_model_len is 100000"),
    ],
)
def test_what_cannot_be_is_a_sentence(capsys, tiny, arguments, sentence):
    with pytest.raises(SystemExit) as ended:
        main(["run", tiny, "abc", *FLAGS, *arguments])
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert sentence in err
    assert "Traceback" not in err
