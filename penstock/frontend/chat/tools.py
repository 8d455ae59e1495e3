"""Tools of a chat request: checked, and what the request says about calling them. Knows no HTTP and no tags."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.errors import InvalidRequestError
from penstock.frontend.dialects.contract import Tool

MAX_TOOLS = 1024
AUTO, NONE, REQUIRED = "auto", "none", "required"
_NAME = re.compile(r"[\w.:/-]{1,256}")
_NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """What may be called. ``shown`` is what the chat template prints, as the request gave it. ``tools`` are those that
    a call may name: all that are shown, or those that the request names. No tools: no call is read.

    ``required`` asks for a call, ``single`` for at most one.
    """

    shown: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Tool, ...] = ()
    required: bool = False
    single: bool = False

    @property
    def is_constrained(self) -> bool:
        """Free text does not do: the request asks for a call, or for arguments that fit their schema."""
        return self.required or any(tool.strict for tool in self.tools)

    @property
    def schemas(self) -> dict[str, Mapping[str, Any]]:
        return {tool.name: tool.parameters for tool in self.tools}


NO_TOOLS = ToolUse()


def read_tool_use(
    tools: Sequence[Any] | None, tool_choice: str | Mapping[str, Any] | None, parallel_tool_calls: bool | None
) -> ToolUse:
    """Raises InvalidRequestError that names the field, such as ``tools[1].function.name``."""
    read = _read_tools(tools or ())
    choice = tool_choice if tool_choice is not None else AUTO if read else NONE
    if isinstance(choice, str):
        if choice not in (AUTO, NONE, REQUIRED):
            raise InvalidRequestError(
                f"tool_choice must be auto, none, required or name a function, got {choice[:64]!r}.",
                param="tool_choice",
            )
        if choice == NONE or not read:
            if choice == REQUIRED:
                raise InvalidRequestError("tool_choice required needs tools.", param="tool_choice")
            return NO_TOOLS
        wanted = read
        required, single = choice == REQUIRED, False
    elif choice.get("type") == "allowed_tools":
        wanted, required = _allowed_tools(choice.get("allowed_tools"), read)
        single = False
    else:
        wanted, required, single = (_named_tool(choice, read),), True, True
    return ToolUse(
        shown=tuple(_shown(tool) for tool in tools or ()),
        tools=wanted,
        required=required,
        single=single or parallel_tool_calls is False,
    )


def _read_tools(tools: Sequence[Any]) -> tuple[Tool, ...]:
    if len(tools) > MAX_TOOLS:
        raise InvalidRequestError(f"tools may hold at most {MAX_TOOLS} tools, got {len(tools)}.", param="tools")
    read = tuple(_read_tool(tool, f"tools[{position}]") for position, tool in enumerate(tools))
    names = [tool.name for tool in read]
    for position, name in enumerate(names):
        if name in names[:position]:
            raise InvalidRequestError(
                f"tools[{position}].function.name {name!r} comes twice; every tool needs a name of its own.",
                param=f"tools[{position}].function.name",
            )
    return read


def _read_tool(tool: Any, where: str) -> Tool:
    kind = tool.get("type", "function") if isinstance(tool, Mapping) else None
    if kind != "function":
        raise InvalidRequestError(f"{where}.type must be 'function', got {str(kind)[:64]!r}.", param=f"{where}.type")
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise InvalidRequestError(f"{where} must have a function with a name.", param=f"{where}.function")
    where += ".function"
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequestError(
            f"{where}.name must have 1 to 256 letters, digits, or any of _ . : / -, got {str(name)[:64]!r}.",
            param=f"{where}.name",
        )
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise InvalidRequestError(f"{where}.parameters must be a JSON schema, an object.", param=f"{where}.parameters")
    description, strict = function.get("description"), function.get("strict")
    if description is not None and not isinstance(description, str):
        raise InvalidRequestError(f"{where}.description must be a string.", param=f"{where}.description")
    if strict is not None and not isinstance(strict, bool):
        raise InvalidRequestError(f"{where}.strict must be true or false.", param=f"{where}.strict")
    return Tool(name=name, parameters=parameters or _NO_PARAMETERS, strict=bool(strict))


def _named_tool(choice: Mapping[str, Any], tools: Sequence[Tool]) -> Tool:
    function = choice.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if choice.get("type") != "function" or not isinstance(name, str):
        raise InvalidRequestError(
            "tool_choice must be auto, none, required, {'type': 'function', 'function': {'name': NAME}} or of type "
            "allowed_tools.",
            param="tool_choice",
        )
    return _find(name, tools)


def _allowed_tools(allowed: Any, tools: Sequence[Tool]) -> tuple[tuple[Tool, ...], bool]:
    """The tools that a call may name, and whether one must come."""
    mode = allowed.get("mode") if isinstance(allowed, Mapping) else None
    named = allowed.get("tools") if isinstance(allowed, Mapping) else None
    if mode not in (AUTO, REQUIRED) or not isinstance(named, Sequence) or isinstance(named, str) or not named:
        raise InvalidRequestError(
            "tool_choice of type allowed_tools needs a mode, auto or required, and tools, a list of functions.",
            param="tool_choice",
        )
    if len(named) > len(tools):
        raise InvalidRequestError(
            f"tool_choice of type allowed_tools names {len(named)} tools, but tools has {len(tools)}.",
            param="tool_choice",
        )
    return tuple(_named_tool(one if isinstance(one, Mapping) else {}, tools) for one in named), mode == REQUIRED


def _find(name: str, tools: Sequence[Tool]) -> Tool:
    found = next((tool for tool in tools if tool.name == name), None)
    if found is None:
        raise InvalidRequestError(
            f"tool_choice names {name[:64]!r}, but tools has no function of that name.", param="tool_choice"
        )
    return found


def _shown(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """As the request gave it, for templates that print whole tools; some read the type, which may be left out."""
    return tool if "type" in tool else {"type": "function", **tool}
