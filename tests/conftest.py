"""Settings and fixtures of all tests."""

import os
import signal

from mlx_rtx import RecurrentTransformer, RegularTransformer

import hypothesis
import pytest

hypothesis.settings.register_profile("suite", derandomize=True, deadline=None, max_examples=25, database=None)
hypothesis.settings.load_profile("suite")

signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background a shell has it ignored, as would children
os.environ.setdefault("MLX_RTX_KERNELS", "0")  # on a GPU each tiny shape would be compiled; kernels/ has them


@pytest.fixture(params=[RecurrentTransformer, RegularTransformer], ids=["recurrent", "regular"])
def kind(request):
    return request.param
