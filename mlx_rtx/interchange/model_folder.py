"""Exports a trained text model to a folder that mlx-lm runs without this package.

    config.json, recurrent_transformer.py   settings, and the source file of the model
    model.safetensors                       weights, with one token more than in the run: the end of text
    tokenizer.json, tokenizer_config.json   characters or subwords
    README.md                               model card

The end-of-text token has not been trained: its embedding is zero, and the model file makes it very unlikely, except
after the model's last position, where it is certain.
"""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_rtx.interchange.layouts import MLX_LM
from mlx_rtx.interchange.model_files import recurrent_transformer
from mlx_rtx.model.base import Transformer
from mlx_rtx.model.config import NORM_EPS, ModelConfig, ModelKind
from mlx_rtx.model.registry import MODELS
from mlx_rtx.support.errors import UserError, require
from mlx_rtx.support.files import write_json, write_whole
from mlx_rtx.support.trees import flat
from mlx_rtx.tasks.subwords import END
from mlx_rtx.tasks.vocabulary import Vocabulary

import mlx.core as mx

CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"  # without one, servers add roles and markers
MODEL_FILE = Path(recurrent_transformer.__file__)
AUTO_MAP = {  # classes that ``transformers`` loads
    "AutoConfig": "configuration_recurrent_transformer.RecurrentTransformerConfig",
    "AutoModelForCausalLM": "modeling_recurrent_transformer.RecurrentTransformerForCausalLM",
}


@dataclass(frozen=True)
class Exported:
    """A model as defined by the model file, and its ``config.json``."""

    config: dict[str, Any]
    model: recurrent_transformer.Model


def make_exported(model: Transformer) -> Exported:
    """Convert a model to mlx-lm's form; logits are those of ``model(tokens, close=False)`` and one for end of text."""
    kind: ModelKind = next(name for name, cls in MODELS.items() if type(model) is cls)
    config = describe(kind, model.config)
    made = recurrent_transformer.Model(recurrent_transformer.ModelArgs.from_dict(config))
    parameters, weights = flat(model.parameters()), {}
    for ours, theirs, transposed in MLX_LM.pairs(model.config.layers, kind == "recurrent"):
        if ours in parameters:
            weight = parameters[ours]
            weights[theirs] = mx.contiguous(weight.T) if transposed else weight
    for name in {"model.embed_tokens.weight", "lm_head.weight"} & weights.keys():
        weights[name] = mx.pad(weights[name], [(0, 1), (0, 0)])
    made.load_weights(list(weights.items()))
    made.eval()
    mx.eval(made.parameters())  # otherwise exported graphs would include their computation
    return Exported(config, made)


def describe(kind: ModelKind, config: ModelConfig) -> dict[str, Any]:
    """Return the content of ``config.json``, with the keys that other models use.

    Raises:
        UserError: if the model does not predict its own tokens.
    """
    V = config.vocab_size
    require(config.outputs == V, f"out_size={config.outputs}: only models that predict their own tokens are exported")
    return {
        "model_type": "recurrent_transformer",
        "model_file": MODEL_FILE.name,
        "architectures": ["RecurrentTransformerForCausalLM"],
        "kind": kind,
        "vocab_size": V + 1,
        "eos_token_id": V,
        "hidden_size": config.dim,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "block": config.block,
        "positions": config.positions,
        "max_position_embeddings": config.max_len if config.has_limit else None,
        "hidden_act": config.activation,
        "history": config.history,
        "state_norm": config.state_norm,
        "qk_norm": config.qk_norm,
        "alpha_kind": config.alpha_kind,
        "tie_word_embeddings": config.tie_embeddings,
        "layer_norm_eps": NORM_EPS,
        "dtype": "float32",
    }


def write_folder(folder: Path, exported: Exported, vocabulary: Vocabulary) -> None:
    """Write all files but the model card.

    Raises:
        UserError: if a file could not be written.
    """
    weights = flat(exported.model.parameters())
    target = folder / "model.safetensors"
    write_whole(target, lambda path: mx.save_safetensors(str(path), weights, {"format": "mlx"}))
    ends = exported.config["eos_token_id"]
    ends = ends if vocabulary.end is None else [vocabulary.end, ends]
    write_json(folder / "config.json", {**exported.config, "eos_token_id": ends})
    copy_file(MODEL_FILE, folder)
    write_tokenizer(folder, vocabulary, exported.config["max_position_embeddings"])


def write_for_transformers(folder: Path, exported: Exported, vocabulary: Vocabulary) -> None:
    """Write the files of `write_folder`, and in addition those that ``transformers`` needs.

    Raises:
        UserError: if a file could not be written, or the model is a regular transformer.
    """
    require(
        exported.config["kind"] == "recurrent",
        "--format transformers: supports recurrent models only; export a regular one for mlx-lm",
    )
    write_folder(folder, replace(exported, config={**exported.config, "auto_map": AUTO_MAP}), vocabulary)
    for name in AUTO_MAP.values():
        copy_file(MODEL_FILE.with_name(name.partition(".")[0] + ".py"), folder)


def copy_file(file: Path, folder: Path) -> None:
    """Copy a model file to ``folder``."""
    write_whole(folder / file.name, lambda path: shutil.copyfile(file, path))


def write_tokenizer(folder: Path, vocabulary: Vocabulary, limit: int | None) -> None:
    """Write the tokenizer's files for ``transformers``: characters or subwords, and an end-of-text token."""
    vocabulary.save(folder / "tokenizer.json")
    described = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    described["post_processor"] = None  # it might add tokens that the model was not trained on
    end = "<|end|>" if vocabulary.end_name == END else END
    described["added_tokens"].append({"id": len(vocabulary), "content": end, **plain, "special": True})
    write_json(folder / "tokenizer.json", described)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": limit or 10**9,
        "eos_token": vocabulary.end_name or end,
        "chat_template": CHAT,
    }
    write_json(folder / "tokenizer_config.json", settings)


def check_empty(folder: Path) -> None:
    """Raise `UserError` if the folder exists and is not empty, so that an export has files of one model only."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty; name a new folder")
