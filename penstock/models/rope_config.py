"""Rotary options of a checkpoint's configuration, in every spelling that families meet.

Since transformers 5 everything stands in ``rope_parameters``; before, the base was ``rope_theta`` and the rest
``rope_scaling`` with ``rope_type``, or ``type`` in the oldest files. Knows no family.
"""

from __future__ import annotations

from penstock.layers.rotary import ROPE_KINDS, RopeSpec
from penstock.loader.config_reader import ConfigReader


def read_rope(
    reader: ConfigReader,
    head_dim: int,
    *,
    default_base: float = 10000.0,
    layer_type: str = "",
    base_key: str = "rope_theta",
) -> RopeSpec:
    """The rotary options of ``reader``.

    ``layer_type`` picks an entry of ``rope_parameters`` in families whose layers differ ("sliding_attention");
    ``base_key`` is where older files of such a family have that layer type's base. Raises UnsupportedModelError for a
    scaling that is not implemented, by name, and for rotary dimensions that do not fill the head.
    """
    options = reader.section("rope_parameters")
    if options is not None and layer_type:
        options = options.section(layer_type) or ConfigReader({}, options.origin)
    if options is None:
        options = reader.section("rope_scaling") or ConfigReader({}, reader.origin)
        if base_key != "rope_theta":
            options = ConfigReader({}, reader.origin)  # scaling of older files is meant for the main base only
    kind_key = "rope_type" if options.has("rope_type") else "type"
    options.expect(kind_key, *ROPE_KINDS, "none")
    options.expect("partial_rotary_factor", 1, 1.0)
    reader.expect("partial_rotary_factor", 1, 1.0)
    kind = options.str(kind_key, default="default")
    base = options.float("rope_theta", default=reader.float(base_key, default=default_base))
    return _read_kind("default" if kind == "none" else kind, base, options, reader, head_dim)


def _read_kind(kind: str, base: float, options: ConfigReader, reader: ConfigReader, head_dim: int) -> RopeSpec:
    if kind == "default":
        return RopeSpec(base=base)
    if kind == "factors":
        factors = tuple(float(value) for value in options.list("factors"))
        if len(factors) != head_dim // 2:
            raise options.refuse("factors", f"there must be {head_dim // 2} of them, one for each rotary frequency")
        return RopeSpec(base=base, kind=kind, factors=factors)
    if kind == "linear":
        return RopeSpec(base=base, kind=kind, factor=options.float("factor"))
    original = options.int(
        "original_max_position_embeddings", default=reader.int("original_max_position_embeddings", default=0)
    )
    if original <= 0:
        original = reader.int("max_position_embeddings")
    if kind == "llama3":
        return RopeSpec(
            base=base,
            kind=kind,
            factor=options.float("factor"),
            original_max_position=original,
            low_freq_factor=options.float("low_freq_factor"),
            high_freq_factor=options.float("high_freq_factor"),
        )
    options.expect("mscale", 0)  # DeepSeek's variant of the temperature
    options.expect("mscale_all_dim", 0)
    return RopeSpec(
        base=base,
        kind=kind,
        factor=options.float("factor"),
        original_max_position=original,
        beta_fast=options.float("beta_fast", default=32.0),
        beta_slow=options.float("beta_slow", default=1.0),
        attention_factor=options.float("attention_factor") if options.has("attention_factor") else None,
        truncate=options.bool("truncate", default=True),
    )
