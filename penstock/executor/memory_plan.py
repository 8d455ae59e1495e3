"""How many KV blocks fit, with the sum written out. Pure arithmetic over facts: asks no machine, allocates nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from penstock.config.sizes import size_text
from penstock.errors import ConfigError
from penstock.types.kv import KvCapacity, KvGroupSpec, Visibility

CPU_KV_CEILING = 4 << 30  # of the default: a CPU serves few sequences at once
CPU_MEMORY_SHARE = 0.5  # of what weights and activations leave: the machine is not ours alone


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """What the plan is computed from. Sizes in bytes; ``groups`` carry their block sizes, pools are assigned here.

    ``kv_cache_memory`` is what the user asked for, None lets the plan decide. ``memory_available`` is what the process
    may still take before weights are loaded. ``graph_bytes`` is the part of the activations that recorded steps keep.
    ``owned``: the memory is a device's, ours alone, and KV blocks may fill it.
    """

    groups: tuple[KvGroupSpec, ...]
    weight_bytes: int
    activation_bytes: int
    memory_available: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    kv_cache_memory: int | None = None
    depth: int = 1
    graph_bytes: int = 0
    owned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """``num_blocks`` has one entry per pool; ``lines`` is the sum for people."""

    groups: tuple[KvGroupSpec, ...]
    num_blocks: tuple[int, ...]
    weight_bytes: int
    activation_bytes: int
    kv_bytes: int
    lines: tuple[str, ...]

    @property
    def capacity(self) -> KvCapacity:
        return KvCapacity(groups=self.groups, num_blocks=self.num_blocks)


def plan_memory(need: MemoryNeed) -> MemoryPlan:
    """Divide the KV memory among the pools.

    The pools are balanced for ``max_num_seqs`` sequences of one length: the longest that fits, up to max_model_len;
    each pool holds at least one request of max_model_len. Memory that the user named is used up, in the same
    proportions. Raises ConfigError, naming the flags to change, when not even one such request fits.
    """
    groups = _with_pools(need.groups)
    least = blocks_needed(groups, need, need.max_model_len, 1)
    budget, limit, why = _kv_budget(need, groups, _bytes(groups, least))
    if _bytes(groups, least) > budget:
        raise ConfigError(_too_small(need, groups, limit, why))

    def for_all(length: int) -> tuple[int, ...]:
        return _at_least(blocks_needed(groups, need, length, need.max_num_seqs), least)

    # Length 0 asks for no more than the one longest request, which fits.
    length = _last_that_fits(need.max_model_len, lambda tokens: _bytes(groups, for_all(tokens)) <= budget)
    blocks = for_all(length)
    if need.kv_cache_memory is not None:
        planned = _bytes(groups, blocks)
        blocks = tuple(count * budget // planned for count in blocks)
    return MemoryPlan(
        groups=groups,
        num_blocks=blocks,
        weight_bytes=need.weight_bytes,
        activation_bytes=need.activation_bytes,
        kv_bytes=_bytes(groups, blocks),
        lines=_lines(need, groups, blocks, why),
    )


def blocks_of(group: KvGroupSpec, num_tokens: int, num_fresh: int) -> int:
    """The most blocks of one group that a sequence of ``num_tokens`` holds at once, when one step may add
    ``num_fresh`` tokens: a window frees its past only once it has been left behind."""
    whole = -(-num_tokens // group.tokens_per_block)
    if group.visibility is Visibility.STATE:
        return min(whole, 2)
    if group.window is None:
        return whole
    return min(whole, -(-(group.window - 1 + num_fresh) // group.tokens_per_block) + 1)


def blocks_needed(groups: Sequence[KvGroupSpec], need: MemoryNeed, length: int, num_seqs: int) -> tuple[int, ...]:
    """Blocks per pool for ``num_seqs`` sequences of ``length`` tokens. The step's token budget is shared by all of
    them, so that only one sequence at a time is charged with a whole budget per plan in flight."""
    totals = [0] * (max(group.pool for group in groups) + 1)
    burst = need.max_num_batched_tokens * need.depth
    for group in groups:
        decoding = blocks_of(group, length, need.depth)
        totals[group.pool] += decoding * (num_seqs - 1) + blocks_of(group, length, burst)
    return tuple(totals)


def _with_pools(groups: Sequence[KvGroupSpec]) -> tuple[KvGroupSpec, ...]:
    """Groups of equal bytes per block share a pool: neither can run dry while the other has room."""
    pool_of: dict[int, int] = {}
    return tuple(replace(group, pool=pool_of.setdefault(group.bytes_per_block, len(pool_of))) for group in groups)


def _bytes(groups: Sequence[KvGroupSpec], blocks: Sequence[int]) -> int:
    size = {group.pool: group.bytes_per_block for group in groups}
    return sum(count * size[pool] for pool, count in enumerate(blocks))


def _at_least(blocks: Sequence[int], least: Sequence[int]) -> tuple[int, ...]:
    return tuple(max(pair) for pair in zip(blocks, least, strict=True))


def _last_that_fits(highest: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to ``highest`` for which ``fits``, which holds for 0 and is monotonic."""
    low, high = 0, highest
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _kv_budget(need: MemoryNeed, groups: Sequence[KvGroupSpec], least_bytes: int) -> tuple[int, int, str]:
    """(what KV may take, what it could take at most, the reason in words)."""
    if need.kv_cache_memory is not None:
        return need.kv_cache_memory, need.kv_cache_memory, "named by --kv-cache-memory"
    left = max(need.memory_available - need.weight_bytes - need.activation_bytes, 0)
    useful = _bytes(groups, blocks_needed(groups, need, need.max_model_len, need.max_num_seqs))
    choices = [(useful, f"all that {need.max_num_seqs} requests of {need.max_model_len} tokens can use")]
    if need.owned:
        choices.append((left, "all that is left"))
    else:
        choices += [
            (int(left * CPU_MEMORY_SHARE), f"{CPU_MEMORY_SHARE:.0%} of the {size_text(left)} that is left"),
            (CPU_KV_CEILING, "the default's ceiling; raise it with --kv-cache-memory"),
        ]
    budget, why = min(choices)
    if budget < least_bytes <= left:
        return least_bytes, left, f"what one request of {need.max_model_len} tokens needs"
    return budget, left, why


def _too_small(need: MemoryNeed, groups: Sequence[KvGroupSpec], limit: int, why: str) -> str:
    asked = size_text(_bytes(groups, blocks_needed(groups, need, need.max_model_len, 1)))
    named = need.kv_cache_memory is not None
    found = f"--kv-cache-memory gives {size_text(limit)}" if named else f"only {size_text(limit)} is left"
    fits = _last_that_fits(
        need.max_model_len,
        lambda tokens: tokens == 0 or _bytes(groups, blocks_needed(groups, need, tokens, 1)) <= limit,
    )
    lower = f"Set --max-model-len to {fits} or less" if fits else "Choose a smaller model"
    more = "raise --kv-cache-memory" if named else "free memory on this machine"
    sums = (
        ""
        if named
        else (
            f" of {size_text(need.memory_available)} after weights ({size_text(need.weight_bytes)}) and activations "
            f"({size_text(need.activation_bytes)})"
        )
    )
    head = f"The KV cache of one request of {need.max_model_len} tokens needs {asked}, but {found}{sums}."
    return f"{head} {lower}, or {more}."


def _lines(need: MemoryNeed, groups: Sequence[KvGroupSpec], blocks: Sequence[int], why: str) -> tuple[str, ...]:
    kv_bytes = _bytes(groups, blocks)
    total = need.weight_bytes + need.activation_bytes + kv_bytes
    recorded = f", {size_text(need.graph_bytes)} of it for recorded ones" if need.graph_bytes else ""
    step = f"in a step of {need.max_num_batched_tokens} tokens{recorded}"
    lines = [
        f"weights      {size_text(need.weight_bytes):>10}  as prepared for computing",
        f"activations  {size_text(need.activation_bytes):>10}  {step}",
        f"KV cache     {size_text(kv_bytes):>10}  {why}",
    ]
    for pool, count in enumerate(blocks):
        members = [group for group in groups if group.pool == pool]
        names = " + ".join(_group_text(group) for group in members)
        lines.append(f"  pool {pool}: {count} blocks x {size_text(members[0].bytes_per_block)} ({names})")
    lines.append(f"sum          {size_text(total):>10}  of {size_text(need.memory_available)} available")
    return tuple(lines)


def _group_text(group: KvGroupSpec) -> str:
    reach = f", window {group.window}" if group.window is not None else ""
    return f"{group.name}: {group.tokens_per_block} tokens per block{reach}"
