"""Run folders of untrained models in which every parameter affects the outputs, for tests of interchange."""

from dataclasses import asdict

from mlx_rtx import Characters, RegularTransformer
from mlx_rtx.training.checkpoint import RunFolder

from tiny import make_model

CHARACTERS = Characters("abcdefg")
ORIGIN = {"file": "weights.npz", "sha256": "0"}
VARIANTS = {  # every option of the architecture at least once, and combinations of them
    "plain": {"positions": "block"},
    "output": {"positions": "block", "history": "output", "activation": "gelu"},
    "axial": {"positions": "axial", "alpha_kind": "head", "qk_norm": True},
    "absolute": {"positions": "absolute", "history": "output", "state_norm": True, "tie_embeddings": False},
    "channel": {"positions": "none", "history": "output", "alpha_kind": "channel", "layers": 2},
    "gated": {"positions": "block", "alpha_kind": "gated", "state_norm": True, "qk_norm": True, "layers": 2},
}


def write_run(path, model):
    """Write the run folder of a text model with seven characters."""
    folder = RunFolder(path)
    kind = "regular" if isinstance(model, RegularTransformer) else "recurrent"
    described = {"task": "text", "origin": ORIGIN, "model": {"kind": kind, **asdict(model.config)}}
    folder.begin(described, CHARACTERS)
    folder.write_model(model)
    return path


def make_run(path, kind, **changes):
    return write_run(path, make_model(kind, **changes))
