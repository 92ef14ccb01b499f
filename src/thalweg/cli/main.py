"""The ``thalweg`` command: its verbs, its exit codes, its one-line errors."""

from __future__ import annotations

import difflib
import importlib
import os
import random
import sys
from typing import Any

import click

from thalweg.errors import ThalwegError, printable
from thalweg.version import __version__

__all__ = ["command", "main"]

# verb -> one line for `thalweg --help`; each verb lives in its own file, loaded when it is used, so that
# the help answers at once.
_VERBS = {
    "diagnose": "Say where a training stands: minimum, saddle, plateau, descending, bouncing …",
    "escape": "Leave a saddle, if held-out data confirm the way out; new weights go to a new file.",
    "spectrum": "Measure both ends of the Hessian's spectrum, its trace and density.",
    "sharpness": "Measure how sharp the loss is, and how near the steps are to their stability limit.",
    "landscape": "Draw the loss around a point or between two: lines, planes, paths, critical points.",
    "train": "Train a problem with any optimiser; the weights go to a new file.",
    "show": "Show what happened along a recorded training.",
    "compare": "Compare optimisers: same starts, batches and tuning, medians with intervals.",
    "batch-size": "Say what the batch size costs, buys and changes, and which one to take.",
    "complete": "Fill the blanks of a table of low rank, and say how well.",
    "kernel": "Fit, compute and compare the kernels of infinitely wide nets.",
    "problems": "List the built-in problems.",
    "doctor": "Show versions, devices and what is available.",
}
_INTERRUPTED = 130

# torch's threads spin while they wait for each other; beside other work that makes small models ten times
# slower. Spinning for a few microseconds only costs an idle machine 5 %. Must be said before torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _VERBS:
            return None
        found: click.Command = importlib.import_module(f"thalweg.cli.{name.replace('-', '_')}").command
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        close = difflib.get_close_matches(args[0], _VERBS, n=1)
        if args[0] not in _VERBS and close and not ctx.resilient_parsing:
            ctx.fail(f"there is no verb {args[0]!r}; did you mean {close[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_VERBS.items()))


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 answered, 1 answered and --fail-on holds, 2 wrong usage, 3 could not answer "
    "(or code of yours failed), 130 interrupted.",
)
@click.version_option(__version__, prog_name="thalweg")
def command() -> None:
    """Where on the loss landscape does my training stand, how sure is that, and what would move it?

    \b
    thalweg diagnose                        the built-in demonstration, no files needed
    thalweg diagnose digits-deep-sigmoid    a built-in problem
    thalweg diagnose train.py:problem --checkpoint last.safetensors
    """


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line and exit with its code; errors are one message, never a traceback."""
    state = random.getstate()  # packages that a verb loads draw from it
    try:
        sys.exit(command.main(args=arguments, prog_name="thalweg", standalone_mode=False) or 0)
    except ThalwegError as error:
        _fail(str(error), error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except SystemExit:
        raise
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted; nothing was changed", _INTERRUPTED)
    except MemoryError:
        _fail("out of memory: measure on fewer examples (a smaller loader) or in smaller batches", 3)
    except Exception as error:
        if os.environ.get("THALWEG_DEBUG"):
            raise
        _fail(f"unexpected {type(error).__name__}: {error}; set THALWEG_DEBUG=1 to see where", 3)
    finally:
        random.setstate(state)


def _fail(message: str, code: int) -> None:
    click.echo(f"thalweg: {printable(message)}", err=True)
    sys.exit(code)
