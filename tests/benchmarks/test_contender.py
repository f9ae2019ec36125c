"""The process of one contender of the comparison with PyTorch."""

import subprocess
import sys

from lib import contender


def test_a_process_of_pytorch_does_not_load_mlx():
    """Regression test: it did, and with MLX a BLAS that could replace PyTorch's own."""
    code = "import sys, lib.contender; print({name.partition('.')[0] for name in sys.modules} & {'mlx', 'mlx_rtx'})"
    done = subprocess.run([sys.executable, "-c", code], cwd=contender.BENCHMARKS, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
