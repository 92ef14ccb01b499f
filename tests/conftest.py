"""What every test relies on: a fixed number of threads, and a guard on the global random states."""

import gc
import random
import signal

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _threads():
    torch.set_num_threads(1)  # the matrices are small; threads would only wait for each other


def pytest_configure() -> None:
    """Hear Ctrl-C also where the shell that began the run in the background told it not to."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _random_states_stay_as_they_were(request):
    """No test may draw from the global random states, except through code it declares to."""
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    yield
    if "own_randomness" in request.keywords:
        return
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    assert before[0] == after[0], "the test moved python's random state"
    assert before[1] == after[1], "the test moved numpy's random state"
    assert torch.equal(before[2], after[2]), "the test moved torch's random state"


@pytest.fixture
def live_tensors():
    """Count the tensors that live; what lived before the test does not count, so that it is quick."""
    gc.collect()
    gc.freeze()

    def count():
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    yield count
    gc.unfreeze()
