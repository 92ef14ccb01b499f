"""The GPU's kernels: in numba's simulator, which runs them as Python; on a GPU where there is one."""

import os
import subprocess
import sys

import numpy as np
import pytest
from numba import cuda

from thalweg.errors import InputError, ThalwegError
from thalweg.kernels import cntk, cntk_depths

needs_gpu = pytest.mark.skipif(not cuda.is_available(), reason="numba finds no CUDA device")

IN_THE_SIMULATOR = """
import numpy as np
from thalweg.kernels import cntk, cntk_depths

rng = np.random.default_rng(0)
x = rng.normal(size=(2, 2, 2, 3))
z = rng.normal(size=(1, 2, 2, 3))
x[1, :, 0] = 0
for form, other in (
    ({}, None),
    ({"readout": "flatten"}, z),
    ({"readout": 1, "padding": "circular", "trained": [0.5, 1, 0.25]}, z),
    ({"filter_size": 5, "trained": "all", "flips": True, "kind": "nngp"}, z),
):
    expected = cntk(x, other, depth=3, **form)
    assert np.allclose(cntk(x, other, depth=3, device="cuda", **form), expected, rtol=1e-13, atol=0), form
several = cntk_depths(x, z, depths=[3, 2], device="cuda")
assert np.allclose(several, cntk_depths(x, z, depths=[3, 2]), rtol=1e-13, atol=0)
# each with itself is near itself: float64 steps in
x = x[:1].astype(np.float32)
single = cntk(x, depth=3, device="cuda")
exact = cntk(x.astype(np.float64), depth=3)
assert single.dtype == np.float32 and np.abs(single / exact - 1).max() < 1e-6
print("agreed")
"""


@pytest.mark.slow
def test_the_simulated_gpu_computes_what_the_cpu_does():
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    done = subprocess.run(
        [sys.executable, "-c", IN_THE_SIMULATOR], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == "agreed", done.stderr


@needs_gpu
@pytest.mark.parametrize("readout", ["gap", "flatten", 1])
@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_the_gpu_computes_what_the_cpu_does(readout, padding):
    x, z = np.random.default_rng(0).normal(size=(2, 3, 3, 32, 32))
    form = {"depth": 11, "readout": readout, "padding": padding}
    exact = cntk(x, z, **form)
    assert np.allclose(cntk(x, z, device="cuda", **form), exact, rtol=1e-12, atol=0)
    single = cntk(x.astype(np.float32), z.astype(np.float32), device="cuda", **form)
    assert np.abs(single / exact - 1).max() < 2e-6
    assert np.allclose(
        cntk_depths(x, depths=[3, 6], device="cuda"), cntk_depths(x, depths=[3, 6]), rtol=1e-12
    )


def test_what_the_gpu_cannot_do_is_said():
    with pytest.raises(InputError, match="stride of 1 and images of 1,024 pixels"):
        cntk(np.ones((1, 1, 33, 32)), depth=3, device="cuda")
    with pytest.raises(InputError, match="stride of 1"):
        cntk(np.ones((1, 1, 4, 4)), depth=3, stride=2, device="cuda")
    with pytest.raises(InputError, match="device is unknown"):
        cntk(np.ones((1, 1, 4, 4)), depth=3, device="tpu")
    if not cuda.is_available():
        with pytest.raises(ThalwegError, match="no CUDA device"):
            cntk(np.ones((1, 1, 4, 4)), depth=3, device="cuda")
