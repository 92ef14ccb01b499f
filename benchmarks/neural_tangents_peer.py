"""Computes kernels with neural-tangents for bench_kernels.py, which starts it with an interpreter of its own.

Reads one request a line, {"job": name, "x": file.npy, "out": file.npy}, computes the kernel of the examples
with themselves, and answers {"times": [seconds, seconds of all cores]}. The first
request of each kind also compiles; ask twice.
"""

from __future__ import annotations

import json
import sys
import time

import jax
import neural_tangents as nt
import numpy as np
from neural_tangents import stax

ROOT2 = 2**0.5


def convolutional(depth: int, readout: object) -> object:
    layers = [stax.Conv(1, (3, 3), padding="SAME", W_std=ROOT2, b_std=None), stax.Relu()] * (depth - 1)
    return stax.serial(*layers, readout, stax.Dense(1, W_std=ROOT2, b_std=None))[2]


def fully_connected(depth: int) -> object:
    layers = [stax.Dense(1, W_std=ROOT2, b_std=None), stax.Relu()] * (depth - 1)
    return stax.serial(*layers, stax.Dense(1, W_std=1.0, b_std=None))[2]


def main() -> None:
    jobs = {
        "gap": (convolutional(11, stax.GlobalAvgPool()), True),
        "flatten": (convolutional(11, stax.Flatten()), True),
        "fully connected": (fully_connected(6), False),
    }
    compiled = {
        name: (jax.jit(lambda x, kernel=kernel: kernel(x, None, "ntk")), images)
        for name, (kernel, images) in jobs.items()
    }
    print(json.dumps({"versions": f"neural-tangents {nt.__version__}, jax {jax.__version__}"}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        kernel, images = compiled[request["job"]]
        x = np.load(request["x"])
        x = jax.numpy.asarray(np.moveaxis(x, 1, -1) if images else x)
        begun, used = time.perf_counter(), time.process_time()
        found = kernel(x).block_until_ready()
        times = time.perf_counter() - begun, time.process_time() - used
        np.save(request["out"], np.asarray(found))
        print(json.dumps({"times": times}), flush=True)


if __name__ == "__main__":
    main()
