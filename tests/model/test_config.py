"""Invalid settings of models are refused in one line with a remedy."""

from mlx_rtx import UserError

import pytest

from tiny import make_config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dim": 0}, "dim=0"),
        ({"block": 0}, "block=0"),
        ({"layers": 0}, "layers=0"),
        ({"heads": 0}, "heads=0"),
        ({"dim": 96, "heads": 7}, "heads=7 does not divide dim=96: use heads 3, 4, 6, 8 with dim 96, or dim 91 or 98"),
        ({"dim": 8, "heads": 9}, "heads=9 does not divide dim=8.*dim 9"),
        ({"dropout": 1.0}, "^dropout=1.0"),
        ({"attention_dropout": 1.0}, r"attention_dropout=1.0: must lie in \[0, 1\)"),
        ({"attention_dropout": -0.1}, "attention_dropout=-0.1"),
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"dim": 2**31}, "dim=2147483648: must be at most 65,536"),
        ({"dim": 2**16 + 1, "heads": 2}, "dim=65537"),
        ({"layers": 2**31}, "layers=2147483648"),
        ({"block": 2**31}, "block=2147483648"),
        ({"max_len": 2**31}, "max_len=2147483648"),
        ({"alpha": 0.0, "alpha_kind": "gated"}, "alpha=0.0: must lie strictly between 0 and 1"),
        ({"alpha_kind": "token"}, "alpha_kind"),
        ({"positions": "rotary"}, "positions='rotary'.*absolute, block, axial, none"),
        ({"history": "y"}, "history='y'.*hidden, output"),
        ({"activation": "silu"}, "activation='silu'.*relu, gelu"),
        ({"vocab_size": 0}, "vocab_size=0"),
        ({"max_len": 0}, "max_len=0"),
        ({"out_size": 3}, "out_size=3.*tie_embeddings=False"),
    ],
)
def test_invalid_settings_are_refused(changes, words):
    with pytest.raises(UserError, match=words) as error:
        make_config(**changes)
    assert "\n" not in str(error.value)
