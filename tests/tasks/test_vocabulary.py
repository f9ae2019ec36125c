"""Characters as tokens: round trips, unknown characters, and the file format of the tokenizers library."""

import json

from mlx_rtx import Characters, UserError

import pytest
import tokenizers

TEXT = "To be, or not\n\tto be: é, 中, 🙂 and ' \" \\ too.\r\n"


def test_encoding_and_decoding_are_inverse():
    vocabulary = Characters(TEXT)
    tokens = vocabulary.encode(TEXT)
    assert vocabulary.decode(tokens) == TEXT
    assert len(vocabulary) == len(set(TEXT)) == tokens.max() + 1
    assert vocabulary.encode("").shape == (0,)


def test_tokens_follow_code_points():
    assert Characters("hello").characters == "ehlo"


@pytest.mark.parametrize("text", ["To be?", "Z", "To be\u0000", "😀"])
def test_unknown_characters_are_named(text):
    with pytest.raises(UserError, match=r"prompt: '.+' is not among the 2[0-9] characters"):
        Characters(TEXT).encode(text, "prompt")


def test_the_file_can_be_read_by_the_tokenizers_library(tmp_path):
    vocabulary = Characters(TEXT)
    vocabulary.save(tmp_path / "tokenizer.json")
    assert Characters.load(tmp_path / "tokenizer.json").characters == vocabulary.characters
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = library.encode(TEXT).ids
    assert ids == vocabulary.encode(TEXT).tolist()
    assert library.decode(ids) == TEXT
    assert library.get_vocab_size() == len(vocabulary)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\xff", b'{"model": {"vocab": {"ab": 0}}}', b'{"model": {"vocab": {"a": 1}}}', b"[1]"]
)
def test_invalid_files(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(UserError, match=r"tokenizer\.json: not found"):
        Characters.load(path)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.json: (is not a vocabulary of this project|cannot be read)"):
        Characters.load(path)


def test_a_vocabulary_of_another_order_is_refused(tmp_path):
    Characters("ab").save(tmp_path / "t.json")
    described = json.loads((tmp_path / "t.json").read_text())
    described["model"]["vocab"] = {"a": 1, "b": 0}
    (tmp_path / "t.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="in order"):
        Characters.load(tmp_path / "t.json")
