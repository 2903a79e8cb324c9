"""class_path and init_args to objects, with errors that name the key, not the traceback."""

import difflib
import importlib
import inspect
import traceback
from typing import Any

from launcher.errors import UsageError


class CannotInstantiate(UsageError):
    """A class_path or init_args of the spec does not fit the code it names."""


def instantiate(node: Any, key: str, **more: Any) -> Any:
    """Build what a spec describes: mappings with `class_path` become objects, however deep; the rest stays.

    Args:
        node: a part of the resolved spec.
        key: its dotted path, for errors.
        more: arguments added where the class accepts them and the spec gives none.

    Raises:
        CannotInstantiate: with the key, what is wrong and the nearest name.
    """
    if isinstance(node, list):
        return [instantiate(item, f"{key}.{index}", **more) for index, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    if "class_path" not in node or not node.keys() <= {"class_path", "init_args"}:
        return {name: instantiate(value, f"{key}.{name}") for name, value in node.items()}
    cls = _import(node["class_path"], f"{key}.class_path")
    given = node.get("init_args", {})
    accepted = _parameters(cls)
    added = {name: value for name, value in more.items() if name in accepted and name not in given}
    _check_arguments(cls, accepted, given, added, f"{key}.init_args")
    arguments = {name: instantiate(value, f"{key}.init_args.{name}") for name, value in given.items()}
    try:
        return cls(**added, **arguments)
    except Exception as error:
        raise CannotInstantiate(f"{key}: {node['class_path']} could not be made: {_reason(error)}") from error


def _import(class_path: str, key: str) -> Any:
    module_name, _, name = class_path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(f"{missing}."):
            hint = "looked in the spec's folder, its project's and the current one, and among installed packages"
        else:
            hint = f"{module_name} imports it ({_where(error)})"
        raise CannotInstantiate(f"{key}: no module named '{missing}'; {hint}") from error
    except Exception as error:
        raise CannotInstantiate(f"{key}: {module_name} cannot be imported: {_reason(error)}") from error
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, dir(module), n=1)
        raise CannotInstantiate(
            f"{key}: module {module_name} has no '{name}'" + (f"; did you mean '{near[0]}'?" if near else "")
        )
    return getattr(module, name)


def _parameters(cls: Any) -> dict[str, inspect.Parameter]:
    """Keyword parameters of the constructor. Empty where Python cannot tell."""
    try:
        found = inspect.signature(cls).parameters
    except (TypeError, ValueError):
        return {}
    return {name: one for name, one in found.items() if one.kind != inspect.Parameter.POSITIONAL_ONLY}


def _check_arguments(
    cls: Any,
    parameters: dict[str, inspect.Parameter],
    given: dict[str, Any],
    added: dict[str, Any],
    key: str,
) -> None:
    if not parameters and given and inspect.isclass(cls) and cls.__init__ is not object.__init__:
        return  # a constructor written in C: let it speak for itself
    open_ended = any(one.kind == inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    for name in given:
        if name not in parameters and not open_ended:
            near = difflib.get_close_matches(name, parameters, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it takes {', '.join(parameters) or 'none'}"
            raise CannotInstantiate(f"{key}.{name}: {cls.__qualname__} has no argument '{name}'; {hint}")
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    for name, one in parameters.items():
        if one.default is one.empty and one.kind in kinds and name not in {**given, **added}:
            raise CannotInstantiate(f"{key}: {cls.__qualname__} needs the argument '{name}'")


def _reason(error: BaseException) -> str:
    """What went wrong and where in the user's code."""
    text = error.msg if isinstance(error, SyntaxError) else error
    return f"{type(error).__name__}: {text} ({_where(error)})"


def _where(error: BaseException) -> str:
    """File and line of the innermost frame that is no import machinery; of a syntax error, its own."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    others = [frame for frame in frames if not _imports(frame.filename)]
    return f"{others[-1].filename}:{others[-1].lineno}" if others else "no frame"


def _imports(filename: str) -> bool:
    return filename.startswith("<frozen") or filename == importlib.__file__
