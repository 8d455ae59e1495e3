"""Every environment variable of Penstock: declared once with type, default and meaning, and read only here.

It does not know who asks. Values are read at the moment of the call, so that a test or a parent process can set them;
a malformed value is a ConfigError sentence, never ignored.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.errors import ConfigError

PREFIX = "PENSTOCK_"
_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


@dataclass(frozen=True, slots=True)
class EnvVariable:
    """One variable. ``kind`` is "path", "bool", "str" or "list" (comma-separated); ``default`` is written as a user
    would write it, and "" means unset."""

    name: str
    kind: str
    default: str
    meaning: str
    choices: tuple[str, ...] = ()

    def parse(self, text: str) -> Any:
        """The typed value of ``text``. Raises ConfigError when it is malformed."""
        match self.kind:
            case "bool":
                return self._bool(text)
            case "path":
                return Path(text).expanduser()
            case "list":
                return self._list(text)
        if self.choices and text.lower() not in self.choices:
            raise ConfigError(f"{self.name} is {text!r}, but it must be one of {', '.join(self.choices)}.")
        return text.lower() if self.choices else text

    def _bool(self, text: str) -> bool:
        word = text.strip().lower()
        if word not in _TRUE + _FALSE:
            raise ConfigError(f"{self.name} is {text!r}, but it must be 1 or 0 (true/false, yes/no, on/off work too).")
        return word in _TRUE

    def _list(self, text: str) -> tuple[str, ...]:
        parts = tuple(part.strip() for part in text.split(",") if part.strip())
        if text and not parts:  # a key that is only a comma must not mean "no key needed"
            raise ConfigError(f"{self.name} is {text!r}, which holds no value. Unset it or give one.")
        return parts


VARIABLES: tuple[EnvVariable, ...] = (
    EnvVariable(
        "PENSTOCK_CACHE",
        "path",
        "~/.cache/penstock",
        "Directory for fetched bundles, compiled kernels and measured rates of devices. Without it, "
        "XDG_CACHE_HOME/penstock is used when XDG_CACHE_HOME is set.",
    ),
    EnvVariable(
        "PENSTOCK_API_KEY", "list", "", "Keys that clients of `penstock serve` must present, separated by commas."
    ),
    EnvVariable(
        "PENSTOCK_LOG_LEVEL",
        "str",
        "info",
        "Least severe log messages that are written to stderr.",
        ("debug", "info", "warning", "error"),
    ),
    EnvVariable("PENSTOCK_DEBUG", "bool", "0", "Show stack traces of user errors too, like `penstock --debug`."),
)

# Read by libraries or by the system; listed so that the reference page is complete.
FOREIGN: tuple[tuple[str, str], ...] = (
    ("HF_HOME", "Where models fetched from the hub are kept."),
    ("HF_HUB_OFFLINE", "1 never asks the network: models must already be in HF_HOME."),
    ("HF_TOKEN", "Token for hub models that need one."),
    ("XDG_CACHE_HOME", "Parent of the cache directory when PENSTOCK_CACHE is not set."),
    ("CUDA_VISIBLE_DEVICES", "Accelerators that the probe may see."),
    (
        "CUDA_DEVICE_ORDER",
        "How CUDA counts devices. PCI_BUS_ID unless it is set, as the probe counts; any other order that begins with "
        "another device is refused.",
    ),
    (
        "TRITON_CACHE_DIR",
        "Where Triton keeps compiled kernels. The directory triton of the cache directory unless it is set.",
    ),
    ("CUDA_HOME", "Where the CUDA compiler is, for libraries that compile when they are used, as FlashInfer does."),
    ("FLASHINFER_WORKSPACE_BASE", "Parent of the directory where FlashInfer keeps its compiled kernels."),
    ("NO_COLOR", "No colours in terminal output."),
)

_BY_NAME = {variable.name: variable for variable in VARIABLES}


def read(name: str, environ: Mapping[str, str] | None = None) -> Any:
    """The typed value of a declared variable; its default when unset or empty. Raises ConfigError when malformed."""
    variable = _BY_NAME[name]
    text = (os.environ if environ is None else environ).get(name, "")
    return variable.parse(text or variable.default)


def is_set(name: str, environ: Mapping[str, str] | None = None) -> bool:
    """Whether a declared variable has a value of its own. An empty one counts as unset."""
    assert name in _BY_NAME, f"{name} is not declared"
    return bool((os.environ if environ is None else environ).get(name))


def cache_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Directory for fetched bundles and compiled kernels; not created here."""
    source = os.environ if environ is None else environ
    if not is_set("PENSTOCK_CACHE", source) and source.get("XDG_CACHE_HOME"):
        return Path(source["XDG_CACHE_HOME"]) / "penstock"
    path: Path = read("PENSTOCK_CACHE", source)
    return path


def log_level(environ: Mapping[str, str] | None = None) -> str:
    level: str = read("PENSTOCK_LOG_LEVEL", environ)
    return level


def debug(environ: Mapping[str, str] | None = None) -> bool:
    value: bool = read("PENSTOCK_DEBUG", environ)
    return value


def set_for_children(name: str, value: str) -> None:
    """Set a declared variable for this process and for those that it starts. Raises ConfigError when malformed."""
    _BY_NAME[name].parse(value)
    os.environ[name] = value


def check_environment(environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Read every declared variable; raise ConfigError for the first malformed one.

    Returns a sentence for each undeclared name that looks like a misspelt one of ours. Other undeclared names with
    our prefix are left alone: orchestrators invent such names (PENSTOCK_SERVICE_HOST) for a service called penstock.
    """
    source = os.environ if environ is None else environ
    for variable in VARIABLES:
        read(variable.name, source)
    remarks = []
    for name in sorted(source):
        if name.startswith(PREFIX) and name not in _BY_NAME:
            close = difflib.get_close_matches(name, _BY_NAME, n=1, cutoff=0.85)
            if close:
                remarks.append(f"The environment variable {name} is not known and has no effect; meant {close[0]}?")
    return tuple(remarks)
