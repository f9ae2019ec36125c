"""Generation: every token is the model's own, regardless of the batch, of earlier calls and of saved states."""

from mlx_rtx import Characters, UserError, make_sampler, stream_generate
from mlx_rtx.generation import decoding
from mlx_rtx.generation.decoding import generate, token_stream
from mlx_rtx.generation.saved_state import load_stream, save_stream

import mlx.core as mx
import numpy as np
import pytest

from tiny import HISTORIES, K, make_model

LETTERS = Characters("abcdefg")
SAMPLER = make_sampler(temp=1.0)


def drawn(model, prompts, count, **settings):
    """Return the generated tokens of each prompt."""
    columns = [tokens for tokens, _ in token_stream(model, prompts, count, **settings)]
    return [[token for token in row if token is not None] for row in zip(*columns, strict=True)]


@pytest.mark.parametrize("positions", ["absolute", "block", "axial", "none"])
@pytest.mark.parametrize("history", HISTORIES)
def test_each_token_is_the_most_likely_of_the_whole_forward_pass(kind, history, positions):
    model = make_model(kind, history=history, positions=positions, layers=2)
    prompt = [3, 1, 4, 1, 5]
    (tokens,) = drawn(model, [prompt], 5 * K)
    logits = model(mx.array([prompt + tokens]), close=False)[0]
    assert tokens == mx.argmax(logits, axis=-1)[len(prompt) - 1 : -1].tolist()


def test_tokens_are_drawn_from_the_model(kind):
    """Over many seeds the first token has the frequencies of the model's probabilities."""
    model, count = make_model(kind), 3000
    prompts = [[1, 2, 3]] * count
    first = [row[0] for row in drawn(model, prompts, 1, sampler=SAMPLER, seeds=range(count))]
    expected = np.array(mx.softmax(model(mx.array([[1, 2, 3]]), last=1, close=False)[0, 0]))
    assert np.abs(np.bincount(first, minlength=7) / count - expected).max() < 5 * np.sqrt(0.25 / count)


def test_a_batch_equals_its_singles(kind):
    """Prompts of any lengths are continued in a batch as they would be alone."""
    model = make_model(kind)
    prompts = [[1], [2, 3, 4, 5, 6, 0, 1, 2, 3], [4, 4, 4, 4], [5, 6]]
    together = drawn(model, prompts, 12, sampler=SAMPLER, seeds=range(7, 11))
    alone = [drawn(model, [prompt], 12, sampler=SAMPLER, seeds=[7 + i])[0] for i, prompt in enumerate(prompts)]
    assert together == alone


def test_the_seed_determines_the_text(kind):
    model = make_model(kind)
    first, same, other = (generate(model, LETTERS, "abc", max_tokens=30, sampler=SAMPLER, seed=s) for s in (1, 1, 2))
    assert first == same != other


@pytest.mark.parametrize("prefill", [1, 3, 512])
def test_a_prompt_may_be_fed_in_pieces_of_any_length(kind, prefill, monkeypatch):
    model, prompt = make_model(kind), "gfedcbaabcdefg"
    expected = generate(model, LETTERS, prompt, max_tokens=8)
    monkeypatch.setattr(decoding, "PREFILL", prefill)
    assert generate(model, LETTERS, prompt, max_tokens=8) == expected


@pytest.mark.parametrize("first", [1, K - 2, K, 9])
def test_a_saved_state_continues_as_if_never_stopped(kind, tmp_path, first):
    model = make_model(kind, history="output")
    settings = {"sampler": SAMPLER, "seed": 3}
    (whole,) = generate(model, LETTERS, "abca", max_tokens=20, **settings)
    *_, stopped = stream_generate(model, LETTERS, "abca", max_tokens=first, **settings)
    save_stream(tmp_path / "a.state", model, stopped.stream)
    loaded = load_stream(tmp_path / "a.state", model)
    assert loaded.position == 4 + first
    (rest,) = generate(model, LETTERS, "", max_tokens=20 - first, stream=loaded, **settings)
    assert whole[first:] == rest
    (more,) = generate(model, LETTERS, "cab", max_tokens=5, stream=loaded)
    (expected,) = generate(model, LETTERS, "abca" + whole[:first] + "cab", max_tokens=5)
    assert more == expected


def test_a_state_has_constant_size(tmp_path):
    model, sizes = make_model(positions="block"), []
    for count in (3, 300):
        *_, last = stream_generate(model, LETTERS, "a", max_tokens=count)
        save_stream(tmp_path / "s", model, last.stream)
        sizes.append((tmp_path / "s").stat().st_size)
    assert abs(sizes[0] - sizes[1]) < 8  # the digits of the position


def test_states_that_do_not_fit_are_refused(tmp_path):
    model, path = make_model(), tmp_path / "s"
    with pytest.raises(UserError, match="not found"):
        load_stream(path, model)
    *_, last = stream_generate(model, LETTERS, "ab", max_tokens=2)
    save_stream(path, model, last.stream)
    with pytest.raises(UserError, match="state of another model"):
        load_stream(path, make_model(seed=1))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="truncated"):
        load_stream(path, model)


@pytest.mark.parametrize("positions", ["absolute", "axial"])
def test_the_end_of_positions_ends_the_text(kind, positions):
    """All positions are used: the last generated token follows the last position."""
    model = make_model(kind, max_len=10, positions=positions)
    responses = list(stream_generate(model, LETTERS, "abc", max_tokens=50))
    assert len(responses) == 8
    assert [r.finish_reason for r in responses] == [None] * 7 + ["limit"]
    assert [r.finish_reason for r in stream_generate(model, LETTERS, "abc", max_tokens=8)][-1] == "length"
    with pytest.raises(UserError, match=f"{positions} positions for 10"):
        generate(model, LETTERS, "a" * 11)
    with pytest.raises(UserError, match=f"{positions} positions for 10"):
        generate(model, LETTERS, "", stream=responses[-1].stream)


def test_streams_and_prompts_must_match():
    model = make_model()
    *_, two = stream_generate(model, LETTERS, ["a", "b"], max_tokens=1)
    with pytest.raises(UserError, match="prompts: 1 for 2 streams"):
        generate(model, LETTERS, "a", stream=two.stream)
    assert len(generate(model, LETTERS, ["", "c"], max_tokens=3, stream=two.stream)) == 2


def test_fields_of_a_response(kind):
    model = make_model(kind)
    responses = list(stream_generate(model, LETTERS, ["ab", "cde"], max_tokens=6))
    assert len(responses) == 7  # the shorter prompt's text starts and ends one token earlier
    assert responses[0].texts[1] == responses[-1].texts[0] == ""
    assert responses[0].text == responses[0].texts[0] != ""
    last = responses[-1]
    assert (last.prompt_tokens, last.generation_tokens, last.finish_reason) == (5, 12, "length")
    assert last.prompt_tps > 0
    assert last.generation_tps > 0
    assert last.peak_memory > 0


@pytest.mark.parametrize(
    ("prompts", "settings", "words"),
    [
        ("", {}, "prompt: empty"),
        ([], {}, "prompts: empty"),
        ("xyz", {}, "'x', 'y', 'z' is not among"),
        ("a", {"max_tokens": 0}, "max_tokens=0"),
        ("a", {"seed": -1}, "seed=-1"),
    ],
)
def test_wrong_requests(prompts, settings, words):
    with pytest.raises(UserError, match=words):
        generate(make_model(), LETTERS, prompts, **settings)


def test_a_text_ends_at_its_end_token():
    """Alone and in a batch, where others continue; neither the end token nor anything after it is shown."""
    vocabulary, model = Characters("abcdefg"), make_model()
    prompts = ["ab", "c", "ddd"]
    whole = [list(stream_generate(model, vocabulary, p, 12, SAMPLER, seed=i)) for i, p in enumerate(prompts)]
    vocabulary.end = vocabulary.encode(whole[1][5].text)[0]
    expected = ["".join(r.text for r in one).partition(whole[1][5].text)[0] for one in whole]
    assert len(set(map(len, expected))) > 1
    for i, prompt in enumerate(prompts):
        *_, last = responses = list(stream_generate(model, vocabulary, prompt, 12, SAMPLER, seed=i))
        assert "".join(response.text for response in responses) == expected[i]
        assert last.finish_reason == ("stop" if len(expected[i]) < 12 else "length")
    assert generate(model, vocabulary, prompts, max_tokens=12, sampler=SAMPLER) == expected
