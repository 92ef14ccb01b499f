"""Where on the loss landscape does my training stand, how sure is that, and what would move it?

The names below are loaded when they are first used, so that ``import thalweg`` stays quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from thalweg.first_use import on_first_use
from thalweg.version import __version__

if TYPE_CHECKING:
    from thalweg import completion, kernels, optim
    from thalweg.curvature.density import Density, density
    from thalweg.curvature.sharpness import Sharpness, sharpness
    from thalweg.curvature.spectrum_record import Spectrum, spectrum
    from thalweg.curvature.trace import trace
    from thalweg.diagnosis.diagnosis import Diagnosis, diagnose
    from thalweg.diagnosis.escape import Escape, escape
    from thalweg.diagnosis.verdict import Verdict
    from thalweg.errors import CheckpointError, InputError, ModelError, NumericalError, ThalwegError
    from thalweg.estimates import Estimate
    from thalweg.landscape.path import Path, path
    from thalweg.landscape.plane import Plane, plane
    from thalweg.landscape.slice import Slice, slice
    from thalweg.problem.builtin.registry import problems
    from thalweg.problem.loading import load_problem
    from thalweg.problem.problem import Problem
    from thalweg.studies.batch_size import batch_size
    from thalweg.studies.batch_sizes import BatchSizes
    from thalweg.studies.compare import compare
    from thalweg.studies.comparison import Comparison
    from thalweg.training.loop import train
    from thalweg.training.recorded import RecordedRun, read_run
    from thalweg.training.recorder import Recorder
    from thalweg.training.run_summary import RunSummary
    from thalweg.training.trajectory import Trajectory

_HOMES = {
    "completion": "completion",
    "kernels": "kernels",
    "optim": "optim",
    "BatchSizes": "studies.batch_sizes",
    "CheckpointError": "errors",
    "Comparison": "studies.comparison",
    "Density": "curvature.density",
    "Diagnosis": "diagnosis.diagnosis",
    "Escape": "diagnosis.escape",
    "Estimate": "estimates",
    "InputError": "errors",
    "ModelError": "errors",
    "NumericalError": "errors",
    "Path": "landscape.path",
    "Plane": "landscape.plane",
    "Problem": "problem.problem",
    "RecordedRun": "training.recorded",
    "Recorder": "training.recorder",
    "RunSummary": "training.run_summary",
    "Sharpness": "curvature.sharpness",
    "Slice": "landscape.slice",
    "Spectrum": "curvature.spectrum_record",
    "ThalwegError": "errors",
    "Trajectory": "training.trajectory",
    "Verdict": "diagnosis.verdict",
    "batch_size": "studies.batch_size",
    "compare": "studies.compare",
    "density": "curvature.density",
    "diagnose": "diagnosis.diagnosis",
    "escape": "diagnosis.escape",
    "load_problem": "problem.loading",
    "path": "landscape.path",
    "plane": "landscape.plane",
    "problems": "problem.builtin.registry",
    "read_run": "training.recorded",
    "sharpness": "curvature.sharpness",
    "slice": "landscape.slice",
    "spectrum": "curvature.spectrum_record",
    "trace": "curvature.trace",
    "train": "training.loop",
}

__all__ = [
    "BatchSizes",
    "CheckpointError",
    "Comparison",
    "Density",
    "Diagnosis",
    "Escape",
    "Estimate",
    "InputError",
    "ModelError",
    "NumericalError",
    "Path",
    "Plane",
    "Problem",
    "RecordedRun",
    "Recorder",
    "RunSummary",
    "Sharpness",
    "Slice",
    "Spectrum",
    "ThalwegError",
    "Trajectory",
    "Verdict",
    "__version__",
    "batch_size",
    "compare",
    "completion",
    "density",
    "diagnose",
    "escape",
    "kernels",
    "load_problem",
    "optim",
    "path",
    "plane",
    "problems",
    "read_run",
    "sharpness",
    "slice",
    "spectrum",
    "trace",
    "train",
]


__getattr__ = on_first_use("thalweg", _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
