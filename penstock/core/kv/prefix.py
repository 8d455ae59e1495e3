"""Block identity: a hash chain per group over everything that determines KV content. Knows no block id.

The digest of block i covers the root and all tokens up to the end of the block, so that equal digests mean equal
prefixes. BLAKE2b with 128 bits (RFC 7693): the same in every process, on every machine and after every restart,
and not to be forged by crafted prompts as 64-bit or unkeyed language hashes are.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b

from penstock.types.kv import BlockHash, KvGroupSpec

DIGEST_SIZE = 16
_PERSON = b"penstock.kv.v1"  # raise the version when the meaning of a digest changes


def chain_root(model_identity: str, spec: KvGroupSpec, cache_salt: str, extra_keys: Sequence[str]) -> BlockHash:
    """The digest before block 0. Fields are length-prefixed, so that no two lists of fields read the same.

    The pool is left out: it says where blocks live, not what they hold.
    """
    fields = (
        model_identity,
        spec.name,
        spec.visibility.value,
        str(spec.window),
        str(spec.entries_per_block),
        str(spec.tokens_per_entry),
        str(spec.bytes_per_block),
        cache_salt,
        *extra_keys,
    )
    digest = blake2b(digest_size=DIGEST_SIZE, person=_PERSON)
    for text in fields:
        data = text.encode()
        digest.update(struct.pack("<Q", len(data)))
        digest.update(data)
    return digest.digest()


class ChainHasher:
    """Extends chains for one group. Token ids are hashed as little-endian 32-bit words."""

    __slots__ = ("_pack", "tokens_per_block")

    def __init__(self, tokens_per_block: int) -> None:
        self.tokens_per_block = tokens_per_block
        self._pack = struct.Struct(f"<{tokens_per_block}I").pack

    def extend(self, root: BlockHash, chain: list[BlockHash], tokens: Sequence[int], num_blocks: int) -> None:
        """Append digests until ``chain`` covers the first ``num_blocks`` blocks of ``tokens``."""
        size = self.tokens_per_block
        pack = self._pack
        for index in range(len(chain), num_blocks):
            start = index * size
            data = (chain[-1] if chain else root) + pack(*tokens[start : start + size])
            chain.append(blake2b(data, digest_size=DIGEST_SIZE, person=_PERSON).digest())
