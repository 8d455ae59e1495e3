"""Checks and times everything on the CUDA device of this machine, with what is installed: installs nothing.

    python scripts/on_card.py [gpu ops attention latency throughput prefill kernels] [-n 4] [--directory OUT]

Checks: ``gpu`` runs tests/gpu, ``ops`` and ``attention`` the conformance grids of ops, linear methods and attention
backends. Figures: ``latency``, ``throughput`` and ``prefill`` run `penstock bench` on the shape of Llama 3.1 8B with
made-up weights and print a table beside vLLM's figures of docs/performance.md, which are an H200's; ``kernels`` times
every op. Without names all of it is run, in this order; reports are kept as JSON in OUT. The exit status is 1 when a
check failed or a figure could not be taken.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CHECKS: dict[str, tuple[str, ...]] = {
    "gpu": ("tests/gpu",),
    "ops": (
        "tests/conformance/test_ops.py",
        "tests/conformance/test_rotate_and_write.py",
        "tests/conformance/test_linear_methods.py",
    ),
    "attention": ("tests/conformance/test_attention_backends.py",),
}
WEIGHTS = ("--load-format", "dummy", "--max-model-len", "4096", "--no-enable-prefix-caching")
BATCHES = (1, 8, 32, 128, 256)


def _tokens(given: int, made: int) -> tuple[str, ...]:
    return "--input-len", str(given), "--output-len", str(made)


BENCHES: dict[str, tuple[str, ...]] = {
    "latency": ("latency", *WEIGHTS, "--batch-size", ",".join(map(str, BATCHES)), *_tokens(512, 128)),
    "throughput": ("throughput", *WEIGHTS, "--max-num-seqs", "512", "--num-prompts", "1024", *_tokens(512, 256)),
    "prefill": ("latency", *WEIGHTS, "--batch-size", "16", *_tokens(3500, 1)),
    "kernels": ("kernels", "--load-format", "dummy", "--rows", "1,8,32,128,256,1024"),
}
# vLLM 0.22.1 with its defaults on an H200: (what, its figure, what we ask of the ratio to it, and that it be at most).
ANCHORS: dict[str, tuple[tuple[str, float, float, bool], ...]] = {
    "latency": tuple(
        (f"decode step, batch {batch}, ms", ms, 0.95, True)
        for batch, ms in zip(BATCHES, (4.90, 5.12, 5.80, 8.77, 14.1), strict=True)
    ),
    "throughput": (("1,024 requests, output tokens/s", 10_140, 1.05, False),),
    "prefill": (("prefill of 16 x 3,500, tokens/s", 41_200, 1.0, False),),
}
SHAPE = {  # of Llama 3.1 8B
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}


def main() -> int:
    given = parse(sys.argv[1:])
    import torch

    if not torch.cuda.is_available():
        print("Run this where torch sees a CUDA device: it sees none here.", file=sys.stderr)
        return 2
    directory = given.directory.resolve()
    model = directory / "llama-8b-shape"
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text(json.dumps(SHAPE, indent=2), encoding="utf-8")
    failed = [part for part in given.parts if not _run(command_of(part, model, directory, given.n))]
    lines = [line for part in given.parts if part not in failed for line in compared(part, directory)]
    if lines:
        print(f"\n{'':40}{'penstock':>12}{'vLLM':>12}{'ratio':>8}  wanted\n" + "\n".join(lines))
    print(f"\nFAILED: {', '.join(failed)}" if failed else "\nevery part is done", flush=True)
    return 1 if failed else 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = (*CHECKS, *BENCHES)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"Of {', '.join(every)}. Default: all.")
    parser.add_argument("-n", type=int, default=4, help="Processes that share the tests, and the card's memory.")
    parser.add_argument("--directory", type=Path, default=ROOT / "build/on-card", help="Where reports are kept.")
    given = parser.parse_args(arguments)
    unknown = [part for part in given.parts if part not in every]
    if unknown:
        parser.error(f"there is no part {unknown[0]}: choose of {', '.join(every)}")
    given.parts = [part for part in every if part in (given.parts or every)]
    return given


def command_of(part: str, model: Path, directory: Path, processes: int) -> list[str]:
    """What runs a part, in the root of the repository."""
    if part in CHECKS:
        return [sys.executable, "-m", "pytest", "-q", "-n", str(processes), *CHECKS[part]]
    verb, *options = BENCHES[part]
    report = ("--json", str(directory / f"{part}.json"))
    return [sys.executable, "-m", "penstock.cli", "bench", verb, str(model), *options, *report]


def compared(part: str, directory: Path) -> list[str]:
    """A line for each figure of a part that there is an anchor for."""
    if part not in ANCHORS:
        return []
    rows = json.loads((directory / f"{part}.json").read_text(encoding="utf-8"))["rows"]
    return [
        _line(what, ours, theirs, asked, at_most)
        for ours, (what, theirs, asked, at_most) in zip(figures(part, rows), ANCHORS[part], strict=True)
    ]


def figures(part: str, rows: Sequence[dict[str, Any]]) -> list[float]:
    """Of a report's rows, in the order of the anchors."""
    if part == "latency":
        return [next(row["decode_step_ms_p50"] for row in rows if row["batch"] == batch) for batch in BATCHES]
    if part == "prefill":
        return [rows[0]["prefill_tokens_per_s"]]
    return [statistics.median(row["output_tokens_per_s"] for row in rows)]


def _line(what: str, ours: float, theirs: float, asked: float, at_most: bool) -> str:
    ratio = ours / theirs
    holds = ratio <= asked if at_most else ratio >= asked
    wanted = f"{'at most' if at_most else 'at least'} {asked:.2f}: {'holds' if holds else 'MISSED'}"
    return f"{what:40}{ours:12,.2f}{theirs:12,.2f}{ratio:8.2f}  {wanted}"


def _run(command: list[str]) -> bool:
    print(f"\n$ {' '.join(command)}", flush=True)
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
