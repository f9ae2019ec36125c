"""Subwords: encoding and decoding are inverse, each byte counts once, and only whole characters are output."""

import json
import sys

from mlx_rtx import UserError
from mlx_rtx.tasks import subwords
from mlx_rtx.tasks.pieces import cut
from mlx_rtx.tasks.subwords import Subwords, find_tokenizer, read_vocabulary, train_tokenizer
from mlx_rtx.tasks.vocabulary import Characters

import pytest
import tokenizers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

TEXT = "To be, or not to be: é, 中文, 🙂🙂 and naïve ﬁne.\r\n\n  Two\tspaces.\n" * 3


def spaces():
    """Return a Unigram tokenizer of words that begin with ▁, as in SentencePiece, with a fallback to bytes."""
    pieces = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -9.0) for byte in range(256))]
    pieces += [(piece, -len(piece) * 0.5) for piece in ("▁To", "▁", "▁be", "be", ",", "▁not", "o", "t", "n", "r")]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
    return Subwords(tokenizer)


def lowercase():
    """Return a tokenizer of words that normalizes the text."""
    tokenizer = Tokenizer(
        models.WordPiece({"[UNK]": 0, "to": 1, "be": 2, ",": 3, "n": 4, "##ot": 5}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return Subwords(tokenizer)


def trained():
    return train_tokenizer([TEXT], 300)


@pytest.mark.parametrize("make", [trained, spaces])
def test_encoding_and_decoding_are_inverse(make):
    vocabulary = make()
    tokens = vocabulary.encode(TEXT)
    assert vocabulary.decode(tokens) == TEXT
    assert tokens.max() < len(vocabulary)


@pytest.mark.parametrize("make", [trained, spaces])
def test_half_a_character_is_refused(make):
    """As a shell passes bytes that are not UTF-8."""
    with pytest.raises(UserError, match=r"prompt: '\\udcff' is not a character; leave it out"):
        make().encode("a\udcff", "prompt")


def test_a_trained_tokenizer_knows_every_byte_and_is_reproducible():
    vocabulary = trained()
    assert len(vocabulary) == 300
    assert (vocabulary.end, list(vocabulary.separator)) == (0, [0])
    other = "\0\x7f ж ﷽ 𝄞"
    assert vocabulary.decode(vocabulary.encode(other)) == other
    assert trained().tokenizer.to_str() == vocabulary.tokenizer.to_str()


@pytest.mark.parametrize("make", [trained, spaces, lowercase, lambda: Characters(TEXT)])
def test_the_sizes_of_tokens_add_up_to_the_bytes_of_the_text(make):
    parts = [TEXT, "", "To be, not\n", "中"]
    for text, found in zip(parts, make().encode_all(parts, "text"), strict=True):
        assert len(found.sizes) == len(found.tokens)
        assert found.sizes.sum() == len(text.encode())


def test_bytes_of_a_token():
    vocabulary = trained()
    (found,) = vocabulary.encode_all([TEXT], "text")
    whole, at = TEXT.encode(), 0
    for token, size in zip(found.tokens, found.sizes, strict=True):
        assert whole[at : at + size] == vocabulary.token_bytes[token]
        at += size


@pytest.mark.parametrize("make", [lambda: train_tokenizer([TEXT], 262), spaces, lambda: Characters(TEXT)])
def test_incremental_decoding_outputs_all_characters_as_a_whole(make):
    vocabulary = make()
    tokens = vocabulary.encode(TEXT).tolist()
    assert len(vocabulary.encode("🙂")) > 1 or isinstance(vocabulary, Characters)
    for start in (0, 1, 2, 3):  # the end of the prompt determines whether a space follows
        decode = vocabulary.decoder(tokens[:start])
        shown = [decode(token) for token in tokens[start:]]
        assert not any("\ufffd" in text for text in shown)
        assert vocabulary.decode(tokens[:start]) + "".join(shown) == TEXT


def test_a_character_that_the_prompt_began_is_completed():
    vocabulary = trained()
    first, *rest = vocabulary.encode("\u4e8c").tolist()  # 二, whose bytes are tokens
    decode = vocabulary.decoder([first])
    assert [decode(token) for token in rest] == ["", "\u4e8c"]
    decode = vocabulary.decoder()
    assert [decode(token) for token in (first, rest[0], *vocabulary.encode("a"))] == ["", "", "\ufffda"]


def test_a_long_text_is_cut_between_tokens(monkeypatch):
    vocabulary = trained()
    whole = vocabulary.encode(TEXT).tolist()
    monkeypatch.setattr(subwords, "PIECE", 60)
    assert len(list(cut(TEXT, 60))) > 3
    assert vocabulary.encode(TEXT).tolist() == whole
    assert "".join(cut("no line " * 9, 10)) == "no line " * 9
    assert list(cut("", 10)) == []


def test_files_are_read_back(tmp_path):
    for name, vocabulary in (("subwords", trained()), ("spaces", spaces()), ("characters", Characters(TEXT))):
        vocabulary.save(tmp_path / f"{name}.json")
        again = read_vocabulary(tmp_path / f"{name}.json")
        assert type(again) is type(vocabulary)
        assert again.encode(TEXT).tolist() == vocabulary.encode(TEXT).tolist()
    (tmp_path / "subwords.json").rename(tmp_path / "tokenizer.json")
    assert find_tokenizer(str(tmp_path)).decode([1, 2]) == trained().decode([1, 2])


def test_a_file_at_which_the_library_panics_is_refused(tmp_path):
    """Regression test: a panic in Rust is not an `Exception`, and gave a traceback."""
    path = tmp_path / "tokenizer.json"
    trained().save(path)
    described = json.loads(path.read_text())
    described["model"]["continuing_subword_prefix"] = "9" * 10
    path.write_text(json.dumps(described))
    with pytest.raises(UserError, match="is not a tokenizer"):
        read_vocabulary(path)


def test_invalid_tokenizers(tmp_path, monkeypatch):
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(UserError, match=r"--tokenizer .*t\.json: is not a tokenizer \(.*name a tokenizer\.json"):
        find_tokenizer(str(tmp_path / "t.json"))

    def offline(name):
        raise OSError("no\nnetwork")

    monkeypatch.setattr(tokenizers.Tokenizer, "from_pretrained", offline)
    with pytest.raises(UserError, match=r"--tokenizer a/b: is not a tokenizer \(no network\)"):
        find_tokenizer("a/b")
    with pytest.raises(UserError, match="vocab_size=256: must be at least 257"):
        train_tokenizer([TEXT], 256)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'mlx-rtx\[tokenizers\]'"):
        find_tokenizer("a/b")
