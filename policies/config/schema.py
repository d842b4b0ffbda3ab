"""Parse YAML text into a validated, frozen model; fleet and policy are read only this way."""

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, NamedTuple, Self, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from policies.config.yaml_loader import YamlTextError, load_yaml_mapping

M = TypeVar("M", bound=BaseModel)

SHOWN_CHARACTERS_MAX = 60
PROBLEMS_MAX = 50
"""A file of the wrong kind is wrong everywhere; the first problems say so."""

_MESSAGES = {
    "missing": "required field is missing",
    "union_tag_not_found": "required field {discriminator} is missing",
    "union_tag_invalid": "unknown {discriminator}; use one of {expected_tags}",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "tuple_type": "must be a list",
    "too_short": "must hold at least {min_length}",
    "greater_than_equal": "must be at least {ge:g}",
    "greater_than": "must be greater than {gt:g}",
    "less_than_equal": "must be at most {le:g}",
    "string_pattern_mismatch": "must match {pattern}",
}
"""Shorter than pydantic's own, by error type; the fields are those of its error context."""

_CONTAINERS = (dict, list, tuple)
_SECRET_FIELD = re.compile(r"(?:key|secret|password|token|credentials?)(?:_env)?$", re.IGNORECASE)
_URL_CREDENTIALS = re.compile(r"://[^/@\s]*@")


class Declaration(BaseModel):
    """Base of everything that users declare: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Versioned(Declaration):
    """A declaration that evidence names by its version."""

    _published: str | None = PrivateAttr(default=None)

    @cached_property
    def version(self) -> str:
        """Changes with any declared value, see `digest`."""
        return self._published or digest(self)

    def published_as(self, version: str) -> Self:
        """Return this declaration under the version that it was published with.

        A declaration of an older Shunter has other fields and another digest but keeps its version.
        """
        named = self.model_copy()
        named._published = version  # noqa: SLF001 - of another of our own
        named.__dict__.pop("version", None)
        return named


class Problem(NamedTuple):
    """One thing wrong with a declaration.

    `field` is a dotted path such as `pools.premium-eu.serves[0].precision`, empty if the problem
    is the whole file's. `value` is the value there, cut short and without secrets, empty if there
    was none.
    """

    file: str
    field: str
    value: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in self if part)


class DeclarationError(ValueError):
    """A declaration can't be used. `problems` lists all problems, the message one line each."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


def parse_declaration(text: str, file: str, model: type[M]) -> M:
    """Read `text` as a `model`; `file` is only used in errors.

    Raises:
        DeclarationError: the text is not a YAML mapping within limits (see `load_yaml_mapping`)
            or not a valid `model`.
    """
    return validate_mapping(load_mapping(text, file), file, model)


def load_mapping(text: str, file: str) -> dict[str, Any]:
    """Return the mapping that `text` holds, its fields not yet validated.

    Raises:
        DeclarationError: see `load_yaml_mapping`.
    """
    try:
        return load_yaml_mapping(text)
    except YamlTextError as error:
        raise DeclarationError([Problem(file, error.field, "", error.message)]) from None


def validate_mapping(mapping: Mapping[str, Any], file: str, model: type[M]) -> M:
    """Return a `model` of `mapping`; `file` is only used in errors.

    Raises:
        DeclarationError: lists every problem found, at most `PROBLEMS_MAX`.
    """
    try:
        return model.model_validate(mapping)
    except ValidationError as error:
        details = [e for e in error.errors(include_url=False) if not _is_consequence(e)]
        problems = [_problem(each, file, mapping, model) for each in details[:PROBLEMS_MAX]]
        # Not `from error`: pydantic's own message prints values, secrets among them.
        raise DeclarationError(problems) from None


def cross_field_error(
    title: str, found: Iterable[tuple[tuple[str | int, ...], Any, str]]
) -> ValidationError:
    """Return the error for fields that are each valid but contradict one another.

    Each of `found` is (path below the model, value there, message). Pydantic keeps the paths, so
    these problems look like those of single fields.
    """
    return ValidationError.from_exception_data(
        title,
        [
            InitErrorDetails(
                type=PydanticCustomError("cross_field", "{message}", {"message": message}),
                loc=path,
                input=value,
            )
            for path, value, message in found
        ],
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message on an unknown name: the nearest name, else all."""
    names = sorted(known)
    if near := difflib.get_close_matches(name, names, n=1, cutoff=0.6):
        return f"did you mean {near[0]}?"
    if not names:
        return "none is declared"
    return "use one of " + _cut(", ".join(names), 400)


def digest(model: BaseModel) -> str:
    """Return the version of a declaration: 12 hex digits of SHA-256 over its canonical JSON.

    It is the same on every machine, for any order of mapping keys in the file, and whether a
    default is written out or left out.
    """
    return digest_of(model.model_dump(mode="json", by_alias=True))


def digest_of_text(text: str) -> str:
    """Return the version of a declaration from its JSON, even if its fields are unknown here.

    Raises:
        ValueError: the text is not JSON.
    """
    return digest_of(json.loads(text))


def digest_of(dumped: Any) -> str:
    """Return 12 hex digits of SHA-256 over the canonical JSON of a parsed declaration."""
    canonical = json.dumps(dumped, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _problem(
    details: ErrorDetails, file: str, mapping: Mapping[str, Any], model: type[BaseModel]
) -> Problem:
    path = _path_in(mapping, details["loc"])
    field = _dotted(path)
    nothing = details["type"] in {"missing", "union_tag_not_found"} or details["input"] is None
    value = "" if nothing else _shown(details["input"], str(path[-1]) if path else "")
    return Problem(file, field, value, _message(details, path, model))


def _is_consequence(details: ErrorDetails) -> bool:
    """Return whether a list is too short for what is wrong within it, which is told by itself."""
    if details["type"] != "too_short":
        return False
    least: int = details["ctx"]["min_length"]
    return len(details["input"]) >= least


def _path_in(mapping: Mapping[str, Any], loc: tuple[str | int, ...]) -> list[str | int]:
    """Return `loc` without pydantic's additions: tags of unions and marks of mapping keys."""
    path: list[str | int] = []
    here: Any = mapping
    for index, part in enumerate(loc):
        added = index < len(loc) - 1 or part == "[key]"
        if added and not (isinstance(part, int) or (isinstance(here, Mapping) and part in here)):
            continue
        path.append(part)
        if isinstance(here, Mapping):
            here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
    return path


def _dotted(path: Sequence[str | int]) -> str:
    dotted = ""
    for part in path:
        if isinstance(part, int):
            dotted += f"[{part}]"
        else:
            dotted += f".{_cut(part, 64)}" if dotted else _cut(part, 64)
    return dotted


def _message(details: ErrorDetails, path: Sequence[str | int], model: type[BaseModel]) -> str:
    kind, context = details["type"], details.get("ctx", {})
    if kind == "extra_forbidden":
        return "unknown field; " + did_you_mean(str(path[-1]), _fields_at(model, path[:-1]))
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", str(context["expected"]))
        return "unknown; " + did_you_mean(str(details["input"]), known)
    if template := _MESSAGES.get(kind):
        return template.format(**context)
    return details["msg"].removeprefix("Value error, ").replace("Input should", "must")


def _fields_at(model: type[BaseModel], path: Sequence[str | int]) -> set[str]:
    """Return the names that a user may write in the mapping at `path`."""
    annotations: list[Any] = [model]
    for part in path:
        annotations = [found for each in annotations for found in _step(each, part)]
    models = [each for each in annotations if _is_model(each)]
    return {info.alias or name for each in models for name, info in each.model_fields.items()}


def _step(annotation: Any, part: str | int) -> Iterator[Any]:
    if _is_model(annotation):
        for name, info in annotation.model_fields.items():
            if part in (name, info.alias):
                yield from _members(info.annotation)
    elif get_origin(annotation) is not None:
        items = [each for each in get_args(annotation) if each is not Ellipsis]
        yield from _members(items[-1])


def _members(annotation: Any) -> Iterator[Any]:
    """Return `annotation` itself, or the members of an Annotated or a union."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif origin is None or origin in _CONTAINERS:
        yield annotation
    else:
        for each in get_args(annotation):
            yield from _members(each)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _shown(value: Any, field: str) -> str:
    """Return `value` for an error message: short, and never a possible secret.

    Only the keys of a mapping are shown: its values may be secrets.
    """
    if isinstance(value, Mapping):
        return _cut("{" + ", ".join(map(str, value)) + "}")
    if isinstance(value, (list, tuple)):
        return f"[{len(value)} item{'s' * (len(value) != 1)}]"
    if isinstance(value, str) and _SECRET_FIELD.search(field):
        return "(not shown)"
    if isinstance(value, str):
        return _cut(repr(_URL_CREDENTIALS.sub("://(not shown)@", value)))
    return _cut(str(value))


def _cut(text: str, characters_max: int = SHOWN_CHARACTERS_MAX) -> str:
    return text if len(text) <= characters_max else text[: characters_max - 1] + "…"
