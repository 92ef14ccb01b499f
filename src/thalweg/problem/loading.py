"""Users' problems by name: a built-in, ``file.py:function`` or ``package.module:function``."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from thalweg.errors import InputError, ThalwegError
from thalweg.problem.problem import Problem

__all__ = ["load_problem"]

_FORMS = "a built-in name (see `thalweg problems`), file.py:function or package.module:function"


def load_problem(specification: str, *, seed: int = 0) -> Problem:
    """Return the problem that ``specification`` names.

    Args:
        specification: a built-in name, or ``path/to/file.py:function`` or ``package.module:function``, where
            the function takes no arguments and returns a `Problem`. The code is the user's own and is run.
        seed: of a built-in.

    Raises:
        InputError: when there is no such thing, or it returns something else.
        ThalwegError: when its code fails.
    """
    place, colon, function_name = specification.rpartition(":")
    if not colon:
        if specification.endswith(".py") or Path(specification).is_file():
            raise InputError(
                f"{specification!r} names a file but no function in it",
                expected=_FORMS,
                hint=f"{specification}:problem",
            )
        return Problem.builtin(specification, seed)
    module = _from_file(Path(place)) if place.endswith(".py") else _from_package(place)
    function = getattr(module, function_name, None)
    if not callable(function):
        known = sorted(name for name, thing in vars(module).items() if _is_own_function(thing, module))
        close = difflib.get_close_matches(function_name, known, n=1)
        raise InputError(
            f"{place!r} has no function {function_name!r}",
            got="the functions " + ", ".join(known) if known else "a module without functions",
            hint=f"{place}:{close[0]}" if close else None,
        )
    made = _run(function, f"{function_name}()")
    if not isinstance(made, Problem):
        raise InputError(
            f"{specification} returned no problem",
            expected="a thalweg.Problem",
            got=f"an object of type {type(made).__name__}",
            cause="a missing return statement" if made is None else None,
            hint="return thalweg.Problem(model, loss, train, heldout)",
        )
    return made


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"there is no file {str(path)!r}", expected=_FORMS)
    path = path.resolve()
    # A name of its own, so that a user's random.py or torch.py hides nothing.
    name = f"_thalweg_user_{path.stem}_{hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{str(path)!r} cannot be imported", expected="a python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look a class's module up here
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.append(folder)  # so that the file finds its neighbours, now and when it imports late
    try:
        _run(lambda: spec.loader.exec_module(module), path.name)  # type: ignore[union-attr]
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _from_package(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError) as error:
        raise InputError(f"there is no module {name!r}", expected=_FORMS, cause=str(error)) from None
    if found is None:
        raise InputError(f"there is no module {name!r}", expected=_FORMS)
    module: ModuleType = _run(lambda: importlib.import_module(name), name)
    return module


def _run(code: Callable[[], Any], what: str) -> Any:
    """Run the user's code; its failure is told with the place, not with our traceback."""
    try:
        return code()
    except ThalwegError:
        raise
    except Exception as error:
        place = next(
            (
                f" at {Path(frame.filename).name}:{frame.lineno}"
                for frame in reversed(traceback.extract_tb(error.__traceback__))
                if not frame.filename.startswith("<frozen") and frame.filename != __file__
            ),
            "",
        )
        first = (str(error).strip().splitlines() or [""])[0]
        raise ThalwegError(f"{what} failed{place}: {type(error).__name__}: {first}") from error


def _is_own_function(thing: object, module: ModuleType) -> bool:
    return callable(thing) and getattr(thing, "__module__", None) == module.__name__
