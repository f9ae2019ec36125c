"""Exports one step of a model as a graph (``mx.export_function``) that C++ and Swift can run without Python.

``step.mlxfn`` maps (token (1, 1) int32, state …) to (logits (1, 1, V), state …) and contains the weights. The state
before the first token is all zeros. ``step.json`` lists shapes, dtypes and characters; for subwords there is a
``tokenizer.json``.
"""

from pathlib import Path

from mlx_rtx.interchange.model_folder import Exported
from mlx_rtx.support.errors import require
from mlx_rtx.support.files import write_json, write_whole
from mlx_rtx.tasks.vocabulary import Characters, Vocabulary

import mlx.core as mx


def write_step(folder: Path, exported: Exported, vocabulary: Vocabulary) -> None:
    """Write ``step.mlxfn`` and ``step.json`` into ``folder``.

    Raises:
        UserError: if the model is a regular transformer, whose state grows, so that one graph does not suffice.
    """
    model = exported.model
    require(exported.config["kind"] == "recurrent", "--format mlxfn: a regular transformer's state grows; use mlx-lm")
    start = [layer.start(1, mx.float32) for layer in model.layers]
    size = len(start[0])

    def step(token: mx.array, *state: mx.array) -> list[mx.array]:
        states = [list(state[i : i + size]) for i in range(0, len(state), size)]
        places = states[0][0][:, None]
        y, states = model.model.feed(token, mx.ones((1,), mx.int32), states)
        return [model.readout(model.model.norm(y), places), *(array for layer in states for array in layer)]

    arguments = [mx.zeros((1, 1), mx.int32), *(array for layer in start for array in layer)]
    write_whole(folder / "step.mlxfn", lambda path: mx.export_function(str(path), step, *arguments))
    described = {
        "inputs": _describe(arguments),
        "outputs": _describe(step(*arguments)),
        **({"characters": vocabulary.characters} if isinstance(vocabulary, Characters) else {}),
        "end_of_text": len(vocabulary),
        "max_positions": exported.config["max_position_embeddings"],
    }
    write_json(folder / "step.json", described)
    if not isinstance(vocabulary, Characters):
        vocabulary.save(folder / "tokenizer.json")


def _describe(arrays: list[mx.array]) -> list[dict]:
    return [{"shape": list(array.shape), "dtype": str(array.dtype).rpartition(".")[2]} for array in arrays]
