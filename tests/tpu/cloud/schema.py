"""Which calls there are and what they may hold, by api.json: Google's discovery document of the Cloud TPU API v2
without its descriptions (https://tpu.googleapis.com/$discovery/rest?version=v2, Apache License 2.0). A newer one can
take its place as it is.

Like Google's front end, and unlike most fakes, this refuses whatever the API does not have.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tpu.cloud.status import ApiError, Json, invalid

_STANDARD = ("$alt", "alt", "fields", "key", "prettyPrint", "quotaUser")
"""Query parameters that every call may have, and that change nothing here."""


@dataclass(frozen=True)
class Method:
    id: str
    """As "nodes.create"."""
    verb: str
    path: re.Pattern[str]
    query: Mapping[str, str]
    """Its own query parameters and their types."""
    request: str | None
    """The schema of its body; None where it has none."""

    @property
    def at(self) -> str:
        """Where the body stands in the request message, as errors name it."""
        return {"Node": "node", "QueuedResource": "queued_resource"}.get(self.request or "", "")


@dataclass(frozen=True)
class Call:
    """A request that is well-formed."""

    method: Method
    project: str
    location: str
    name: str
    """The last part of the path, as "my-node"; empty in a list."""
    query: Mapping[str, Any]
    body: Json

    @property
    def parent(self) -> str:
        return f"projects/{self.project}/locations/{self.location}"


@cache
def document() -> Json:
    read: Json = json.loads(Path(__file__).with_name("api.json").read_text())
    return read


@cache
def methods() -> tuple[Method, ...]:
    return tuple(_methods(document()))


def _methods(resource: Json) -> Iterator[Method]:
    for described in resource.get("methods", {}).values():
        pattern = re.sub(r"\\{(\w+)Id\\}", r"(?P<\1>[^/:]+)", re.escape("/" + described["flatPath"]))
        yield Method(
            described["id"].removeprefix("tpu.projects.locations."),
            described["httpMethod"],
            re.compile(pattern),
            {name: one["type"] for name, one in described["parameters"].items() if one["location"] == "query"},
            described.get("request", {}).get("$ref"),
        )
    for inner in resource.get("resources", {}).values():
        yield from _methods(inner)


def states(schema: str) -> tuple[str, ...]:
    """All that "Node" or "QueuedResourceState" may be in."""
    found: list[str] = document()["schemas"][schema]["properties"]["state"]["enum"]
    return tuple(found)


def call(verb: str, path: str, query: Mapping[str, str], body: object) -> Call:
    """Raises ApiError where the API has no such call, or not with these parameters and fields."""
    if (found := _find(verb, path)) is None:
        raise ApiError("NOT_FOUND", f"The requested URL {path} was not found on this server.")
    method, parts = found
    project, location = parts.pop("projects"), parts.pop("locations", "-")
    return Call(method, project, location, next(iter(parts.values()), ""), _query(method, query), _body(method, body))


def method_id(verb: str, path: str) -> str:
    """As "nodes.create"; empty where the API has no such call."""
    found = _find(verb, path)
    return found[0].id if found else ""


def _find(verb: str, path: str) -> tuple[Method, dict[str, str]] | None:
    for method in methods():
        if method.verb == verb and (found := method.path.fullmatch(path)):
            return method, found.groupdict()
    return None


def _query(method: Method, given: Mapping[str, str]) -> Json:
    read: Json = {}
    for name, value in given.items():
        if name in method.query:
            read[name] = _parameter(name, method.query[name], value)
        elif name not in _STANDARD:
            raise invalid(
                "",
                f'Invalid JSON payload received. Unknown name "{name}": Cannot bind query parameter. '
                f"Field '{name}' could not be found in request message.",
            )
    return read


def _parameter(name: str, kind: str, value: str) -> object:
    if kind == "boolean":
        if value.lower() not in ("true", "false"):  # gcloud writes True
            raise invalid(_snake(name), f"Invalid value at '{_snake(name)}' (TYPE_BOOL), \"{value}\"")
        return value.lower() == "true"
    if kind == "integer":
        if not re.fullmatch(r"-?\d+", value):
            raise invalid(_snake(name), f"Invalid value at '{_snake(name)}' (TYPE_INT32), \"{value}\"")
        return int(value)
    return value


def _body(method: Method, given: object) -> Json:
    if method.request is None:
        if given:
            raise invalid("", "Request bodies must be empty for this method.")
        return {}
    return _message(method.at, method.request, given if given is not None else {})


def _message(at: str, schema: str, given: object) -> Json:
    """Checked, without what is null: that is not set."""
    if not isinstance(given, dict):
        raise _wrong(at, f"type.googleapis.com/google.cloud.tpu.v2.{schema}", given)
    known = document()["schemas"][schema].get("properties", {})
    for name in given:
        if name not in known:
            where = f" at '{at}'" if at else ""
            raise invalid(at, f'Invalid JSON payload received. Unknown name "{name}"{where}: Cannot find field.')
    return {
        name: _value(f"{at}.{_snake(name)}".lstrip("."), known[name], value)
        for name, value in given.items()
        if value is not None
    }


def _value(at: str, described: Json, given: object) -> object:
    if "$ref" in described:
        return _message(at, described["$ref"], given)
    kind = described["type"]
    if kind == "array":
        if not isinstance(given, list):
            raise _wrong(at, "a list", given)
        return [_value(f"{at}[{number}]", described["items"], one) for number, one in enumerate(given)]
    if kind == "object":
        if not isinstance(given, dict):
            raise _wrong(at, "a map", given)
        return {key: _value(f"{at}[{key}]", described["additionalProperties"], one) for key, one in given.items()}
    types = {"string": str, "boolean": bool, "integer": int, "any": object}
    if not isinstance(given, types[kind]) or (kind == "integer" and isinstance(given, bool)):
        raise _wrong(at, f"TYPE_{kind.upper()}", given)
    if "enum" in described and given not in described["enum"]:
        raise _wrong(at, "one of " + ", ".join(described["enum"]), given)
    return given


def _wrong(at: str, wanted: str, given: object) -> ApiError:
    return invalid(at, f"Invalid value at '{at}' ({wanted}), {json.dumps(given)}")


def _snake(name: str) -> str:
    return re.sub(r"[A-Z]", lambda letter: "_" + letter[0].lower(), name)
