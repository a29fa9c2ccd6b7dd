"""What all tests share: one thread, as their tensors are small and several processes may share the
machine.
"""

import gc
import os
import tempfile
from collections.abc import Iterator

import pyro
import pytest
import torch

pytest.register_assert_rewrite("tests.support", "tests.differential")
torch.set_num_threads(1)
# of children too: a process that has begun two threads can't be forked and run one
os.environ.setdefault("OMP_NUM_THREADS", "1")
# what the tests trust is no matter of the user's
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="pyro-vae-tests-")


@pytest.fixture(autouse=True)
def state_of_the_process() -> Iterator[None]:
    """What no test may inherit from another: Pyro's parameter store and its checks, torch's number
    of threads, and the environment, which Dask writes an allocator's setting into.
    """
    environment = dict(os.environ)
    pyro.clear_param_store()
    pyro.enable_validation(True)
    torch.set_num_threads(1)
    yield
    for name in set(os.environ) - set(environment) - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update(environment)


def pytest_collection_finish() -> None:
    """Modules stay to the end: the collector of garbage need not walk them again and again."""
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The notebooks first, a minute each, so that no process ends with them alone. Tests marked
    `stress` run where the mark is asked for, `pytest -m stress`, and nowhere else.
    """
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")
    if "stress" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("stress") is not None]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
