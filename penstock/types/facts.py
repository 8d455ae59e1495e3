"""What is, not what is wanted: facts about a model's files, about a machine, and about a ready engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from penstock.types.decision import Decision

DENSE_SCHEMES = ("f32", "f16", "bf16")  # canonical schemes of plain values
LEAST_CAPABILITY = (8, 0)  # of CUDA devices: the first with bfloat16 products and asynchronous copies


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Read from a model's files without loading weights.

    ``identity`` is a stable digest of the model's content description (config, tensor index, sizes): part of every
    KV block hash. ``weight_schemes`` maps a canonical scheme name to the bytes stored in it.
    """

    name: str
    source: str  # where the files are
    format: str  # "safetensors", "gguf", "dummy", "mock"
    architecture: str  # as the checkpoint says
    family: str  # name of the module in models/, "" for the mock
    identity: str
    num_parameters: int
    weight_bytes: int
    weight_schemes: dict[str, int] = field(default_factory=dict)
    num_layers: int = 0
    hidden_size: int = 0
    num_heads: int = 0
    num_kv_heads: int = 0
    head_dim: int = 0
    vocab_size: int = 0
    max_position: int = 0  # context length that the checkpoint declares
    dtype: str = "float32"  # that the checkpoint declares, or the nearest to its quantized form

    @property
    def quantized_schemes(self) -> tuple[str, ...]:
        """Those of ``weight_schemes`` that are not plain values."""
        return tuple(scheme for scheme in self.weight_schemes if scheme not in DENSE_SCHEMES)


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceleratorFacts:
    """One device. 0 and "" stand for what is not known. ``memory_bytes_per_s`` is the data sheet's, or clock times
    width; ``copied_bytes_per_s`` was measured on the device, bytes read and written together."""

    name: str
    kind: str  # "cuda", "rocm"
    capability: str  # "9.0", "gfx942"
    memory_bytes: int
    memory_free_bytes: int = 0  # at the moment of the probe
    memory_bytes_per_s: int = 0
    copied_bytes_per_s: int = 0
    num_sms: int = 0  # multiprocessors or compute units
    l2_bytes: int = 0  # that one multiprocessor can reach: of one die where dies have a cache each
    driver: str = ""
    uuid: str = ""

    @property
    def compute_capability(self) -> tuple[int, ...]:
        """(9, 0) of "9.0"; empty where it is none of CUDA's, as "gfx942" is."""
        parts = self.capability.split(".")
        return tuple(map(int, parts)) if all(part.isdigit() for part in parts) else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformFacts:
    """One machine as seen by ``platforms.probe``, or a recorded one. Sizes in bytes."""

    name: str  # "cpu", "cuda"
    machine: str  # "x86_64", "aarch64"
    cpu_model: str = ""
    num_cores: int = 1  # that this process may use
    instruction_sets: tuple[str, ...] = ()  # "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", ...
    memory_bytes: int = 0  # limit of this process: the smaller of physical memory and the cgroup's limit
    memory_available_bytes: int = 0
    accelerators: tuple[AcceleratorFacts, ...] = ()
    libraries: dict[str, str] = field(default_factory=dict)  # distribution name -> version, only installed ones
    python: str = ""
    cuda_compiler: str = ""  # path of nvcc, which libraries that compile when they are used need; empty: none was found
    extension_missing: str = ""  # why penstock._native cannot be used; empty: it can

    @property
    def device(self) -> AcceleratorFacts | None:
        """The accelerator that is computed on: the first one, unless the platform is the CPU."""
        return self.accelerators[0] if self.name != "cpu" and self.accelerators else None

    @property
    def compute_memory_bytes(self) -> int:
        """Of the memory that weights and KV live in: the accelerator's, or this process's on a CPU."""
        return self.device.memory_bytes if self.device else self.memory_bytes

    @property
    def compute_memory_free_bytes(self) -> int:
        """What of ``compute_memory_bytes`` was free; all of it where that is not known."""
        if self.device:
            return self.device.memory_free_bytes or self.device.memory_bytes
        return self.memory_available_bytes or self.memory_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What an engine is, fixed once it is ready. ``block_tokens`` has one entry per KV group, ``num_blocks`` one
    per pool."""

    model: ModelFacts
    platform: PlatformFacts
    max_model_len: int
    max_num_seqs: int
    num_blocks: tuple[int, ...]
    block_tokens: tuple[int, ...]
    decisions: tuple[Decision, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)  # resolved configuration, for the debug route
