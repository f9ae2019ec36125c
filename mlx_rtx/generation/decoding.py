"""Generation of tokens, one at a time, for a batch of prompts.

A stream's random numbers depend only on its seed and position. So its text is the same alone or in a batch,
and in one call or continued from a saved state.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_rtx.generation.requests import check_drawn, check_finite, check_prompts, check_seeds, check_writer
from mlx_rtx.generation.sampling import CheckedSampler, Sampler, make_sampler
from mlx_rtx.generation.stream import Stream, check_stream, start
from mlx_rtx.model.base import Transformer
from mlx_rtx.support.errors import require
from mlx_rtx.support.typed import require_whole
from mlx_rtx.tasks.vocabulary import Vocabulary

import mlx.core as mx
import numpy as np

PREFILL = 512  # tokens of a prompt fed at a time
CHECK_EVERY = 16  # tokens between two checks that logits are finite


def token_stream(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    sampler: Sampler | None = None,
    seeds: Sequence[int] = (0,),
    stream: Stream | None = None,
) -> Iterator[tuple[list[int | None], Stream]]:
    """Feed prompts and draw the tokens that follow; the device computes one token ahead.

    All streams advance together. Streams whose prompt is longer are fed from it while the others already draw, so
    prompts need not have the same length.

    Args:
        model: the model, in evaluation mode.
        prompts: tokens of each of B prompts.
        max_tokens: number of tokens to draw per prompt.
        sampler: see `mlx_rtx.generation.sampling.make_sampler`; picks the most likely token by default.
        seeds: one seed per stream.
        stream: stream of an earlier call, which the prompts continue.

    Yields:
        (tokens, stream): the token drawn for each stream, or None while its prompt is being fed and after its last
        token; and the stream to continue from. Ends early at the model's last position (`Transformer.limit`).

    Raises:
        UserError: if there is no token to start with, a token is outside the vocabulary, a prompt exceeds the model's
            positions, the stream is of another model, or logits are not finite.
    """
    check_writer(model)
    require_whole(max_tokens=max_tokens)
    sampler, prompts = sampler or make_sampler(), check_prompts(model, prompts)
    require(callable(sampler), f"sampler: is a {type(sampler).__name__}; give what make_sampler returns")
    stream = start(model, len(prompts)) if stream is None else stream
    check_stream(model, stream)
    begin, waiting = stream.state.position, np.array(stream.pending)
    require(len(prompts) == len(waiting), f"prompts: {len(prompts)} for {len(waiting)} streams; give one for each")
    rows = [[*pending.tolist(), *prompt] for pending, prompt in zip(waiting, prompts, strict=True)]
    lengths = np.array([len(row) for row in rows])
    require(lengths.min() >= 1, "prompt: empty; give at least one character, e.g. a line break")
    require(
        model.limit is None or begin + lengths.max() <= model.limit,
        f"prompt: ends at {begin + lengths.max():,} tokens, the model has {model.config.positions} positions for "
        f"{model.limit} (max_len); shorten it, or train with --positions block, which has no limit",
    )
    shortest, longest = int(lengths.min()), int(lengths.max())
    given = mx.array([row + [0] * (longest - len(row)) for row in rows], dtype=mx.uint32)
    key_words = mx.array(check_seeds(seeds, len(rows)), dtype=mx.uint32)
    state, logits, parameters = stream.state, mx.zeros((len(rows), 0)), model.parameters()
    for first in range(0, shortest, PREFILL):
        logits, state = model.feed(given[:, first : min(first + PREFILL, shortest)], state, parameters)
        logits = logits[:, -1]
        mx.eval(logits, state)

    def draw(logits: mx.array, at: int) -> mx.array:
        """Return tokens (B,) at position ``begin + at``: drawn, or from the prompt."""
        position = mx.full((len(rows),), begin + at, dtype=mx.uint32)
        keys = mx.stack([key_words, position], axis=1)
        if isinstance(sampler, CheckedSampler):  # logits are checked below
            drawn = sampler.unchecked(logits, keys)
        else:  # a sampler of the caller, whose result must be checked
            drawn = check_drawn(model, sampler(logits, keys), len(rows))
        return mx.where(mx.array(at < lengths), given[:, at], drawn) if at < longest else drawn

    end = longest + max_tokens
    if model.limit is not None:
        end = min(end, model.limit - begin + 1)  # the last token drawn need not be fed
    tokens, checked = draw(logits, shortest), logits.sum()
    mx.async_eval(tokens, checked)
    for at in range(shortest, end):
        before = state
        check_finite(checked, begin + at)
        if at + 1 < end:
            logits, state = model.feed(tokens[:, None], state, parameters)
            following = draw(logits[:, -1], at + 1)
            if at % CHECK_EVERY == 0 or at + 2 == end:
                checked = logits.sum()
            mx.async_eval(following, checked, state)
        drawn = [
            token if length <= at < length + max_tokens else None
            for token, length in zip(np.array(tokens).tolist(), lengths, strict=True)
        ]
        yield drawn, Stream(before, tokens[:, None].astype(mx.int32))
        if at + 1 < end:
            tokens = following


@dataclass(frozen=True)
class Response:
    """Result of one step of `stream_generate`."""

    texts: list[str]
    """New text for each prompt; empty while the prompt is being fed, after the text's end, or while a character's last
    bytes are missing."""
    stream: Stream
    """Stream to pass to another call, with the next prompts, to continue from here."""
    prompt_tokens: int
    """Total number of tokens in the prompts."""
    prompt_tps: float
    """Prompt tokens per second until the first token was drawn."""
    generation_tokens: int
    """Total number of tokens drawn so far."""
    generation_tps: float
    """Tokens per second after the first ones."""
    peak_memory: float
    """Peak memory of the process's MLX arrays, in GB."""
    finish_reason: str | None = None
    """In the last response: ``length`` if all requested tokens were drawn, ``stop`` if every text has reached its end,
    ``limit`` if the model's positions are used up."""

    @property
    def text(self) -> str:
        """New text for the first prompt."""
        return self.texts[0]


def stream_generate(
    model: Transformer,
    vocabulary: Vocabulary,
    prompts: str | Sequence[str],
    max_tokens: int = 256,
    sampler: Sampler | None = None,
    seed: int = 0,
    stream: Stream | None = None,
) -> Iterator[Response]:
    """Continue prompts token by token, each until its end token if the vocabulary has one.

    Args:
        model: the model in evaluation mode, as `mlx_rtx.load` returns it.
        vocabulary: its characters or subwords, as `mlx_rtx.load_vocabulary` returns them.
        prompts: one prompt or several, which may differ in length.
        max_tokens: number of tokens to draw per prompt, at least 1.
        sampler: see `mlx_rtx.generation.sampling.make_sampler`; picks the most likely token by default.
        seed: prompt i uses seed ``seed + i``, and gives the same text as alone with that seed.
        stream: stream of an earlier call (`Response.stream`), which the prompts continue; they may then be empty.

    Yields:
        One `Response` per token position.

    Raises:
        UserError: if the vocabulary lacks tokens for a prompt, a prompt is too long, or empty without a stream.

    Example:
        >>> for response in stream_generate(model, vocabulary, "ROMEO:", sampler=make_sampler(temp=0.8)):
        ...     print(response.text, end="", flush=True)
    """
    prompts = [prompts] if isinstance(prompts, str) else prompts
    right = isinstance(prompts, Sequence) and all(isinstance(prompt, str) for prompt in prompts)
    require(right, "prompts: give text, or a list of texts")
    require(len(prompts) >= 1, "prompts: empty; give at least one")
    require_whole(least=0, seed=seed)
    require(seed <= 2**32 - len(prompts), f"seed={seed}: must lie in 0 … {2**32 - len(prompts)}")
    require_whole(max_tokens=max_tokens)
    check_writer(model)
    known, V = isinstance(vocabulary, Vocabulary) and len(vocabulary), model.config.vocab_size
    require(known == V, f"vocabulary: must have the {V} tokens of the model; give what load_vocabulary returns")
    if stream is not None:
        check_stream(model, stream)
    encoded = [vocabulary.encode(prompt, "prompt").tolist() for prompt in prompts]
    prompt_tokens, drawn = sum(map(len, encoded)), 0
    before = np.array(stream.pending).tolist() if stream else [[]] * len(prompts)
    decoders = [vocabulary.decoder([*pending, *prompt]) for pending, prompt in zip(before, encoded, strict=False)]
    left, ended = [max_tokens] * len(prompts), set[int]()  # tokens left to draw; texts that have ended
    started = time.perf_counter()
    first: float | None = None  # time of the first tokens
    seeds = range(seed, seed + len(prompts))
    for tokens, current in token_stream(model, encoded, max_tokens, sampler, seeds, stream):
        now = time.perf_counter()
        first = first or now
        texts = [""] * len(prompts)
        for i, token in enumerate(tokens):
            if token is None or not left[i]:
                continue
            drawn, left[i] = drawn + 1, left[i] - 1
            if token == vocabulary.end:
                left[i] = 0
                ended.add(i)
            else:
                texts[i] = decoders[i](token)
        reason = None if any(left) else "stop" if len(ended) == len(prompts) else "length"
        if model.limit is not None and current.position > model.limit:
            reason = reason or "limit"
        yield Response(
            texts=texts,
            stream=current,
            prompt_tokens=prompt_tokens,
            prompt_tps=prompt_tokens / (first - started),
            generation_tokens=drawn,
            generation_tps=(drawn - len(prompts)) / (now - first) if now > first else 0.0,
            peak_memory=mx.get_peak_memory() / 1e9,
            finish_reason=reason,
        )
        if not any(left):
            return


def generate(model: Transformer, vocabulary: Vocabulary, prompts: str | Sequence[str], **settings: Any) -> list[str]:
    """Return the whole text generated after each prompt; arguments as for `stream_generate`."""
    responses = list(stream_generate(model, vocabulary, prompts, **settings))
    return ["".join(parts) for parts in zip(*(response.texts for response in responses), strict=True)]
