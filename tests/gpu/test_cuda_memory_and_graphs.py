"""What a card alone can show of recording and of memory that is given back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_soak import CONFIG

from penstock import LLM, SamplingParams

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_a_recording_that_fails_leaves_nothing_behind() -> None:
    """Neither its stream nor its memory: what follows is computed, recorded and repeated as before."""
    from penstock.executor.cuda_recorder import CudaRecorder
    from penstock.executor.graphs import GraphRefusedError

    recorder = CudaRecorder()
    source = torch.arange(1000, device="cuda", dtype=torch.float32)

    def asks_the_device() -> tuple[torch.Tensor, ...]:
        return (source * float((source + 1.0).sum().item()),)

    def does_not() -> tuple[torch.Tensor, ...]:
        return (source * 2.0 + 1.0,)

    stream = torch.cuda.current_stream()
    for _ in range(3):
        with pytest.raises(GraphRefusedError):
            recorder.record(asks_the_device)
        assert torch.cuda.current_stream() == stream
        recorded, (answer,) = recorder.record(does_not)
        kept = [torch.full((1000,), 7.0, device="cuda") for _ in range(50)]  # in no memory of the recording's
        source += 1.0
        recorded.run()
        assert torch.equal(answer, source * 2.0 + 1.0)
        assert all(bool((one == 7.0).all()) for one in kept)


def test_a_second_engine_finds_the_memory_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    found = []
    for _ in range(2):
        with LLM(str(tmp_path), load_format="dummy", dtype="bfloat16", max_model_len=2048, max_num_seqs=8) as llm:
            answers = llm.generate([[5, 6, 7], [8] * 100], SamplingParams(max_tokens=20, temperature=0.0))
            assert [len(answer.outputs[0].token_ids) for answer in answers] == [20, 20]
            found.append(llm.info.num_blocks[0])
    assert found[1] > 0.97 * found[0]


def test_the_rate_of_memory_is_one_that_such_a_device_can_have() -> None:
    from penstock.kernels.device_rate import copied_bytes_per_s
    from penstock.platforms.nvml import read_accelerators

    rate = copied_bytes_per_s(torch.device("cuda", 0))
    nominal = read_accelerators()[0].memory_bytes_per_s
    assert 0.3 * nominal < rate < 1.2 * nominal
