"""``penstock serve``: the OpenAI-compatible server. What it prints when ready works when pasted."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Annotated, Any

from penstock.cli.options import engine_config, fetch_model, mock_config, server_config
from penstock.cli.parse import Argument, Option, verb
from penstock.config import env
from penstock.config.flags import engine_flags, mock_flags, server_flags
from penstock.config.sections import MockConfig
from penstock.errors import ConfigError

KEY_VARIABLE = "PENSTOCK_API_KEY"


@verb(engine_flags, server_flags, mock_flags)
def serve(
    model: Annotated[
        str, Argument("[MODEL]", "Bundle name, local directory, local .gguf file, or hub id.")
    ] = "smollm2",
    mock: Annotated[bool, Option("--mock", help="Answer from the mock engine: no model, no torch.")] = False,
    **options: Any,
) -> None:
    """Serve MODEL over HTTP with the OpenAI API; / shows the load and has a playground.

    penstock serve smollm2
    penstock serve ./my-model --port 9000 --max-model-len 4096
    penstock serve owner/name --served-model-name assistant --api-key secret
    penstock serve smollm2 --kv-cache-memory 2GiB --max-num-seqs 16
    penstock serve --mock --mock-time 10ms --mock-fault die=500

    Ctrl-C or SIGTERM stops taking requests, lets open ones end (see --drain-timeout), and exits.
    """
    config = engine_config(model, options)
    server = server_config(options)
    mocked = mock_config(options)
    if not mock and mocked != MockConfig():
        raise ConfigError("Options that begin with --mock- are for the mock engine: add --mock.")
    if not mock:
        fetch_model(model, config.model.revision)
    from penstock.engine.serve import run_server
    from penstock.observability.log import configure_logging

    configure_logging(env.log_level())

    def announce(url: str, served_name: str) -> None:
        print(ready_text(url, served_name, needs_key=bool(server.api_key)), file=sys.stderr, flush=True)

    run_server(config, server, mock=mocked if mock else None, announce=announce)


def ready_text(url: str, served_name: str, *, needs_key: bool) -> str:
    """What to do with a server that is ready: a curl line and a Python snippet, both complete and in need of nothing
    that would have to be installed. The snippet is not indented: an interactive Python refuses lines that are."""
    message = {"role": "user", "content": "What is the capital of France?"}
    body = {"model": served_name, "messages": [message], "max_tokens": 64, "temperature": 0}
    header = f' -H "Authorization: Bearer ${KEY_VARIABLE}"' if needs_key else ""
    data = shlex.quote(json.dumps(body))
    key = f'os.environ["{KEY_VARIABLE}"]' if needs_key else '"none"'
    authorization = f', "Authorization": "Bearer " + {key}' if needs_key else ""
    lines = [
        f"Serving {served_name} at {url}  (page with load and playground: {url}/)",
        *([f"Clients need a key; both examples take it from ${KEY_VARIABLE}."] if needs_key else []),
        "",
        "In a shell:",
        "",
        f"  curl -s {url}/v1/chat/completions{header} -H 'Content-Type: application/json' -d {data}",
        "",
        "In Python:",
        "",
        f"import json, {'os, ' if needs_key else ''}urllib.request",
        f"body = {json.dumps(body)}",
        f'headers = {{"Content-Type": "application/json"{authorization}}}',
        f'request = urllib.request.Request("{url}/v1/chat/completions", json.dumps(body).encode(), headers)',
        "with urllib.request.urlopen(request) as answer:",
        '    print(json.load(answer)["choices"][0]["message"]["content"])',
        "",
        f'Any OpenAI client works too: base_url="{url}/v1", api_key={key}',
        "",
    ]
    return "\n".join(lines)
