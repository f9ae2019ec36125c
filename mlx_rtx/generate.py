"""Generate text with a trained model: ``python -m mlx_rtx.generate --model runs/text --prompt "ROMEO:"``."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from mlx_rtx.generation.decoding import stream_generate
from mlx_rtx.generation.sampling import make_sampler
from mlx_rtx.generation.saved_state import load_stream, save_stream
from mlx_rtx.support import backend
from mlx_rtx.support.backend import DeviceName
from mlx_rtx.support.command import run_command
from mlx_rtx.support.errors import UserError, require, require_at_most, require_positive
from mlx_rtx.support.locks import alone
from mlx_rtx.support.parsing import parse
from mlx_rtx.training.checkpoint import RunFolder, load, load_vocabulary


@dataclass(frozen=True, kw_only=True)
class GenerateCommand:
    """Continue a prompt. The text is written to standard output, speed and memory to standard error."""

    model: Path
    """Run folder of a text model."""
    prompt: tuple[str, ...] = ()
    """Text to continue; - for standard input. Several prompts are processed as one batch."""
    max_tokens: int = 500
    """Tokens to generate after each prompt: characters, or subwords if the model uses them."""
    temp: float = 0.8
    """Temperature; 0 always picks the most likely token."""
    top_k: int = 0
    """Sample only from the k most likely tokens; 0 for all."""
    top_p: float = 1.0
    """Sample only from the most likely tokens that together have this probability; 1 for all."""
    min_p: float = 0.0
    """Sample only from tokens with at least this fraction of the highest probability; 0 for all."""
    seed: int = 0
    """Random seed; prompt number i, counted from 0, uses seed + i."""
    device: DeviceName | None = None
    """Device to run on; the GPU by default, if there is one."""
    state_file: Path | None = None
    """Continue from the state in this file if it exists, and write the new state to it."""

    def __post_init__(self):
        require_positive(self, "max_tokens")
        require_at_most(self, max_tokens=2**31)


def main(arguments: list[str]) -> None:
    """Parse ``arguments``, print text as it is generated, then print the speed."""
    command = parse(GenerateCommand, arguments, "python -m mlx_rtx.generate")
    backend.use_device(command.device)
    file = command.state_file
    if file is None:
        return write(command)
    require(os.path.isdir(file.parent), f"--state-file {file}: no such folder; create it, or name another file")
    require(not os.path.isdir(file), f"--state-file {file}: is a folder; name a file")
    with alone(file.with_name(f".{file.name}.lock"), f"--state-file {file}"):
        return write(command)


def write(command: GenerateCommand) -> None:
    """Print text as it is generated, then print the speed."""
    sampler = make_sampler(command.temp, command.top_k, command.top_p, command.min_p)
    state_file, prompts = command.state_file, read_prompts(command.prompt)
    one = len(prompts) == 1
    require(one or state_file is None, f"--state-file {state_file}: stores one text; give one prompt with it")
    vocabulary = load_vocabulary(command.model)
    if note := RunFolder(command.model).weights_note:
        print(f"note: {note}", file=sys.stderr)
    model, _ = load(command.model)
    goes_on = state_file is not None and state_file.exists()
    stream = load_stream(state_file, model) if state_file and goes_on else None
    require(
        goes_on or all(prompts),
        "--prompt: nothing to begin with; give at least one character, or the --state-file of an earlier text",
    )
    texts = [""] * len(prompts)
    response = None
    try:
        for response in stream_generate(
            model, vocabulary, prompts, command.max_tokens, sampler, command.seed, stream=stream
        ):
            if one:
                print(response.text, end="", flush=True)
            else:
                texts = [text + more for text, more in zip(texts, response.texts, strict=True)]
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
    if one:
        print()
    else:
        for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True), 1):
            print(f"--- {i}: {prompt!r}\n{text}")
    if response is None:
        return
    if state_file is not None:
        save_stream(state_file, model, response.stream)
    say = [
        f"prompt: {response.prompt_tokens:,} tokens, {response.prompt_tps:,.1f} tokens per second",
        f"generation: {response.generation_tokens:,} tokens, {response.generation_tps:,.1f} tokens per second",
        f"peak memory: {response.peak_memory * 1000:,.1f} MB",
    ]
    if response.finish_reason == "limit":
        say.append(
            f"ended early: this model has {model.config.positions} positions for {model.limit} tokens; "
            "one trained with --positions block has no limit"
        )
    print(*say, sep="\n", file=sys.stderr)


def read_prompts(given: tuple[str, ...]) -> list[str]:
    """Return the prompts, with ``-`` replaced by standard input, or one empty prompt if none is given.

    Raises:
        UserError: if standard input is not UTF-8, or is named twice.
    """
    require(given.count("-") <= 1, "--prompt -: standard input can be read once")
    try:
        return [sys.stdin.read() if prompt == "-" else prompt for prompt in given] or [""]
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt -: is not UTF-8 ({error.reason} at byte {error.start}); convert it") from None


if __name__ == "__main__":
    run_command(main)
