"""Safetensors header: the tensor index of one file, read through a memory map. No torch, no tensor data.

Format: eight bytes with the header's length, a JSON header, then the data (the safetensors specification). It is read
here and not by the library so that opening costs no torch import and damage becomes a sentence.
"""

from __future__ import annotations

import json
import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.errors import ModelSourceError

_HEADER_LIMIT = 100_000_000  # the specification's own limit
ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SafetensorsEntry:
    """One entry of the index; ``offset`` counts from the start of the file."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # as the file writes it: "F32", "BF16", ...
    offset: int
    nbytes: int


class SafetensorsFile:
    """An open safetensors file. Raises ModelSourceError when it is missing, damaged or cut off."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # see GgufFile
        except (OSError, ValueError) as error:
            reason = "it is empty" if isinstance(error, ValueError) else (error.strerror or str(error)).lower()
            raise ModelSourceError(f"{path} cannot be read: {reason}.") from error
        length = int.from_bytes(self.data[:8], "little")
        if not 2 <= length <= min(_HEADER_LIMIT, len(self.data) - 8):
            raise self._damaged("its header does not fit into it")
        try:
            header = json.loads(self.data[8 : 8 + length])
            self.tensors = {
                name: self._entry(name, entry, 8 + length) for name, entry in header.items() if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._damaged("its header is not readable") from error

    def close(self) -> None:
        """Forget the map. Tensors that are views of it keep it open until they go."""
        try:
            self.data.close()
        except BufferError:
            return

    def _entry(self, name: str, entry: dict[str, Any], data_start: int) -> SafetensorsEntry:
        start, end = (int(offset) for offset in entry["data_offsets"])
        shape, dtype = tuple(int(size) for size in entry["shape"]), str(entry["dtype"])
        if not 0 <= start <= end or data_start + end > len(self.data):
            raise self._damaged(f"tensor {name} ends at byte {data_start + end:,}, but the file has {len(self.data):,}")
        if dtype in ITEM_BYTES and math.prod(shape) * ITEM_BYTES[dtype] != end - start:
            raise self._damaged(f"tensor {name} of shape {list(shape)} and type {dtype} does not fill its place")
        return SafetensorsEntry(name, shape, dtype, data_start + start, end - start)

    def _damaged(self, what: str) -> ModelSourceError:
        return ModelSourceError(f"{self.path} is damaged or only half there: {what}. Fetch the file again.")
