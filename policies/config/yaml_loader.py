"""Parse untrusted YAML text into plain mappings, lists and scalars.

Scalars are read by the YAML 1.2 core schema and not by PyYAML's 1.1 rules, so that a region `no`
stays text and `1e3` is a number. Tags, anchors and aliases are refused: a declaration doesn't need
them, and aliases can make a small file expand beyond the machine's memory.
"""

import re
from typing import Any

import yaml

TEXT_BYTES_MAX = 4 * 1024 * 1024
DEPTH_MAX = 32
"""libyaml composes by C recursion, which no Python limit stops; the deepest field needs 6."""

_STR_TAG = "tag:yaml.org,2002:str"
_CORE_SCHEMA = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.\d+|\d+(?:\.\d*)?)(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
}

# The stubs of PyYAML promise no C loader, and a build without libyaml has none.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class YamlTextError(ValueError):
    """The text is not an accepted YAML mapping; `field` is a dotted path, or empty."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class _Loader(_Base):  # type: ignore[misc]  # chosen at run time, see _Base
    """The safe loader with the resolvers of the core schema instead of YAML 1.1's."""


_Loader.yaml_implicit_resolvers = {}
for _name, (_pattern, _first) in _CORE_SCHEMA.items():
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_name}",
        re.compile(rf"(?:{_pattern})\Z", re.ASCII),
        [character.replace("\0", "") for character in _first],
    )


def load_yaml_mapping(text: str) -> dict[str, Any]:
    """Return the one mapping that `text` holds.

    Raises:
        YamlTextError: the text is longer than `TEXT_BYTES_MAX` in UTF-8, is not YAML, is not a
            mapping, nests deeper than `DEPTH_MAX`, has a duplicate key or one that is not text, or
            uses tags, anchors or aliases.
    """
    try:
        _refuse_long(text)
        _refuse_risky_events(text)
        return _construct(text)
    except YamlTextError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        if "nesting depth" in str(error.problem):
            # PyYAML 6.0.4 reads ahead of its events and has a limit of its own, of 1,000 levels.
            raise YamlTextError(f"{where}nested deeper than {DEPTH_MAX} levels") from None
        raise YamlTextError(f"{where}not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # A character that no encoding has, or a number of thousands of digits.
        raise YamlTextError(f"not valid YAML: {error}") from None


def _refuse_long(text: str) -> None:
    size_bytes = len(text.encode())
    if size_bytes > TEXT_BYTES_MAX:
        raise YamlTextError(f"has {size_bytes} bytes; at most {TEXT_BYTES_MAX} are read")


def _refuse_risky_events(text: str) -> None:
    """Refuse text by its events, which are parsed without recursion, before anything recurses."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        where = f"line {event.start_mark.line + 1}: " if event.start_mark else ""
        if getattr(event, "anchor", None) is not None:
            raise YamlTextError(f"{where}anchors and aliases are not read; write the value out")
        if (tag := getattr(event, "tag", None)) is not None:
            raise YamlTextError(f"{where}tag {tag[:40]!r} is not read; leave it out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEPTH_MAX:
            raise YamlTextError(f"{where}nested deeper than {DEPTH_MAX} levels")


def _construct(text: str) -> dict[str, Any]:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            raise YamlTextError("is empty; it must be a mapping of field: value")
        if not isinstance(node, yaml.MappingNode):
            raise YamlTextError(f"must be a mapping of field: value, not a {node.id}")
        _check_keys(node, "")
        mapping: dict[str, Any] = loader.construct_document(node)
        return mapping
    finally:
        loader.dispose()


def _check_keys(node: yaml.Node, path: str) -> None:
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _check_keys(item, f"{path}[{index}]")
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1 if key.start_mark else 0
        if key.tag != _STR_TAG:
            shown = key.value[:40] if isinstance(key, yaml.ScalarNode) else key.id
            raise YamlTextError(f"line {line}: key {shown} is not text; put it in quotes", path)
        field = f"{path}.{key.value}" if path else key.value
        if key.value in seen:
            raise YamlTextError(
                f"line {line}: key {key.value[:64]!r} is given twice, first on line"
                f" {seen[key.value]}; keep one",
                field[:200],
            )
        seen[key.value] = line
        _check_keys(value, field)
