"""nanoGPT's checkpoints, which the paper's program writes too: read into run folders, and written from them.

That layout has one α for the whole model, the output reading of Eq. 6, one table of positions, and no biases here. It
names neither heads nor block nor activation: whoever reads it says them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlx_rtx.interchange.layouts import NANOGPT
from mlx_rtx.model.base import Transformer
from mlx_rtx.model.config import ModelConfig, ModelKind
from mlx_rtx.model.registry import MODELS
from mlx_rtx.support.errors import UserError, require
from mlx_rtx.support.files import write_whole
from mlx_rtx.support.trees import flat, not_finite

import mlx.core as mx

PREFIXES = ("_orig_mod.", "module.")  # which torch.compile and DistributedDataParallel put before names
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
INSTEAD_OF_PICKLE = (
    "is a pickle, which can run any program; where you trust it, make a safetensors file: "
    """python -c "import torch; from safetensors.torch import save_file; m = torch.load('{path}', weights_only=True)"""
    """['model']; save_file({{n: w.clone() for n, w in m.items()}}, 'model.safetensors')\""""
)
WTE, WPE, HEAD = (NANOGPT.ends[name] for name in ("tokens", "positions", "head"))


@dataclass(frozen=True, kw_only=True)
class Unnamed:
    """What a checkpoint does not say of its model."""

    kind: ModelKind
    heads: int
    block: int
    activation: Literal["relu", "gelu"]
    history: Literal["output", "hidden"]


def read_checkpoint(path: Path) -> dict[str, mx.array]:
    """The arrays of a ``.safetensors`` or ``.npz`` file in float32, by nanoGPT's names, without what is no weight.

    Raises:
        UserError: another kind of file, one that cannot be read, or one with biases or numbers that are not finite.
    """
    require(path.suffix not in PICKLES, f"{path}: {INSTEAD_OF_PICKLE.format(path=path)}")
    require(path.suffix in (".safetensors", ".npz"), f"{path}: must be a .safetensors or .npz file")
    require(path.is_file(), f"{path}: not found; name a file that is there")
    try:
        loaded = mx.load(str(path))
        mx.eval(loaded)
    except Exception as error:  # a dozen kinds, of MLX and of zipfile
        raise UserError(f"{path}: cut off, or no {path.suffix} file ({error}); make it again") from None
    assert isinstance(loaded, dict)
    weights = {}
    for name, array in loaded.items():
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        if name.endswith("attn.bias") and array.ndim == 4:  # the causal mask
            continue
        if name.endswith(".bias"):
            require(not mx.any(array).item(), f"{path}: {name} is not zero; models with biases can't be converted")
            continue
        weights[name] = array.astype(mx.float32)
    bad = not_finite(weights)
    require(not bad, f"{path}: {bad[:1]} holds numbers that are not finite; make it again")
    return weights


def from_nanogpt(weights: dict[str, mx.array], unnamed: Unnamed) -> Transformer:
    """The model whose weights these are.

    Args:
        weights: from `read_checkpoint`.
        unnamed: what they do not say.

    Raises:
        UserError: weights are missing, or there are others.
    """
    for name in (WTE, WPE):
        require(name in weights, f"{name}: is missing; this is no checkpoint in nanoGPT's layout")
    weights = dict(weights)
    tokens, alpha = weights[WTE], weights.pop("alpha", None)
    head = weights.get(HEAD, tokens)
    tied = head.shape == tokens.shape and mx.array_equal(head, tokens).item()
    if tied:
        weights.pop(HEAD, None)
    layers = 0
    while NANOGPT.layer.format(i=layers) + NANOGPT.tau["qkv"] in weights:
        layers += 1
    config = ModelConfig(
        vocab_size=tokens.shape[0],
        out_size=None if tied else head.shape[0],
        max_len=weights[WPE].shape[0],
        dim=tokens.shape[1],
        heads=unnamed.heads,
        block=unnamed.block,
        layers=layers or 1,
        activation=unnamed.activation,
        history=unnamed.history,
        positions="absolute",
        tie_embeddings=bool(tied),
    )
    model = MODELS[unnamed.kind](config)
    expected, found = {name: array.shape for name, array in flat(model.parameters()).items()}, {}
    for ours, theirs, transposed in NANOGPT.pairs(config.layers, unnamed.kind == "recurrent"):
        if ours in expected:
            require(theirs in weights, f"{theirs}: is missing; a model of these sizes has it")
            weight = weights.pop(theirs)
            found[ours] = mx.contiguous(weight.T) if transposed else weight
            require(
                found[ours].shape == expected[ours],
                f"{theirs}: has shape {weight.shape}, which does not fit a table of tokens of {tokens.shape}",
            )
    require(not weights, f"{', '.join(sorted(weights)[:3])}: not in nanoGPT's layout; leave it out of the file")
    if unnamed.kind == "recurrent":
        if alpha is None:
            raise UserError("alpha: is missing, so this is a regular transformer; say --model regular")
        found |= {f"layers.{i}.alpha": alpha.reshape(()) + 0 for i in range(config.layers)}
    model.load_weights(list(found.items()))
    model.eval()
    return model


def to_nanogpt(model: Transformer) -> dict[str, mx.array]:
    """The weights of a model by nanoGPT's names; positions of any kind become one table of max_len rows.

    Raises:
        UserError: the model has what that layout has no place for.
    """
    config, parameters = model.config, flat(model.parameters())
    recurrent = "layers.0.alpha" in parameters
    weights = {
        theirs: mx.contiguous(parameters[ours].T) if transposed else parameters[ours]
        for ours, theirs, transposed in NANOGPT.pairs(config.layers, recurrent)
        if ours in parameters
    }
    weights[WPE] = _table(parameters, config)
    weights.setdefault(HEAD, weights[WTE])
    if recurrent:
        alphas = [parameters[f"layers.{i}.alpha"] for i in range(config.layers)]
        for reason in _hindrances(config, alphas):
            raise UserError(f"{reason}: has no place in nanoGPT's layout")
        weights["alpha"] = alphas[0]
    require(not config.qk_norm, "qk_norm=True: has no place in nanoGPT's layout")
    return weights


def _hindrances(config: ModelConfig, alphas: list[mx.array]) -> Iterator[str]:
    if config.alpha_kind != "scalar":
        yield f"alpha_kind={config.alpha_kind!r}"
    elif any(alpha.item() != alphas[0].item() for alpha in alphas):
        yield "an alpha of each layer's own"
    elif config.history == "hidden" and mx.clip(alphas[0], 0, 1).item():
        yield f"history={config.history!r} with an alpha above 0"  # at 0 the readings agree
    if config.state_norm:
        yield "state_norm=True"


def _table(parameters: dict[str, mx.array], config: ModelConfig) -> mx.array:
    """A row of position for each of max_len places."""
    places = mx.arange(config.max_len)
    if config.positions == "none":
        return mx.zeros((config.max_len, config.dim))
    rows = parameters["embedding.positions"]
    table = rows[places % len(rows)]
    return table + parameters["embedding.blocks"][places // len(rows)] if config.positions == "axial" else table


def write_checkpoint(path: Path, weights: dict[str, mx.array]) -> None:
    """Write weights to a ``.safetensors`` file, which PyTorch reads too, or to an ``.npz`` file.

    Raises:
        UserError: another kind of file, or it could not be written.
    """
    if path.suffix == ".npz":
        write_whole(path, lambda temporary: mx.savez(str(temporary), **weights))
        return
    require(path.suffix == ".safetensors", f"{path}: must end in .safetensors or .npz")
    write_whole(path, lambda temporary: mx.save_safetensors(str(temporary), weights, {"format": "pt"}))
