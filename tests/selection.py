"""Which cases the default run takes: a few; the others are marked slow."""

import pytest


def some(values, now):
    """Return the ``values`` as cases, all but the first ``now`` of them marked slow."""
    return [
        value if i < now else pytest.param(value, marks=pytest.mark.slow) for i, value in enumerate(values)
    ]


def all_but(values, later):
    """Return the ``values`` as cases, those in ``later`` marked slow."""
    return [pytest.param(value, marks=pytest.mark.slow) if value in later else value for value in values]
