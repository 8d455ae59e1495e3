"""LLM against transformers on a tiny model, whatever else is in the batch."""

from __future__ import annotations

import pytest
import torch
from engine_fixtures import save_model
from transformers import DynamicCache

from penstock import LLM, SamplingParams
from penstock.config.flags import engine_config_from
from penstock.engine.build import explain
from penstock.errors import ConfigError, EngineDeadError, NoBackendError, UnsupportedModelError

OPTIONS = {
    "dtype": "float32", "kv_cache_dtype": "float32", "kv_cache_memory": 4 << 20, "threads": 1, "check_integrity": True,
}  # fmt: skip
PROMPTS = ["Hello there", "x", "a longer prompt, with some punctuation; and more of it!", "zürich"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    return directory, *save_model(directory)


@pytest.fixture(scope="module")
def llm(saved):
    with LLM(str(saved[0]), max_num_seqs=6, max_num_batched_tokens=16, **OPTIONS) as made:
        yield made


def by_transformers(saved, text, count):
    """Greedy token ids of transformers' own generate, up to and with the end token."""
    _, model, tokenizer = saved
    ids = tokenizer.encode(text).ids
    with torch.inference_mode():
        output = model.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False)
    return ids, output[0, len(ids) :].tolist()


def test_greedy_batches_equal_transformers(llm, saved):
    answers = llm.generate(PROMPTS * 3, SamplingParams(temperature=0, max_tokens=40))
    for text, answer in zip(PROMPTS * 3, answers, strict=True):
        ids, expected = by_transformers(saved, text, 40)
        assert list(answer.prompt_token_ids) == ids
        assert list(answer.outputs[0].token_ids) == expected
        whole = saved[2].decode(expected)
        assert answer.text in (whole, whole.removesuffix("\ufffd"))  # without a character that the length cut off


def test_logprobs_equal_transformers(llm, saved):
    _, model, tokenizer = saved
    (answer,) = llm.generate(PROMPTS[2], SamplingParams(temperature=0, max_tokens=8, logprobs=3, prompt_logprobs=0))
    ids = tokenizer.encode(PROMPTS[2]).ids + list(answer.outputs[0].token_ids)
    with torch.inference_mode():
        expected = torch.log_softmax(model(torch.tensor([ids])).logits[0], dim=-1)
    scores = [*answer.prompt_logprobs, *answer.outputs[0].logprobs]
    assert len(scores) == len(ids) - 1
    for position, entry in enumerate(scores):
        assert entry.chosen.token_id == ids[position + 1]
        assert entry.chosen.logprob == pytest.approx(expected[position, ids[position + 1]].item(), abs=1e-4)
    for position, entry in enumerate(answer.outputs[0].logprobs, start=len(answer.prompt_logprobs)):
        values = expected[position].topk(3).values.tolist()
        assert [score.logprob for score in entry.top] == pytest.approx(values, abs=1e-4)


def test_a_seed_gives_the_same_text_alone_and_in_company(llm):
    params = SamplingParams(temperature=1.0, seed=42, max_tokens=20, n=2)
    (alone,) = llm.generate("Hello there", params)
    company = llm.generate(["Hello there", *PROMPTS], [params, *[SamplingParams(max_tokens=30)] * 4])[0]
    assert [output.token_ids for output in alone.outputs] == [output.token_ids for output in company.outputs]
    assert alone.outputs[0].token_ids != alone.outputs[1].token_ids


def test_chat_stream_and_generate_agree(llm):
    messages = [{"role": "user", "content": "Hi"}]
    text = llm.render_chat(messages)
    assert text == "[user] Hi\n[bot] "
    params = SamplingParams(temperature=0, max_tokens=20)
    (chat,) = llm.chat(messages, params)
    (plain,) = llm.generate(text, params)
    deltas = list(llm.stream_chat(messages, params))
    assert chat.outputs == plain.outputs
    assert "".join(delta.text for delta in deltas) == chat.text
    assert sum((delta.token_ids for delta in deltas), ()) == chat.outputs[0].token_ids


def test_a_repeated_prompt_comes_from_the_prefix_cache_and_gives_the_same_text(llm):
    prompt = "The same beginning, long enough for several blocks of the cache. " * 2
    params = SamplingParams(temperature=0, max_tokens=16)
    first, second = (llm.generate(prompt, params)[0] for _ in range(2))
    assert second.num_cached_tokens >= 64
    assert first.outputs == second.outputs


def test_the_models_own_defaults_apply_when_nothing_is_given(llm):
    assert llm.default_sampling().temperature == 0.5
    assert llm.default_sampling(temperature=0.0).greedy


def test_explain_knows_what_a_start_finds_out(llm, saved):
    found = explain(engine_config_from(model=str(saved[0]), max_num_seqs=6, max_num_batched_tokens=16, **OPTIONS))
    assert found.capacity.num_blocks == llm.info.num_blocks
    *decided, steps, dialect = found.decisions
    assert tuple(decided) == llm.info.decisions[:-1]
    assert steps.subject == llm.info.decisions[-1].subject == "steps"  # known once warmed up
    assert dialect.subject == "dialect"  # of text, which the engine does not see
    assert found.settings == llm.info.settings
    assert found.model == llm.info.model
    assert any(line.startswith("sum") for line in found.memory_lines)
    assert {"dtype", "block_size", "max_model_len"} <= {decision.subject for decision in found.decisions}


def test_a_context_is_shortened_to_what_memory_holds_unless_it_was_asked_for(saved):
    few = {**OPTIONS, "kv_cache_memory": 64 << 10}
    found = explain(engine_config_from(model=str(saved[0]), **few))
    assert 0 < found.resolved.max_model_len < 256
    with pytest.raises(ConfigError, match="max-model-len"):
        explain(engine_config_from(model=str(saved[0]), max_model_len=256, **few))


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"attention_backend": "nonsense"}, NoBackendError, "no candidate named 'nonsense'"),
        ({"max_model_len": 100_000}, ConfigError, "made for at most 256 tokens"),
        ({"block_size": 7}, ConfigError, "7"),
        ({"kv_cache_memory": 100}, ConfigError, "KV cache"),
    ],
)
def test_what_cannot_be_is_refused_before_loading(saved, options, error, sentence):
    with pytest.raises(error, match=sentence):
        LLM(str(saved[0]), **{**OPTIONS, **options})


def test_an_unknown_architecture_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["FancyForCausalLM"], "model_type": "fancy"}')
    with pytest.raises(UnsupportedModelError, match="FancyForCausalLM"):
        explain(engine_config_from(model=str(tmp_path), load_format="dummy"))


def test_what_kills_the_executor_is_logged_and_is_the_cause_of_the_error(saved, monkeypatch, caplog):
    def sample(*_):
        raise IndexError("past the end")

    with LLM(str(saved[0]), **OPTIONS) as dying:
        monkeypatch.setattr("penstock.executor.sampler.sampler.Sampler.sample", sample)
        with pytest.raises(EngineDeadError, match="IndexError: past the end") as caught:
            dying.generate("a")
    assert isinstance(caught.value.__cause__, IndexError)
    assert [record.exc_info[0] for record in caplog.records if record.name == "penstock.executor.local"] == [IndexError]


class Float8Cache(DynamicCache):
    """Of transformers: whatever is read from it has been rounded to float8."""

    def update(self, keys, values, *args, **kwargs):
        return super().update(*(x.to(torch.float8_e4m3fn).float() for x in (keys, values)), *args, **kwargs)


def test_a_cache_in_float8(saved):
    """The log-probabilities are those of transformers with a cache that rounds."""
    _, model, tokenizer = saved
    ids = tokenizer.encode(PROMPTS[2]).ids
    options = OPTIONS | {"kv_cache_dtype": "fp8", "attention_backend": "reference_torch", "max_num_batched_tokens": 16}
    with LLM(str(saved[0]), max_num_seqs=2, **options) as made:
        (answer,) = made.generate(PROMPTS[2], SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0))
    found = torch.tensor([entry.chosen.logprob for entry in answer.prompt_logprobs])
    with torch.inference_mode():
        rounded, exact = (
            torch.log_softmax(model(torch.tensor([ids]), past_key_values=cache).logits[0, :-1], dim=-1)
            .gather(1, torch.tensor(ids[1:])[:, None])
            .flatten()
            for cache in (Float8Cache(), DynamicCache())
        )
    torch.testing.assert_close(found, rounded, rtol=0, atol=2e-3)
    assert (exact - rounded).abs().max() > 0.1


def test_a_type_of_the_cache_is_named_as_torch_does(saved):
    def asked(backend):
        return engine_config_from(model=str(saved[0]), dtype="float32", kv_cache_dtype="fp8", attention_backend=backend)

    decision = next(each for each in explain(asked(None)).decisions if each.subject == "kv_cache_dtype")
    assert (decision.chosen, decision.why) == ("float8_e4m3fn", "named by --kv-cache-dtype")
    with pytest.raises(NoBackendError, match="asked for float8_e4m3fn"):
        explain(asked("cpu_sdpa"))
