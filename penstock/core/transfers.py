"""KV beyond the device: loads before admission, stores of sealed blocks, and what they pin. Knows no plan, no seat.

Every job is created by a successful ``prepare_*`` of a tier, rides on the next plan, and ends once: when a result
reports it, or when the executor is dead. Until then its blocks are referenced, so that nobody else can be given
them. Tiers are asked in their order; the first that has a block loads it, every tier is offered every store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from penstock.core.kv.manager import KvManager, SealedBlock
from penstock.core.ports import KvTier, Lookup
from penstock.core.requests import RequestState
from penstock.errors import IntegrityError
from penstock.types.kv import BlockHash, BlockId, TransferJob, TransferKind


class TierAnswer(Enum):
    NOTHING = "nothing"  # the device knows as much as the tiers, or there is no room to load
    LATER = "later"  # a tier is still looking
    LOADING = "loading"  # jobs are on their way


@dataclass(slots=True)
class _Outstanding:
    job: TransferJob
    tier: KvTier
    request: RequestState


class TransferTracker:
    """Owns all transfer jobs of one core."""

    def __init__(self, kv: KvManager, tiers: Sequence[KvTier]) -> None:
        if tiers and not kv.caching:
            raise ValueError("KV tiers address blocks by hash and need prefix caching, which is off")
        self.tiers = tuple(tiers)
        self._kv = kv
        self._outstanding: dict[int, _Outstanding] = {}
        self._unsent: list[TransferJob] = []
        self._pinned: dict[int, list[tuple[int, BlockId]]] = {}  # request -> (pool, block) kept during its load
        self._next_job = 0

    @property
    def num_outstanding(self) -> int:
        return len(self._outstanding)

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    def take_unsent(self) -> tuple[TransferJob, ...]:
        """Jobs for the plan that is being made."""
        jobs = tuple(self._unsent)
        self._unsent.clear()
        return jobs

    # -- loads ---------------------------------------------------------------------------------------------------

    def ask(self, request: RequestState, device_length: int) -> TierAnswer:
        """Look for a longer prefix than the device's, and start loading it."""
        later = False

        def present(group: int, block_hash: BlockHash) -> bool:
            nonlocal later
            if self._kv.is_cached(group, block_hash):
                return True
            answers = [tier.lookup(group, block_hash) for tier in self.tiers]
            hit = Lookup.HIT in answers
            later = later or (not hit and Lookup.LATER in answers)
            return hit

        length = self._kv.longest_prefix(request.blocks, request.tokens, request.max_hit, present)
        if later:
            return TierAnswer.LATER
        if length <= device_length:
            return TierAnswer.NOTHING
        return TierAnswer.LOADING if self._start_load(request, length) else TierAnswer.NOTHING

    def _start_load(self, request: RequestState, length: int) -> bool:
        kv = self._kv
        pinned: list[tuple[int, BlockId]] = []
        wanted: dict[tuple[int, int], list[BlockHash]] = {}  # (tier, group) -> hashes
        needs = [0] * len(kv.pools)
        for g, group in enumerate(kv.groups):
            for block_hash in kv.reach_hashes(request.blocks, g, length):
                block = kv.pools[group.pool].lookup(block_hash)
                if block is not None:
                    kv.pools[group.pool].acquire((block,))
                    pinned.append((group.pool, block))
                else:
                    wanted.setdefault((self._tier_with(g, block_hash), g), []).append(block_hash)
                    needs[group.pool] += 1
        fits = all(need <= pool.num_available for need, pool in zip(needs, kv.pools, strict=True))
        if not (fits and self._prepare_loads(wanted)):
            self._release_pinned(pinned)
            return False
        self._pinned[request.id] = pinned
        for (t, g), hashes in wanted.items():
            blocks = kv.pools[kv.groups[g].pool].allocate(len(hashes))
            self._open_job(TransferKind.LOAD, self.tiers[t], g, blocks, hashes, request)
        return True

    def _tier_with(self, group: int, block_hash: BlockHash) -> int:
        for index, tier in enumerate(self.tiers):
            if tier.lookup(group, block_hash) is Lookup.HIT:
                return index
        return 0  # gone since it was seen: its prepare_load will say so

    def _prepare_loads(self, wanted: dict[tuple[int, int], list[BlockHash]]) -> bool:
        prepared: list[tuple[int, int]] = []
        for (t, g), hashes in wanted.items():
            if not self.tiers[t].prepare_load(g, hashes):
                for done_t, done_g in prepared:
                    self.tiers[done_t].complete_load(done_g, wanted[done_t, done_g])
                return False
            prepared.append((t, g))
        return True

    def _release_pinned(self, pinned: Sequence[tuple[int, BlockId]]) -> None:
        for pool, block in reversed(pinned):
            self._kv.pools[pool].release((block,))

    # -- stores --------------------------------------------------------------------------------------------------

    def offer(self, request: RequestState, sealed: Sequence[SealedBlock]) -> None:
        """Offer newly sealed blocks to every tier; they stay referenced until their copies are reported."""
        for g in sorted({block.group for block in sealed}):
            by_hash = {block.block_hash: block.block for block in sealed if block.group == g}
            for tier in self.tiers:
                hashes = tier.prepare_store(g, tuple(by_hash))
                if hashes:
                    blocks = [by_hash[block_hash] for block_hash in hashes]
                    self._kv.pools[self._kv.groups[g].pool].acquire(blocks)
                    self._open_job(TransferKind.STORE, tier, g, blocks, hashes, request)

    def _open_job(
        self,
        kind: TransferKind,
        tier: KvTier,
        group: int,
        blocks: Sequence[BlockId],
        hashes: Sequence[BlockHash],
        request: RequestState,
    ) -> None:
        job = TransferJob(
            job_id=self._next_job,
            kind=kind,
            tier=tier.name,
            group=group,
            block_ids=tuple(blocks),
            block_hashes=tuple(hashes),
        )
        self._next_job += 1
        self._outstanding[job.job_id] = _Outstanding(job, tier, request)
        self._unsent.append(job)
        request.num_jobs += 1

    # -- ends ----------------------------------------------------------------------------------------------------

    def complete(self, job_id: int, ok: bool) -> RequestState:
        """End a job that a result has reported. Returns its request; loaded blocks are cached and unreferenced."""
        entry = self._outstanding.pop(job_id, None)
        if entry is None:
            raise IntegrityError(f"transfer {job_id} was reported, but it is not in flight")
        job, request = entry.job, entry.request
        pool = self._kv.pools[self._kv.groups[job.group].pool]
        if job.kind is TransferKind.LOAD:
            entry.tier.complete_load(job.group, job.block_hashes)
            if ok:
                for block, block_hash in zip(job.block_ids, job.block_hashes, strict=True):
                    pool.seal(block, block_hash)
        else:
            entry.tier.complete_store(job.group, job.block_hashes, ok)
        pool.release(reversed(job.block_ids))
        request.num_jobs -= 1
        if request.num_jobs == 0:
            self._release_pinned(self._pinned.pop(request.id, ()))
        return request

    def cancel_all(self) -> list[RequestState]:
        """The executor is dead: end every job as failed. Returns the requests that had one."""
        self._unsent.clear()
        return [self.complete(job_id, False) for job_id in list(self._outstanding)]

    def add_references(self, references: list[list[int]]) -> None:
        """Add, per pool and block, the references that jobs and loads hold."""
        for entry in self._outstanding.values():
            pool = self._kv.groups[entry.job.group].pool
            for block in entry.job.block_ids:
                references[pool][block] += 1
        for pinned in self._pinned.values():
            for pool, block in pinned:
                references[pool][block] += 1
