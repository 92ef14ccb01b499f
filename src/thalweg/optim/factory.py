"""An optimiser by name: what it is, what it needs, and how to make one."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from thalweg.errors import InputError
from thalweg.optim.stop_rule import StopRule

if TYPE_CHECKING:
    import torch

__all__ = ["ClosureKind", "Factory", "load_class"]

ClosureKind = Literal["standard", "loss", "residual", "prediction"]


@dataclass(frozen=True)
class Factory:
    """Makes optimisers of one kind: ``factory(params, **settings)``.

    Attributes:
        name: what to ask for.
        summary: what it is, in a line.
        target: "module:Class", imported when the first one is made.
        source: where the method is described.
        closure: the kind of closure that its ``step`` takes (see `thalweg.optim.closures`).
        evaluates: whether ``step`` evaluates the closure itself, more than once as a rule, so that it cannot
            do without one.
        lr: the learning rate where none is given; None where the method finds its step length itself.
        whole: whether it is meant for all the examples at once; it then trains on them unless told otherwise.
        settings: what it is made with besides.
        stop: when a training with it ends; None where the number of epochs decides.
    """

    name: str
    summary: str
    target: str
    source: str
    closure: ClosureKind = "standard"
    evaluates: bool = False
    lr: float | None = None
    whole: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    stop: StopRule | None = None

    def __call__(self, params: Iterable[Any], **settings: Any) -> torch.optim.Optimizer:
        """Make the optimiser.

        Args:
            params: tensors, or dicts of parameter groups.
            settings: of its class; they take the place of the ones here.

        Raises:
            InputError: for settings that it does not take or that are out of range, or a class that cannot
                be imported.
        """
        if self.lr is None and "lr" in settings and not self._is_foreign:
            raise InputError(
                f"{self.name} takes no learning rate",
                got=f"lr={settings['lr']!r}",
                cause="it finds the length of its steps itself",
                hint="leave lr out",
            )
        from torch.optim import Optimizer

        make = self.load()
        own = {**self.settings, **({} if self.lr is None else {"lr": self.lr}), **settings}
        try:
            made = make(params, **own)
        except InputError:
            raise
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{self.name} cannot be made: {error}",
                expected="settings among " + ", ".join(_settings(make)),
                got=", ".join(f"{name}={value!r}" for name, value in own.items()) or "none",
            ) from error
        if not isinstance(made, Optimizer):
            raise InputError(
                f"{self.target} made no optimiser",
                expected="a torch.optim.Optimizer",
                got=f"an object of type {type(made).__name__}",
            )
        return made

    def load(self) -> Callable[..., Any]:
        """Import and return the class (or function) that makes it.

        Raises:
            InputError: when it cannot be imported.
        """
        return load_class(self.target)

    @property
    def _is_foreign(self) -> bool:
        return self.name == self.target


def load_class(target: str) -> Callable[..., Any]:
    """Import what "package.module:Class" names.

    Raises:
        InputError: when there is no such module, it fails, or holds nothing of that name that can be called.
    """
    from torch.optim import Optimizer

    from thalweg.problem.intact import random_state_kept

    place, _, name = target.partition(":")
    try:
        with random_state_kept():
            module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise InputError(
            f"the optimiser {target!r} cannot be loaded",
            got=f"no module named {error.name!r}",
            cause="the package is not installed here" if _is_part(error.name, place) else f"{place} needs it",
            hint=f"install the package that holds {error.name!r}, or check the spelling",
        ) from error
    except Exception as error:
        raise InputError(
            f"the optimiser {target!r} cannot be loaded",
            got=f"{type(error).__name__} while {place} was imported: {error}",
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        known = sorted(
            key
            for key, thing in vars(module).items()
            if inspect.isclass(thing) and issubclass(thing, Optimizer)
        )
        raise InputError(
            f"{place!r} has no optimiser {name!r}",
            got="the optimisers " + ", ".join(known[:12]) if known else "a module without optimisers",
        )
    made: Callable[..., Any] = found
    return made


def _is_part(missing: str | None, place: str) -> bool:
    return missing is not None and (place == missing or place.startswith(missing + "."))


def _settings(make: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(make).parameters if name != "params"]
