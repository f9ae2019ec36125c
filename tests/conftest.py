"""Settings and fixtures of all tests."""

import os

from mlx_rtx import RecurrentTransformer, RegularTransformer

import pytest

os.environ.setdefault("MLX_RTX_KERNELS", "0")  # on a GPU each tiny shape would be compiled; kernels/ has them


@pytest.fixture(params=[RecurrentTransformer, RegularTransformer], ids=["recurrent", "regular"])
def kind(request):
    return request.param
