"""A trained text model as a folder that plain mlx-lm runs.

    config.json, recurrent_transformer.py   the model, and the file that makes it of its weights
    model.safetensors                       weights, with one more token than the run's: the end of text
    tokenizer.json, tokenizer_config.json   its characters or subwords
    README.md                               the model card

The end of text was never trained: its embedding is zero, and the model file all but rules it out. Only where positions
run out it is certain.
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

CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"  # else a server invents roles and marks
MODEL_FILE = Path(recurrent_transformer.__file__)
AUTO_MAP = {  # where ``transformers`` finds its classes
    "AutoConfig": "configuration_recurrent_transformer.RecurrentTransformerConfig",
    "AutoModelForCausalLM": "modeling_recurrent_transformer.RecurrentTransformerForCausalLM",
}


@dataclass(frozen=True)
class Exported:
    """A model as the model file makes it, and the ``config.json`` that says so."""

    config: dict[str, Any]
    model: recurrent_transformer.Model


def make_exported(model: Transformer) -> Exported:
    """The model in mlx-lm's terms, as a stream: logits are those of ``model(tokens, close=False)``, and one more."""
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
    mx.eval(made.parameters())  # else graphs that are exported begin with how they were made
    return Exported(config, made)


def describe(kind: ModelKind, config: ModelConfig) -> dict[str, Any]:
    """A ``config.json``, in the words that other models' have."""
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
    """Write all but the model card.

    Raises:
        UserError: a file could not be written.
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
    """Write the same, and what ``transformers`` needs beside it.

    Raises:
        UserError: a file could not be written, or the model is a regular transformer.
    """
    require(
        exported.config["kind"] == "recurrent",
        "--format transformers: holds recurrent models only; export a regular one for mlx-lm",
    )
    write_folder(folder, replace(exported, config={**exported.config, "auto_map": AUTO_MAP}), vocabulary)
    for name in AUTO_MAP.values():
        copy_file(MODEL_FILE.with_name(name.partition(".")[0] + ".py"), folder)


def copy_file(file: Path, folder: Path) -> None:
    """Put a copy of a model file into ``folder``."""
    write_whole(folder / file.name, lambda path: shutil.copyfile(file, path))


def write_tokenizer(folder: Path, vocabulary: Vocabulary, limit: int | None) -> None:
    """The characters or subwords as tokens for ``transformers``, and one more that ends a text."""
    vocabulary.save(folder / "tokenizer.json")
    described = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    described["post_processor"] = None  # it may add tokens that the model has never seen
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
    """Refuse a folder that holds something: an export is whole and of one model."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty; name a new folder")
