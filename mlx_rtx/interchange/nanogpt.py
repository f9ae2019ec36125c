"""Reads and writes checkpoints in nanoGPT's layout, which the paper's program uses too.

The layout has one α for the whole model, the output reading of Eq. 6, one table of positions, and here no biases. It
does not contain the number of heads, the block width and the activation, which the caller must supply.
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

PREFIXES = ("_orig_mod.", "module.")  # added by torch.compile and DistributedDataParallel
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
INSTEAD_OF_PICKLE = (
    "is a pickle, which can run any program; if you trust it, convert it to safetensors: "
    """python -c "import torch; from safetensors.torch import save_file; m = torch.load('{path}', weights_only=True)"""
    """['model']; save_file({{n: w.clone() for n, w in m.items()}}, 'model.safetensors')\""""
)
WTE, WPE, HEAD = (NANOGPT.ends[name] for name in ("tokens", "positions", "head"))


@dataclass(frozen=True, kw_only=True)
class Unnamed:
    """Model settings that a checkpoint does not contain."""

    kind: ModelKind
    heads: int
    block: int
    activation: Literal["relu", "gelu"]
    history: Literal["output", "hidden"]


def read_checkpoint(path: Path) -> dict[str, mx.array]:
    """Return the weights of a ``.safetensors`` or ``.npz`` file in float32, by nanoGPT's names.

    Raises:
        UserError: if the file is of another kind or cannot be read, or has non-zero biases or numbers that are not
            finite.
    """
    require(path.suffix not in PICKLES, f"{path}: {INSTEAD_OF_PICKLE.format(path=path)}")
    require(path.suffix in (".safetensors", ".npz"), f"{path}: must be a .safetensors or .npz file")
    require(path.is_file(), f"{path}: not found; name an existing file")
    try:
        loaded = mx.load(str(path))
        mx.eval(loaded)
    except Exception as error:  # MLX and zipfile raise many types
        raise UserError(f"{path}: truncated, or not a {path.suffix} file ({error}); create it again") from None
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
    require(not bad, f"{path}: {bad[:1]} contains numbers that are not finite; create it again")
    return weights


def from_nanogpt(weights: dict[str, mx.array], unnamed: Unnamed) -> Transformer:
    """Return the model with these weights.

    Args:
        weights: from `read_checkpoint`.
        unnamed: settings that the weights do not determine.

    Raises:
        UserError: if weights are missing, unknown, or have the wrong shape.
    """
    for name in (WTE, WPE):
        require(name in weights, f"{name}: is missing; this is not a checkpoint in nanoGPT's layout")
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
            require(theirs in weights, f"{theirs}: is missing; a model of this size requires it")
            weight = weights.pop(theirs)
            found[ours] = mx.contiguous(weight.T) if transposed else weight
            require(
                found[ours].shape == expected[ours],
                f"{theirs}: has shape {weight.shape}, which does not fit a table of tokens of {tokens.shape}",
            )
    require(not weights, f"{', '.join(sorted(weights)[:3])}: not in nanoGPT's layout; remove it from the file")
    if unnamed.kind == "recurrent":
        if alpha is None:
            raise UserError("alpha: is missing, so this is a regular transformer; use --model regular")
        found |= {f"layers.{i}.alpha": alpha.reshape(()) + 0 for i in range(config.layers)}
    model.load_weights(list(found.items()))
    model.eval()
    return model


def to_nanogpt(model: Transformer) -> dict[str, mx.array]:
    """Return a model's weights by nanoGPT's names; positions of any kind become one table of max_len rows.

    Raises:
        UserError: if the layout cannot represent the model.
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
        for reason in _unsupported(config, alphas):
            raise UserError(f"{reason}: not supported by nanoGPT's layout")
        weights["alpha"] = alphas[0]
    require(not config.qk_norm, "qk_norm=True: not supported by nanoGPT's layout")
    return weights


def _unsupported(config: ModelConfig, alphas: list[mx.array]) -> Iterator[str]:
    """Yield the settings of a recurrent model that nanoGPT's layout cannot represent."""
    if config.alpha_kind != "scalar":
        yield f"alpha_kind={config.alpha_kind!r}"
    elif any(alpha.item() != alphas[0].item() for alpha in alphas):
        yield "a different alpha in each layer"
    elif config.history == "hidden" and mx.clip(alphas[0], 0, 1).item():
        yield f"history={config.history!r} with an alpha above 0"  # with alpha 0 both readings are equal
    if config.state_norm:
        yield "state_norm=True"


def _table(parameters: dict[str, mx.array], config: ModelConfig) -> mx.array:
    """Return the position table with max_len rows."""
    places = mx.arange(config.max_len)
    if config.positions == "none":
        return mx.zeros((config.max_len, config.dim))
    rows = parameters["embedding.positions"]
    table = rows[places % len(rows)]
    return table + parameters["embedding.blocks"][places // len(rows)] if config.positions == "axial" else table


def write_checkpoint(path: Path, weights: dict[str, mx.array]) -> None:
    """Write weights to a ``.safetensors`` file, which PyTorch reads too, or to an ``.npz`` file.

    Raises:
        UserError: if the file is of another kind, or could not be written.
    """
    if path.suffix == ".npz":
        write_whole(path, lambda temporary: mx.savez(str(temporary), **weights))
        return
    require(path.suffix == ".safetensors", f"{path}: must end in .safetensors or .npz")
    write_whole(path, lambda temporary: mx.save_safetensors(str(temporary), weights, {"format": "pt"}))
