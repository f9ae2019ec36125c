"""Writes the model card of an exported folder: description, scores, training and limits of the model."""

import math
from dataclasses import dataclass
from typing import Any

from mlx_rtx.interchange.quantization import Cost
from mlx_rtx.model.config import ModelConfig
from mlx_rtx.tasks.vocabulary import Characters, Vocabulary

import mlx.core as mx

USES = {
    "mlx-lm": """\
    pip install mlx-lm
    mlx_lm.generate --model . --trust-remote-code --ignore-chat-template --prompt "{prompt}" --max-tokens 200

`mlx_lm.benchmark`, `server`, `cache_prompt`, `convert`, `lora`, `fuse` and `perplexity` work too, all with
`--trust-remote-code`, which runs the model file `recurrent_transformer.py` in this folder; read it first.""",
    "transformers": """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(".", trust_remote_code=True)
tokens = tokenizer("{prompt}", return_tensors="pt")
print(tokenizer.decode(model.generate(**tokens, max_new_tokens=200)[0]))
```

This runs `modeling_recurrent_transformer.py` in this folder; read it first. mlx-lm runs the same folder with
`recurrent_transformer.py`:

    mlx_lm.generate --model . --trust-remote-code --ignore-chat-template --prompt "{prompt}" --max-tokens 200""",
    "mlxfn": """\
`step.mlxfn` is one step of the model, which C++, Swift or Python can run without mlx_rtx: it takes a token (1, 1) and
a state, initially all zeros, and returns logits (1, 1, {outputs}) and the next state. `step.json` lists shapes, dtypes
and characters.

```python
import mlx.core as mx

step = mx.import_function("step.mlxfn")
logits, *state = step([token, *state])
```""",
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Content of a model card."""

    name: str
    format: str
    kind: str
    model: ModelConfig
    alphas: list[mx.array]
    parameters: int
    vocabulary: Vocabulary
    stored: dict[str, Any]
    """A run folder's ``config.json``."""
    scores: dict[str, Any] | None
    """Validation that selected the weights, from ``metrics.jsonl``; None if there was none."""
    cost: Cost | None = None
    """Increase in loss by quantization; None if not quantized."""
    bits: int | None = None


def write_card(facts: Facts) -> str:
    """Return the card in Markdown, with the metadata header that the Hugging Face hub reads."""
    sections = {
        "": _opening(facts),
        "Use": USES[facts.format].format(prompt=_prompt(facts.vocabulary), outputs=len(facts.vocabulary) + 1),
        "Scores": _figures(facts),
        "Training": _training(facts),
        "Vocabulary": _vocabulary(facts.vocabulary),
        "Limits": _limits(facts),
        "Source": "B. N. Kausik, *Scaling Efficient LLMs*, [arXiv 2402.14746](https://arxiv.org/abs/2402.14746). Made "
        "by mlx_rtx, which is independent of the paper's author.",
    }
    library = "transformers" if facts.format == "transformers" else "mlx"
    tags = "tags:\n- mlx\n- recurrent-transformer"
    header = f"---\nlibrary_name: {library}\npipeline_tag: text-generation\n{tags}\n---\n"
    parts = [f"## {title}\n\n{text}" if title else text for title, text in sections.items()]
    return header + f"\n# {facts.name}\n\n" + "\n\n".join(parts) + "\n"


def _prompt(vocabulary: Vocabulary) -> str:
    if not isinstance(vocabulary, Characters):
        return "The"
    return "ROMEO:" if set("ROMEO:") <= set(vocabulary.characters) else vocabulary.characters[-1]


def _opening(facts: Facts) -> str:
    model, what = facts.model, f"A {facts.kind} transformer of {facts.parameters:,} parameters"
    unit = facts.vocabulary.unit
    text = f"{what} that continues text, {unit} by {unit}."
    if facts.bits:
        text += f" Its weights are quantized to {facts.bits} bits."
    sizes = f"Width {model.dim}, {model.heads} heads, {model.layers} layer{'s' if model.layers > 1 else ''}"
    if facts.kind == "regular":
        return f"{text} {sizes}; {model.positions} positions."
    alphas = ", ".join(f"{alpha.item():.3g}" for alpha in facts.alphas)
    return (
        f"{text} One causal layer slides over blocks of {model.block} {unit}s and carries its state forward, so "
        f"time is linear in length and the state has a constant size. {sizes}; α {alphas} ({model.alpha_kind}), "
        f"history {model.history!r}, {model.positions} positions."
    )


def _figures(facts: Facts) -> str:
    scores, rows, unit = facts.scores, [], facts.vocabulary.unit
    if scores:
        loss, half = scores["loss"], 1.96 * scores["loss_se"]
        rows += [
            (f"loss, nats per {unit}", f"{loss:.4f} ± {half:.4f}"),
            (f"bits per {unit}", f"{loss / math.log(2):.4f} ± {half / math.log(2):.4f}"),
            (f"accuracy, next {unit}", f"{scores['accuracy']:.2%} ± {1.96 * scores['accuracy_se']:.2%}"),
        ]
        if "bits_per_byte" in scores:
            rows.insert(2, ("bits per byte of text", f"{scores['bits_per_byte']:.4f}"))
    if facts.cost:
        rows += [
            ("loss as a stream, 32 bits", str(facts.cost.before)),
            (f"loss as a stream, {facts.bits} bits", str(facts.cost.after)),
            (f"increase with {facts.bits} bits", str(facts.cost.added)),
        ]
    if not rows:
        return "It has not been evaluated."
    header = ["| on held-out text | 95 % confidence interval |", "| --- | --- |"]
    table = "\n".join([*header, *(f"| {a} | {b} |" for a, b in rows)])
    if not scores:
        return table
    return (
        f"{table}\n\nOver {scores['targets']:,} {unit}s that were not used for training. The weights were selected for "
        "the lowest loss on this text, which makes the scores slightly optimistic. A uniform guess has a loss of "
        f"{math.log(len(facts.vocabulary)):.3f} nats."
    )


def _training(facts: Facts) -> str:
    if origin := facts.stored.get("origin"):
        return f"Trained elsewhere; converted from `{origin['file']}` (sha256 `{origin['sha256']}`)."
    settings, data = facts.stored["settings"], facts.stored["data"]
    loop, optimizer, unit = settings["training"], settings["optimizer"], facts.vocabulary.unit
    samples = facts.scores["samples"] if facts.scores else loop["samples"]
    environment = facts.stored.get("environment", {})
    versions = environment.get("versions", {})
    return (
        f"On the first {data['train']:,} {unit}s of `{data['source']}` (sha256 `{data['sha256']}`): {samples:,} "
        f"samples of {settings['task']['length']} {unit}s, {loop['batch']} per step, {optimizer['optimizer']} with a "
        f"learning rate of {optimizer['lr']:g}, dropout {facts.model.dropout:g}, seed {loop['seed']}. Device: "
        f"{environment.get('device_name')}, MLX {versions.get('mlx')}, mlx_rtx {versions.get('mlx_rtx')} at revision "
        f"{environment.get('git_revision')}. All "
        "settings are in the run's `config.json`."
    )


def _vocabulary(vocabulary: Vocabulary) -> str:
    end = (
        "An additional end-of-text token has not been trained, so the model generates until it is stopped. The chat "
        "template only concatenates messages: this is not a chat model."
    )
    if not isinstance(vocabulary, Characters):
        return f"{len(vocabulary):,} subwords, which `tokenizer.json` contains. {end}"
    shown = vocabulary.characters.replace("\n", "⏎").replace("`", "ˋ")
    return (
        f"{len(vocabulary)} characters, with ⏎ for the line break: `{shown}`\n\n**All others are silently removed** "
        f"from a prompt. {end}"
    )


def _limits(facts: Facts) -> str:
    model, unit = facts.model, facts.vocabulary.unit
    if model.has_limit:
        end = f"It has {model.positions} positions for {model.max_len} {unit}s, after which its text ends."
    else:
        end = f"It has no maximum length, but was trained on {model.max_len} {unit}s at a time."
    closed = ""
    if facts.kind == "recurrent":
        closed = (
            " Training and its scores close each sequence with the paper's Eq. 7; a stream has no last block and uses "
            "Eq. 6 throughout, so its loss may differ slightly unless α is 0."
        )
    return f"{end}{closed} It is a small model of one text, for study, not for answering questions."
