"""Constrained output over HTTP, with OpenAI's client: fields, errors that name what is wrong, streams."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import httpx
import openai
import pydantic
import pytest
from http_fixtures import MockServer
from prometheus_client.parser import text_string_to_metric_families

from penstock.mock.executor import mock_token

MESSAGES = [{"role": "user", "content": "Say something."}]
SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer"}, "sign": {"enum": ["plus", "minus"]}},
    "required": ["sum", "sign"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server() -> Iterator[MockServer]:
    with MockServer(token_of=mock_token, check_integrity=False) as running:
        yield running


def completion(server, **fields):
    return server.openai().completions.create(model="mock", prompt="a", max_tokens=400, extra_body=fields)


def post(server, route="completions", **fields):
    body = {"prompt": "a"} if route == "completions" else {"messages": MESSAGES}
    return httpx.post(f"{server.url}/v1/{route}", json=body | {"max_tokens": 300} | fields, timeout=30)


def test_a_json_schema_by_response_format(server):
    form = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SCHEMA, "strict": True}}
    answer = server.openai().chat.completions.create(
        model="mock", messages=MESSAGES, response_format=form, max_tokens=400
    )
    assert answer.choices[0].finish_reason == "stop"
    assert set(json.loads(answer.choices[0].message.content)) == {"sum", "sign"}


def test_the_clients_own_parsing_of_models(server):
    class Verdict(pydantic.BaseModel):
        good: bool
        grade: int | None

    answer = server.openai().chat.completions.parse(
        model="mock", messages=MESSAGES, response_format=Verdict, max_tokens=400
    )
    assert isinstance(answer.choices[0].message.parsed, Verdict)


def test_streaming_gives_the_same_text(server):
    form = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SCHEMA}}
    client = server.openai()
    fields = {"model": "mock", "messages": MESSAGES, "response_format": form, "max_tokens": 400}
    stream = client.chat.completions.create(stream=True, **fields)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert set(json.loads(text)) == {"sum", "sign"}


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"structured_outputs": {"regex": "[a-f]{6}"}}, "[a-f]{6}"),
        ({"structured_outputs": {"choice": ["red", "green"]}}, "red|green"),
        ({"structured_outputs": {"grammar": 'root ::= "x" [0-9]{3}'}}, "x[0-9]{3}"),
        ({"structured_outputs": {"grammar": 'start: "y" /[0-9]{3}/'}}, "y[0-9]{3}"),
        ({"structured_outputs": {"json": {"const": 5}}}, "5"),
        ({"structured_outputs": {"json": '{"const": 5}'}}, "5"),
        ({"response_format": {"type": "text"}, "max_tokens": 3}, ".{3}"),
        (
            {
                "response_format": {
                    "type": "structural_tag",
                    "structures": [{"begin": "e", "schema": {"const": 7}, "end": "!"}],
                    "triggers": ["e"],
                }
            },
            "(e7!|[^e])*(e7?)?",
        ),
    ],
)
@pytest.mark.parametrize("route", ["completions", "chat/completions"])
def test_every_way_to_ask(server, route, fields, pattern):
    answer = post(server, route, **fields)
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    text = choice["text"] if route == "completions" else choice["message"]["content"]
    assert re.fullmatch(pattern, text, re.DOTALL), text


def test_json_object_and_several_answers(server):
    answer = completion(server, response_format={"type": "json_object"}, n=4, stop=["\n\n\n\n\n\n\n\n\n\n"])
    assert len(answer.choices) == 4
    for choice in answer.choices:
        assert choice.text.startswith("{")
        if choice.finish_reason == "stop" and choice.text.endswith("}"):
            assert isinstance(json.loads(choice.text), dict)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"response_format": {"type": "xml"}}, "response_format", ["json_schema", "xml"]),
        ({"response_format": {"type": "json_schema"}}, "response_format", ["json_schema.schema"]),
        ({"response_format": {"type": "structural_tag"}}, "response_format", ["structures"]),
        ({"structured_outputs": {}}, "structured_outputs", ["none"]),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", ["regex", "choice"]),
        ({"structured_outputs": {"choice": []}}, "structured_outputs", ["one or more"]),
        ({"structured_outputs": {"regex": 5}}, "structured_outputs", ["regex"]),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "structured_outputs",
            ["exclude each other"],
        ),
        ({"guided_json": {}}, "guided_json", ["vLLM 0.11", "structured_outputs.json"]),
        ({"guided_choice": ["a"]}, "guided_choice", ["structured_outputs.choice"]),
        ({"guided_decoding_backend": "xgrammar"}, "guided_decoding_backend", ["--structured-backend"]),
    ],
)
def test_what_is_wrong_with_a_field_is_a_400_that_names_it(server, fields, param, words):
    answer = post(server, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    for word in words:
        assert word in error["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        ({"json": {"type": "object", "not": {}}}, ["not", "#"]),
        ({"json": {"properties": {"a": {"uniqueItems": True}}}}, ["uniqueItems", "#/properties/a"]),
        ({"json": {"requried": ["a"]}}, ["requried", "required"]),
        ({"json": {"items": {"type": "string", "format": "fancy"}}}, ["keyword format", "fancy", "#/items"]),
        ({"json": {"type": "object", "properties": {"a": {}}, "minProperties": 1}}, ["keywords minProperties"]),
        ({"json": {"oneOf": [{"type": "integer"}, {"minimum": 3}]}}, ["oneOf"]),
        ({"json": "{"}, ["not valid JSON"]),
        ({"json": False}, ["structured_outputs"]),
        ({"regex": "(?=a)"}, ["look-around"]),
        ({"regex": "["}, ["regular expression"]),
        ({"grammar": "start: nothing"}, ["nothing"]),
        ({"grammar": "root ::= nothing"}, ["nothing"]),
    ],
)
def test_what_cannot_be_compiled_is_a_400_in_streams_too(server, stream, constraint, words):
    answer = post(server, "chat/completions", structured_outputs=constraint, stream=stream)
    assert answer.status_code == 400
    for word in words:
        assert word in answer.json()["error"]["message"]
    assert "%" not in answer.json()["error"]["message"]  # nothing of the grammar that we made of it


def test_metrics_say_what_constraints_cost(server):
    def read():
        text = httpx.get(f"{server.url}/metrics").text
        families = {family.name.partition(":")[2]: family for family in text_string_to_metric_families(text)}
        samples = [(name, sample) for name, family in families.items() for sample in family.samples]
        named = [(sample.labels.get("result", name), sample) for name, sample in samples]
        return {
            name.removeprefix("structured_output_"): sample.value
            for name, sample in named
            if not sample.name.endswith("_created")
        }

    before = read()
    fields = {"structured_outputs": {"regex": "me[a-z]{5}"}}
    for _ in range(2):
        assert completion(server, **fields).choices[0].finish_reason == "stop"
    assert post(server, structured_outputs={"regex": "me["}).status_code == 400
    after = read()
    grown = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert grown["compiled"] == grown["refused"] == grown["cache_hits"] == 1
    assert grown["rows"] == grown["masks"] == 2 * (7 + 1)
    assert all(grown[f"{name}_seconds"] > 0 for name in ("compile", "mask", "accept"))
    assert after["num_requests_compiling"] == 0


def test_errors_are_those_of_the_client(server):
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        completion(server, structured_outputs={"json": {"uniqueItems": True}})
