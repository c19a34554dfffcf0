"""Converts a request's `parameters` to the arguments of a handler and back, by the handler's annotations.

There are two forms. *Whole*: the handler has one argument whose type is a pydantic model, a dataclass or a TypedDict (or
which is named `params` or `parameters` and is a mapping): the object as a whole is validated into it. *Plain*: every
argument is a field of the object; arguments that are not sent keep the function's own defaults.

Always true: an unknown name is refused, and the error names the nearest known one (a model opts out with
`extra="ignore"` or `"allow"`); schemas are built once, at registration; what the client packs, the worker's `bind`
accepts, because `pack` runs `bind` before anything is sent.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NotRequired, Required, Union

import orjson
from pydantic import AliasChoices, AliasPath, BaseModel, RootModel, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation, PydanticUserError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticSerializationError
from typing_extensions import TypedDict, is_typeddict

from streamtask.errors import ConfigError, RequestRefused

FIELDS_NAMED_MAX = 20  # fields named in one refusal; for a list of 10,000 invalid items the first 20 say enough
_WHOLE_NAMES = ("params", "parameters")
_UNBUILDABLE = (PydanticSchemaGenerationError, PydanticUndefinedAnnotation, PydanticUserError, NameError, TypeError)

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class ParametersInvalid(Exception):
    """`parameters` do not fit the handler. fields: {path: what is wrong with it}."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        self.fields = dict(fields)
        super().__init__("; ".join(f"{name}: {text}" if name else text for name, text in self.fields.items()))


class Binding:
    """How one function takes its arguments. Built once at registration; raises ConfigError when it cannot work.

    name     task type, for error texts
    context  the class that marks the context argument (handlers.Context)
    names    further names that annotations may use (locals of the scope in which the function is defined)
    """

    def __init__(
        self, name: str, function: Callable[..., Any], context: type, names: Mapping[str, Any] | None = None
    ) -> None:
        self._name = name
        hints = _hints(name, function, names)
        arguments = list(inspect.signature(function).parameters.values())
        self.takes_context = bool(arguments) and _is_context(arguments[0], hints, context)
        if self.takes_context:
            if arguments[0].kind is inspect.Parameter.KEYWORD_ONLY:
                raise ConfigError(f"handler {name!r}: the context is passed by position. Put it before the '*'.")
            arguments.pop(0)
        if arguments:
            _refuse_method(name, function, arguments[0].name)
        for argument in arguments:
            _check_argument(name, argument, hints, context)
        self.result_type: Any = hints.get("return", Any)
        self._arguments = arguments
        self._whole = arguments[0] if len(arguments) == 1 and _is_whole(arguments[0], hints) else None
        self._no_arguments = not arguments
        if self._whole is not None:
            kind = hints[self._whole.name]
            self._known = _known_names(kind)
            self._adapter: TypeAdapter[Any] = _adapter(kind, f"handler {name!r}: argument {self._whole.name!r}")
        else:
            self._known = frozenset(argument.name for argument in arguments)
            self._adapter = _adapter(_fields_type(name, arguments, hints), f"handler {name!r}: its arguments")
        self._validate = self._adapter.validator.validate_python

    def bind(self, parameters: dict[str, Any] | None) -> Arguments:
        """The positional and keyword arguments of the function, without the context. Raises ParametersInvalid."""
        whole = self._whole
        if parameters is None:
            if whole is not None and whole.default is not inspect.Parameter.empty:
                return (), {}
            parameters = {}
        if self._known is not None and not parameters.keys() <= self._known:
            raise ParametersInvalid(self._unknown(parameters))
        if self._no_arguments:
            return (), {}
        try:
            value = self._validate(parameters)
        except ValidationError as error:
            value = self._validate_as_json(parameters, error)
        if whole is None:
            return (), value
        if whole.kind is inspect.Parameter.KEYWORD_ONLY:
            return (), {whole.name: value}
        return (value,), {}

    def pack(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """The `parameters` that make the worker call the function with these arguments.

        Raises RequestRefused (wrong values) and TypeError (arguments that the function does not take).
        """
        signature = inspect.Signature(self._arguments)
        given = signature.bind(*args, **kwargs).arguments
        if not given:
            return None
        value = next(iter(given.values())) if self._whole is not None else given
        if self._whole is not None and value is None:
            return None
        try:
            packed = self._adapter.dump_python(value, mode="json", by_alias=True, warnings="error")
            self.bind(packed)
        except ParametersInvalid as error:
            raise RequestRefused(f"{self._name}: {error}", fields=error.fields) from None
        except PydanticSerializationError as error:
            raise self._unwritable(value, error) from None
        return typing.cast("dict[str, Any]", packed)

    def _unwritable(self, value: Any, error: PydanticSerializationError) -> RequestRefused:
        """The arguments are of other types than annotated. Serialization only warns; validation names the argument and what
        it must be."""
        try:
            self._adapter.validate_python(value, strict=True)
        except ValidationError as refused:
            wrong = ParametersInvalid(_field_texts(refused))
            return RequestRefused(f"{self._name}: {wrong}", fields=wrong.fields)
        return RequestRefused(f"{self._name}: arguments cannot be written as JSON: {error}")

    @functools.cached_property
    def result_adapter(self) -> TypeAdapter[Any]:
        """Reads the handler's result. Raises ConfigError when the type of its return annotation cannot be read from JSON."""
        return _adapter(self.result_type, f"handler {self._name!r}: its return annotation")

    def read_result(self, value: Any) -> Any:
        """JSON as the handler's return type. Raises pydantic.ValidationError when it does not fit."""
        try:
            return self.result_adapter.validate_python(value)
        except ValidationError as refused:
            # As in _validate_as_json: a strict model reads the string "2026-01-01" as a date from JSON only.
            try:
                text = orjson.dumps(value)
            except TypeError:
                raise refused from None
            return self.result_adapter.validate_json(text)

    def _validate_as_json(self, parameters: dict[str, Any], refused: ValidationError) -> Any:
        # The values came from JSON. Strict models accept a string as a date, UUID or enum from JSON only, so JSON
        # decides; only invalid parameters and strict models pay for this path.
        try:
            text = orjson.dumps(parameters)
        except TypeError:  # nested deeper than orjson can write (254): the first error stands
            raise ParametersInvalid(_field_texts(refused)) from None
        try:
            return self._adapter.validate_json(text)
        except ValidationError as error:
            raise ParametersInvalid(_field_texts(error)) from None

    def _unknown(self, parameters: Mapping[str, Any]) -> dict[str, str]:
        assert self._known is not None
        out: dict[str, str] = {}
        for name in parameters:
            if name not in self._known and len(out) < FIELDS_NAMED_MAX:
                near = difflib.get_close_matches(name, self._known, n=1, cutoff=0.5)
                out[name] = f"unknown parameter; did you mean {near[0]!r}?" if near else "unknown parameter"
        return out


def fresh(parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """A copy of JSON values, so that the next attempt does not see what a handler changes in them."""
    if not parameters:
        return parameters
    try:
        copied: dict[str, Any] = orjson.loads(orjson.dumps(parameters))
    except (TypeError, ValueError):  # nested deeper than orjson can write (254), or numbers beyond 64 bits
        try:
            return copy.deepcopy(parameters)
        except RecursionError:  # nested deeper than Python can recurse: share the values rather than never run the task
            return parameters
    return copied


def _hints(name: str, function: Callable[..., Any], names: Mapping[str, Any] | None) -> dict[str, Any]:
    target: Any = function
    while isinstance(target, functools.partial):
        target = target.func
    target = inspect.unwrap(target)
    if not inspect.isroutine(target):
        target = target.__call__
    try:
        return typing.get_type_hints(target, localns=dict(names) if names else None, include_extras=True)
    except NameError as error:
        raise ConfigError(
            f"handler {name!r}: an annotation cannot be read: {error}. Import it outside `if TYPE_CHECKING:`."
        ) from None


def _is_context(argument: inspect.Parameter, hints: Mapping[str, Any], context: type) -> bool:
    hint = hints.get(argument.name)
    if hint is None:
        return argument.name == "ctx"
    return isinstance(hint, type) and issubclass(hint, context)


def _refuse_method(name: str, function: Callable[..., Any], first: str) -> None:
    """In the body of a class, a decorator sees a plain function whose first parameter is the object."""
    within = getattr(function, "__qualname__", "").rpartition(".")[0]
    if first in ("self", "cls") and within and not within.endswith("<locals>"):
        raise ConfigError(
            f"handler {name!r}: it is a method of {within}, and {first!r} would be one of its parameters. Use a function, or "
            f"register the method of an object: app.task({name!r})(an_object.{function.__name__})."
        )


def _check_argument(name: str, argument: inspect.Parameter, hints: Mapping[str, Any], context: type) -> None:
    if argument.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
        raise ConfigError(
            f"handler {name!r}: '*{argument.name}' does not name its parameters. Name them; if a decorator "
            "hides them, it needs functools.wraps."
        )
    if argument.kind is inspect.Parameter.POSITIONAL_ONLY:
        raise ConfigError(
            f"handler {name!r}: argument {argument.name!r} is positional-only. Remove the '/': parameters have names."
        )
    if _is_context(argument, hints, context):
        raise ConfigError(f"handler {name!r}: {argument.name!r} is a Context. It must be the first argument.")
    if isinstance(argument.default, FieldInfo):
        raise ConfigError(f"handler {name!r}: write {argument.name!r} as Annotated[type, Field(...)] = default.")


def _arms(hint: Any) -> list[Any]:
    """The classes in an annotation: Annotated and unions are taken apart, None is left out."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _arms(typing.get_args(hint)[0])
    if origin is Union or origin is types.UnionType:
        return [arm for part in typing.get_args(hint) if part is not type(None) for arm in _arms(part)]
    if origin is not None and not is_typeddict(hint):
        return [origin]
    return [hint]


def _is_model(kind: Any) -> bool:
    if is_typeddict(kind):
        return True
    return isinstance(kind, type) and (issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind))


def _is_mapping(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Mapping)


def _is_whole(argument: inspect.Parameter, hints: Mapping[str, Any]) -> bool:
    if argument.name not in hints:
        return False
    arms = _arms(hints[argument.name])
    if arms and all(_is_model(arm) for arm in arms):
        return True
    return argument.name in _WHOLE_NAMES and bool(arms) and all(_is_model(arm) or _is_mapping(arm) for arm in arms)


def _known_names(hint: Any) -> frozenset[str] | None:
    """Every name under which a field of these models may be sent; None: any name is accepted."""
    known: set[str] = set()
    for kind in _arms(hint):
        if _is_mapping(kind) and not is_typeddict(kind):
            return None
        if isinstance(kind, type) and issubclass(kind, RootModel):
            return None
        config = getattr(kind, "model_config", None) or getattr(kind, "__pydantic_config__", None) or {}
        if "extra" in config and config["extra"] != "forbid":  # the model itself allows unknown names
            return None
        if is_typeddict(kind):
            known |= kind.__required_keys__ | kind.__optional_keys__
            continue
        fields = kind.model_fields if issubclass(kind, BaseModel) else getattr(kind, "__pydantic_fields__", None)
        if fields is None:
            known |= {field.name for field in dataclasses.fields(kind) if field.init}
            continue
        for name, field in fields.items():
            known |= {name, *_aliases(field)}
    return frozenset(known)


def _aliases(field: FieldInfo) -> Iterable[str]:
    if field.alias is not None:
        yield field.alias
    ways = field.validation_alias
    for way in ways.choices if isinstance(ways, AliasChoices) else [ways]:
        if isinstance(way, AliasPath):
            yield str(way.path[0])
        elif way is not None:
            yield way


def _fields_type(name: str, arguments: list[inspect.Parameter], hints: Mapping[str, Any]) -> Any:
    """A TypedDict with one key per argument. It is a dict and not a model because then no argument name is reserved, and
    absent keys stay absent, so that the function's own defaults apply."""
    fields: dict[str, Any] = {}
    for argument in arguments:
        hint = hints.get(argument.name, Any)
        fields[argument.name] = Required[hint] if argument.default is inspect.Parameter.empty else NotRequired[hint]
    return TypedDict(f"{name}_parameters", fields)  # type: ignore[operator]


def _adapter(kind: Any, what: str) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(kind)
    except _UNBUILDABLE as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(f"{what} cannot be read from JSON: {first}") from None


def _field_texts(error: ValidationError) -> dict[str, str]:
    out: dict[str, str] = {}
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        if len(out) >= FIELDS_NAMED_MAX:
            out["..."] = f"and {error.error_count() - FIELDS_NAMED_MAX} more"
            break
        out.setdefault(".".join(map(str, problem["loc"])), problem["msg"])
    return out
