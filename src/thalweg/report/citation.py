"""How to cite Thalweg, as in CITATION.cff (a test compares them)."""

from __future__ import annotations

from thalweg.version import __version__

__all__ = ["BIBTEX"]

BIBTEX = f"""@software{{thalweg,
  title   = {{Thalweg: where a training stands on its loss landscape}},
  author  = {{{{The Thalweg developers}}}},
  version = {{{__version__}}},
  license = {{Apache-2.0}}
}}"""
