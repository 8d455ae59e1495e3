"""GGUF header: metadata and the tensor index of one file, read through a memory map. No torch, no tensor data.

It does not know what the metadata means; ``gguf_config`` does. Format: the GGUF specification of ggml, versions 2
and 3, little-endian.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.errors import ModelSourceError, UnsupportedModelError
from penstock.quantization.formats.ggml_types import GGML_TYPES

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4
_MAX_DEPTH = 8  # of arrays in arrays: far beyond what the format's tools write


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One entry of the index. ``shape`` has the row count first, as torch writes it (the file stores it reversed).

    ``offset`` counts from the start of the file. ``nbytes`` is 0 for a type whose block size is not known.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    nbytes: int


class GgufFile:
    """An open GGUF file. ``metadata`` maps keys to str, int, float, bool or lists; ``tensors`` keeps the order.

    Raises ModelSourceError, with a sentence, when the file is missing, no GGUF, damaged or cut off, and
    UnsupportedModelError for a version or byte order that is not read.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                # Copy-on-write, so that tensors can be views: torch wants writable memory. Nothing reaches the file.
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:  # an empty file cannot be mapped: ValueError
            reason = "it is empty" if isinstance(error, ValueError) else (error.strerror or str(error)).lower()
            raise ModelSourceError(f"{self.path} cannot be read: {reason}.") from error
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, GgufTensor] = {}
        try:
            self._read_header()
        except (struct.error, UnicodeDecodeError, IndexError, MemoryError, OverflowError) as error:
            raise self._damaged("its header ends early or makes no sense") from error

    def close(self) -> None:
        """Forget the map. Tensors that are views of it keep it open until they go."""
        try:
            self.data.close()
        except BufferError:
            return

    def _damaged(self, what: str) -> ModelSourceError:
        return ModelSourceError(f"{self.path} is damaged or only half there: {what}. Fetch the file again.")

    def _read_header(self) -> None:
        if self.data[:4] != b"GGUF":
            raise ModelSourceError(f"{self.path} is not a GGUF file: it does not begin with the letters GGUF.")
        version, num_tensors, num_keys = struct.unpack_from("<IQQ", self.data, 4)
        if version not in (2, 3):
            if version & 0xFFFF == 0:
                raise UnsupportedModelError(
                    f"{self.path} is a big-endian GGUF file; Penstock reads little-endian ones."
                )
            raise UnsupportedModelError(f"{self.path} has GGUF version {version}; Penstock reads versions 2 and 3.")
        cursor = _Cursor(self.data, 24)
        for _ in range(cursor.checked_count(num_keys, 13)):
            key = cursor.string()
            self.metadata[key] = cursor.value(cursor.scalar("<I"))
        entries = [self._read_entry(cursor) for _ in range(cursor.checked_count(num_tensors, 24))]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise self._damaged(f"its alignment is {alignment!r}")
        start = -(-cursor.position // alignment) * alignment
        for name, shape, type_number, offset in entries:
            self._add_tensor(name, shape, type_number, start + offset)

    @staticmethod
    def _read_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
        name = cursor.string()
        num_dimensions = cursor.scalar("<I")
        if num_dimensions > _MAX_DIMENSIONS:
            raise IndexError(f"{num_dimensions} dimensions")
        sizes = tuple(cursor.scalar("<Q") for _ in range(num_dimensions))
        return name, sizes[::-1], cursor.scalar("<I"), cursor.scalar("<Q")

    def _add_tensor(self, name: str, shape: tuple[int, ...], type_number: int, offset: int) -> None:
        if name in self.tensors:
            raise self._damaged(f"tensor {name} is listed twice")
        block = GGML_TYPES.get(type_number)
        if block is None:
            if offset > len(self.data):
                raise self._damaged(f"tensor {name} begins at byte {offset:,}, but the file has {len(self.data):,}")
            self.tensors[name] = GgufTensor(name, shape, f"type number {type_number}", offset, 0)
            return
        if shape and shape[-1] % block.columns:
            raise self._damaged(
                f"rows of tensor {name} have {shape[-1]} columns, no whole number of {block.name} blocks"
            )
        nbytes = math.prod(shape) // block.columns * block.nbytes
        if offset + nbytes > len(self.data):
            raise self._damaged(f"tensor {name} ends at byte {offset + nbytes:,}, but the file has {len(self.data):,}")
        self.tensors[name] = GgufTensor(name, shape, block.name, offset, nbytes)


class _Cursor:
    """Reads forward. Every read beyond the end raises struct.error or IndexError."""

    def __init__(self, data: mmap.mmap, position: int) -> None:
        self.data = data
        self.position = position

    def checked_count(self, count: int, least_bytes: int) -> int:
        """``count``, if so many things of at least so many bytes can still follow: a wild number must not allocate."""
        if count * least_bytes > len(self.data) - self.position:
            raise IndexError(f"{count} entries do not fit")
        return count

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(code, self.data, self.position)
        self.position += struct.calcsize(code)
        return value

    def string(self) -> str:
        length = self.checked_count(self.scalar("<Q"), 1)
        start = self.position
        self.position += length
        return self.data[start : self.position].decode("utf-8", errors="replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            if depth == _MAX_DEPTH:
                raise IndexError("arrays are nested too deep")
            return self._array(self.scalar("<I"), self.scalar("<Q"), depth + 1)
        if kind not in _SCALARS:
            raise IndexError(f"value type {kind}")
        return self.scalar(_SCALARS[kind])

    def _array(self, kind: int, count: int, depth: int) -> list[Any]:
        if kind == _STRING:
            return self._strings(self.checked_count(count, 8))
        if kind == _ARRAY:
            return [self.value(kind, depth) for _ in range(self.checked_count(count, 12))]
        if kind not in _SCALARS:
            raise IndexError(f"array type {kind}")
        code = _SCALARS[kind]
        size = struct.calcsize(code)
        values = struct.unpack_from(f"<{self.checked_count(count, size)}{code[1]}", self.data, self.position)
        self.position += count * size
        return list(values)

    def _strings(self, count: int) -> list[str]:
        """Vocabularies have hundreds of thousands of entries: one tight loop, without a call per field."""
        data, position, length_at = self.data, self.position, struct.Struct("<Q").unpack_from
        strings = []
        for _ in range(count):
            start = position + 8
            position = start + length_at(data, position)[0]
            strings.append(data[start:position].decode("utf-8", errors="replace"))
        if position > len(data):
            raise IndexError("a string runs beyond the end")
        self.position = position
        return strings
