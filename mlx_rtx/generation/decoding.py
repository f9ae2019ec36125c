"""Generation: a stream of tokens out of a model's step, one at a time, for any number of prompts.

Random numbers of a stream depend on its seed and its position alone. So a text is the same whether its
prompt runs alone or beside others, in one go or from a state that was saved on the way.
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
LOOK = 16  # tokens from one look at whether logits are finite to the next


def token_stream(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    sampler: Sampler | None = None,
    seeds: Sequence[int] = (0,),
    stream: Stream | None = None,
) -> Iterator[tuple[list[int | None], Stream]]:
    """Feed prompts and draw what follows; the device is kept one token ahead.

    All streams advance together. While a prompt still lasts its stream is fed from it, and only those
    whose prompt has ended draw; so prompts need not have the same length.

    Args:
        model: in evaluation mode.
        prompts: tokens of each of B prompts.
        max_tokens: tokens to draw for each.
        sampler: see `mlx_rtx.generation.sampling.make_sampler`; the likeliest token if not given.
        seeds: one a stream.
        stream: where an earlier call ended; the prompts come after it.

    Yields:
        (the token of each stream, None where its prompt still lasts or its tokens are all drawn; where
        generation stands). It ends early where the model's positions do (`Transformer.limit`).

    Raises:
        UserError: there is nothing to begin with, tokens that are none of the model's, a prompt longer than its
            positions, a stream of another model, or logits that are not finite.
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
        """Tokens (B,) at place ``at`` after ``begin``."""
        position = mx.full((len(rows),), begin + at, dtype=mx.uint32)
        keys = mx.stack([key_words, position], axis=1)
        if isinstance(sampler, CheckedSampler):  # logits are looked at below
            drawn = sampler.unchecked(logits, keys)
        else:  # it may give anything
            drawn = check_drawn(model, sampler(logits, keys), len(rows))
        return mx.where(mx.array(at < lengths), given[:, at], drawn) if at < longest else drawn

    end = longest + max_tokens
    if model.limit is not None:
        end = min(end, model.limit - begin + 1)  # the last token drawn need not be fed
    tokens, looked = draw(logits, shortest), logits.sum()
    mx.async_eval(tokens, looked)
    for at in range(shortest, end):
        before = state
        check_finite(looked, begin + at)
        if at + 1 < end:
            logits, state = model.feed(tokens[:, None], state, parameters)
            following = draw(logits[:, -1], at + 1)
            if at % LOOK == 0 or at + 2 == end:
                looked = logits.sum()
            mx.async_eval(following, looked, state)
        drawn = [
            token if length <= at < length + max_tokens else None
            for token, length in zip(np.array(tokens).tolist(), lengths, strict=True)
        ]
        yield drawn, Stream(before, tokens[:, None].astype(mx.int32))
        if at + 1 < end:
            tokens = following


@dataclass(frozen=True)
class Response:
    """What one step of `stream_generate` gives, and how it goes."""

    texts: list[str]
    """What each prompt's text goes on by: nothing where the prompt lasts, the text is done, or a character is still
    without its last bytes."""
    stream: Stream
    """Where generation stands; to go on from here, pass it on with the next prompt."""
    prompt_tokens: int
    """Tokens of the prompts together."""
    prompt_tps: float
    """Prompt tokens per second up to the first token drawn."""
    generation_tokens: int
    """Tokens drawn so far, of all prompts together."""
    generation_tps: float
    """Tokens per second after the first ones."""
    peak_memory: float
    """Peak memory of the process's MLX arrays, in GB."""
    finish_reason: str | None = None
    """On the last one: ``length`` when all tokens asked for were drawn, ``stop`` when each text has come to its end,
    ``limit`` when positions ran out."""

    @property
    def text(self) -> str:
        """What the first prompt's text goes on by."""
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
    """Write on after prompts, token by token, each until its end where the vocabulary has a token for that.

    Args:
        model: in evaluation mode, as `mlx_rtx.load` gives it.
        vocabulary: its characters or subwords, as `mlx_rtx.load_vocabulary` gives them.
        prompts: one prompt or several; those need not have the same length.
        max_tokens: tokens to draw for each, at least 1.
        sampler: see `mlx_rtx.generation.sampling.make_sampler`; the likeliest token if not given.
        seed: prompt i draws by ``seed + i``, and the same as it would alone with that seed.
        stream: where an earlier call ended (`Response.stream`); the prompts, which may then be empty,
            come after it.

    Raises:
        UserError: text that the vocabulary has no tokens for, an empty prompt at the start, or one too long.

    Example:
        >>> for response in stream_generate(model, vocabulary, "ROMEO:", sampler=make_sampler(temp=0.8)):
        ...     print(response.text, end="", flush=True)
    """
    prompts = [prompts] if isinstance(prompts, str) else prompts
    right = isinstance(prompts, Sequence) and all(isinstance(prompt, str) for prompt in prompts)
    require(right, "prompts: give text, or a list of texts")
    require(len(prompts) >= 1, "prompts: there is none; give at least one")
    require_whole(least=0, seed=seed)
    require(seed <= 2**32 - len(prompts), f"seed={seed}: must lie in 0 … {2**32 - len(prompts)}")
    require_whole(max_tokens=max_tokens)
    check_writer(model)
    known, V = isinstance(vocabulary, Vocabulary) and len(vocabulary), model.config.vocab_size
    require(known == V, f"vocabulary: has not the {V} tokens of the model; give what load_vocabulary returns")
    if stream is not None:
        check_stream(model, stream)
    encoded = [vocabulary.encode(prompt, "prompt").tolist() for prompt in prompts]
    prompt_tokens, drawn = sum(map(len, encoded)), 0
    before = np.array(stream.pending).tolist() if stream else [[]] * len(prompts)
    decoders = [vocabulary.decoder([*pending, *prompt]) for pending, prompt in zip(before, encoded, strict=False)]
    left, ended = [max_tokens] * len(prompts), set[int]()  # tokens yet to draw; texts that came to their end
    started = time.perf_counter()
    first: float | None = None  # when the first tokens were there
    seeds = range(seed, seed + len(prompts))
    for tokens, stands in token_stream(model, encoded, max_tokens, sampler, seeds, stream):
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
        if model.limit is not None and stands.position > model.limit:
            reason = reason or "limit"
        yield Response(
            texts=texts,
            stream=stands,
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
    """The whole text after each prompt; arguments as for `stream_generate`."""
    responses = list(stream_generate(model, vocabulary, prompts, **settings))
    return ["".join(parts) for parts in zip(*(response.texts for response in responses), strict=True)]
