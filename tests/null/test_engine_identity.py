"""Which content a KV block is said to have: the engine's part of the block hashes."""

from __future__ import annotations

import pytest

from penstock.config.flags import engine_config_from
from penstock.core.engine import EngineCore
from penstock.engine import engine as engine_module
from penstock.engine.mock_engine import build_mock_engine


class Nowhere:
    def emit(self, batch):
        raise AssertionError(batch)


@pytest.fixture
def identity_of(monkeypatch):
    """The identity that the core hashes blocks with, for engine options."""
    seen = []

    class Core(EngineCore):
        def __init__(self, executor, capacity, limits, channel, clock, model_identity, **more):
            seen.append(model_identity)
            super().__init__(executor, capacity, limits, channel, clock, model_identity, **more)

    monkeypatch.setattr(engine_module, "EngineCore", Core)

    def build(**options):
        build_mock_engine(engine_config_from(**options), Nowhere())
        return seen[-1]

    return build


def test_the_dtype_is_part_of_the_identity_of_blocks(identity_of):
    """float16 and bfloat16 blocks have the same size, so that nothing else tells their hashes apart."""
    dtypes = ("float16", "bfloat16", "float32")
    assert len({identity_of(dtype=dtype) for dtype in dtypes}) == len(dtypes)
    assert identity_of(dtype="float16") == identity_of(dtype="float16", max_num_seqs=2, seed=3)
