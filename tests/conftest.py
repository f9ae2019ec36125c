"""Settings and fixtures for all tests."""

import os
import signal
import tempfile

from mlx_rtx import RecurrentTransformer, RegularTransformer

import hypothesis
import pytest

hypothesis.settings.register_profile("suite", derandomize=True, deadline=None, max_examples=25, database=None)
hypothesis.settings.load_profile("suite")

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs of a shell and their children
os.environ.setdefault("MLX_RTX_KERNELS", "0")  # on a GPU every tiny shape would be compiled; kernels/ tests the kernels


def pytest_configure(config):
    """Give the package datasets an empty cache; it reads the variable when it is imported."""
    cache = tempfile.TemporaryDirectory()
    config.add_cleanup(cache.cleanup)
    os.environ["HF_DATASETS_CACHE"] = cache.name


@pytest.fixture(params=[RecurrentTransformer, RegularTransformer], ids=["recurrent", "regular"])
def kind(request):
    return request.param
