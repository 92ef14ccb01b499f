"""What can go wrong, and how it is said.

ThalwegError                      exit code 3: could not answer; as such, where code of the user's fails
├── InputError (ValueError)       exit code 2: what was handed in cannot be used
│   └── CheckpointError           a file of weights that cannot or must not be loaded
├── ModelError                    the model can be run but not measured
└── NumericalError                NaN, infinity, breakdown
"""

from __future__ import annotations

__all__ = [
    "FOREIGN_FAILURES",
    "CheckpointError",
    "InputError",
    "ModelError",
    "NumericalError",
    "ThalwegError",
    "printable",
]


class ThalwegError(Exception):
    """An error with its context: what was expected, what came, the likely cause, what to try.

    Args:
        problem: what is wrong, in one sentence without a full stop.
        expected: what would have been right.
        got: what came instead.
        cause: the likely cause.
        hint: what to try.
    """

    exit_code = 3

    def __init__(
        self,
        problem: str,
        *,
        expected: str | None = None,
        got: str | None = None,
        cause: str | None = None,
        hint: str | None = None,
    ) -> None:
        parts = [problem.rstrip(".")]
        for label, text in (("expected", expected), ("got", got), ("likely cause", cause), ("try", hint)):
            if text:
                parts.append(f"{label}: {text.rstrip('.')}")
        super().__init__("; ".join(parts))


class InputError(ThalwegError, ValueError):
    """What was handed in (an argument, a file, a batch) cannot be used."""

    exit_code = 2


class CheckpointError(InputError):
    """A checkpoint that is missing, damaged, of another model, or that would run code."""


class ModelError(ThalwegError):
    """The model runs but cannot be measured: not differentiable, not deterministic, nothing to train."""


class NumericalError(ThalwegError):
    """NaN or infinity where a number was needed."""


# What models, losses and optimisers of the user's raise when they are given what they cannot take.
FOREIGN_FAILURES = (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError)


def printable(text: str) -> str:
    """Replace control characters, which could steer a terminal: names in users' files are not trusted."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
