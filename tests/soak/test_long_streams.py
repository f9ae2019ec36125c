"""Ten million tokens: memory is constant, numbers are finite, and a saved stream continues as if never stopped."""

from itertools import islice

from mlx_rtx.generation.decoding import token_stream
from mlx_rtx.generation.sampling import make_sampler
from mlx_rtx.generation.saved_state import load_stream, save_stream
from mlx_rtx.support.trees import flat, not_finite

import mlx.core as mx
import pytest

from damage import numbers
from tiny import HISTORIES, make_model

pytestmark = pytest.mark.soak
ROWS, LENGTH = 200, 50_000  # 10 million tokens in all
SAVED = (0, 1, 999, 20_000, LENGTH - 1500)  # tokens per row after which the stream is written to disk
AFTER = 1000  # tokens compared after each of these


def resident_bytes() -> int:
    """Return the resident memory of the process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def drawn(model, prompts, count, stream=None):
    """Yield the token of each row at each step, and the stream."""
    return token_stream(model, prompts, count, make_sampler(temp=1.0, top_p=0.95), range(ROWS), stream)


@pytest.mark.parametrize("history", HISTORIES)
def test_ten_million_tokens(history, tmp_path, capsys):
    model = make_model(history=history, positions="block")
    prompts, tokens, active, resident, bytes_of_states = [[i % 7] for i in range(ROWS)], [], [], [], set()
    for step, (row, stream) in enumerate(drawn(model, prompts, LENGTH)):
        tokens.append(bytes(row))
        if step in SAVED:
            save_stream(tmp_path / f"{step}.state", model, stream)
            again = load_stream(tmp_path / f"{step}.state", model)
            assert again.position == stream.position
            assert numbers(flat([again.state.layers, again.pending])) == numbers(
                flat([stream.state.layers, stream.pending])
            )
        if step % 1000 == 999:
            assert not not_finite(stream.state.layers)
            active.append(mx.get_active_memory())
            resident.append(resident_bytes() - len(tokens) * (ROWS + 40))
            bytes_of_states.add(sum(array.nbytes for array in flat(stream.state.layers).values()))
    assert len(tokens) * ROWS == 10**7
    assert {token for row in tokens[-AFTER:] for token in row} == set(range(7))  # it still generates all tokens
    assert len(bytes_of_states) == 1
    for bytes_used, leeway in ((active, 2**17), (resident, 2**22)):
        half = len(bytes_used) // 2
        assert max(bytes_used[half:]) <= max(bytes_used[:half]) + leeway
    for step in SAVED:
        stream = load_stream(tmp_path / f"{step}.state", model)
        following = [bytes(row) for row, _ in islice(drawn(model, [[]] * ROWS, AFTER, stream), AFTER)]
        assert following == tokens[step + 1 : step + 1 + AFTER]
    with capsys.disabled():
        sizes = f"{len(tokens) * ROWS:,} tokens, {min(active):,} … {max(active):,} bytes of arrays"
        print(f"\n{history}: {sizes}, {min(resident):,} … {max(resident):,} bytes resident; went on from {SAVED}")
