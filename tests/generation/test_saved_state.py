"""Streams on disk: they continue exactly where they were, and other files are refused."""

import os
import subprocess
import sys

from mlx_rtx import RecurrentTransformer, RegularTransformer, UserError, generate
from mlx_rtx.generation.saved_state import fingerprint, load_stream, save_stream
from mlx_rtx.generation.stream import Stream, start
from mlx_rtx.support.safetensors import write_arrays
from mlx_rtx.support.trees import flat

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from damage import damages, numbers, refused_or_same, rewrite
from interchange_runs import make_run
from tiny import complaint, make_model, make_tokens


def stream_of(model, length=9, batch=1):
    """Return a stream after some tokens, with one more to be fed."""
    _, state = model.step(make_tokens(length, batch), start(model, batch).state)
    return Stream(state, make_tokens(1, batch))


def put(path, model, stream):
    """Write a stream that `save_stream` would refuse."""
    arrays = {"layers." + name: array for name, array in flat(stream.state.layers).items()}
    about = {"model": fingerprint(model), "position": str(stream.state.position)}
    write_arrays(path, arrays | {"pending": stream.pending}, about)


def contents(stream):
    return stream.state.position, numbers(flat([stream.state.layers, stream.pending]))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [1, 9, 300])
def test_a_stream_is_restored_bit_exactly(kind, length, batch, tmp_path):
    model = make_model(kind, positions="block")
    stream = stream_of(model, length, batch)
    save_stream(tmp_path / "s", model, stream)
    assert contents(load_stream(tmp_path / "s", model)) == contents(stream)


def test_a_stream_before_its_first_token_is_restored(kind, tmp_path):
    model = make_model(kind)
    save_stream(tmp_path / "s", model, start(model))
    assert contents(load_stream(tmp_path / "s", model)) == contents(start(model))


@pytest.fixture(scope="module", params=["recurrent", "regular"])
def written(request, tmp_path_factory):
    """Return a model, the file of a stream, and the contents of the stream."""

    model = make_model({"recurrent": RecurrentTransformer, "regular": RegularTransformer}[request.param])
    path = tmp_path_factory.mktemp("stream") / "s.state"
    save_stream(path, model, stream_of(model))
    return model, path, path.read_bytes()


@given(data=st.data())
def test_a_damaged_state_is_refused_or_reads_the_same(data, written):
    model, path, content = written
    path.write_bytes(content)
    expected = contents(load_stream(path, model))
    path.write_bytes(data.draw(damages(len(content)))(content))
    refused_or_same(path, lambda: contents(load_stream(path, model)), expected)


@pytest.mark.parametrize(
    "position",
    ["", "-1", "x", "٣", "1_0", " 9", "9.0", "41", str(2**70), "9" * 5000, str(2 * 10**9)],
    ids=lambda s: s[:20],
)
def test_invalid_positions_are_refused(position, written):
    """With a correct sha256: the model has 40 positions."""
    model, path, content = written
    path.write_bytes(content)
    stream = load_stream(path, model)
    put(path, model, stream._replace(state=stream.state._replace(position=position)))
    with pytest.raises(UserError, match=r"s\.state: position=.* must lie in 0 … 40; start a new stream"):
        load_stream(path, model)


@pytest.mark.parametrize("tokens", [[[7]], [[-1]], [[2**31 - 1]]])
def test_tokens_that_the_model_does_not_know_are_refused(tokens, tmp_path):
    model = make_model()
    put(tmp_path / "s", model, stream_of(model)._replace(pending=mx.array(tokens)))
    with pytest.raises(UserError, match="contains tokens outside its model's vocabulary"):
        load_stream(tmp_path / "s", model)


def test_a_state_without_rows_is_refused(tmp_path):
    model = make_model()
    put(tmp_path / "s", model, stream_of(model)._replace(pending=mx.zeros((0, 1), mx.int32)))
    with pytest.raises(UserError, match="pending"):
        load_stream(tmp_path / "s", model)


def test_a_non_finite_state_is_refused(tmp_path):
    model = make_model()
    stream = stream_of(model)
    first = stream.state.layers[0]._replace(m_prev=stream.state.layers[0].m_prev * mx.inf)
    put(tmp_path / "s", model, stream._replace(state=stream.state._replace(layers=(first,))))
    with pytest.raises(UserError, match="holds numbers that are not finite"):
        load_stream(tmp_path / "s", model)


def test_a_file_without_its_sha256_is_refused(written):
    model, path, content = written
    path.write_bytes(content)
    rewrite(path, lambda header, data: (header["__metadata__"].pop("sha256") and header, data))
    with pytest.raises(UserError, match="is not what was written"):
        load_stream(path, model)


def test_two_processes_do_not_write_the_same_state(tmp_path, capsys, monkeypatch):
    run, state = make_run(tmp_path / "run", RecurrentTransformer, positions="block"), tmp_path / "s.state"
    arguments = ["--model", str(run), "--prompt", "a", "--state-file", str(state), "--max-tokens"]
    command = [sys.executable, "-m", "mlx_rtx.generate", *arguments, "1000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as first:
        assert first.stdout.read(1)
        output = complaint([*arguments, "5"], capsys, monkeypatch, generate.main)
        assert f"--state-file {state}: another process is using it" in output
        first.kill()
        first.stdout.close()
    assert (tmp_path / ".s.state.lock").exists()
    generate.main([*arguments, "5"])
    assert sorted(os.listdir(tmp_path)) == ["run", "s.state"]
