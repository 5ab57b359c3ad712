"""Texts as windows of tokens: every token is predicted once, token files are made once, bad texts are refused."""

import json
import os

import numpy as np
import pytest
import torch

import data_sets.TEXT as text_module
from data_sets._batches import make_batches
from data_sets._texts import PIECE_BYTES, documents, split_texts
from data_sets._tokens import TokenWindows, keep_tokens, kept_tokens, resident_windows, token_type
from data_sets.STDLIB import STDLIB
from data_sets.TEXT import TEXT
from pruning.errors import UsageError
from tests.support.tiers import few


def refusal(function, *arguments, **named):
    """The message, which must be one line."""
    with pytest.raises(UsageError) as caught:
        function(*arguments, **named)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    return message


def text_of(windows, targets):
    """The text that windows are of: the first token, then whatever is predicted, in order."""
    predicted = targets[:, 1:].flatten()
    return bytes([int(windows[0, 0]), *predicted[predicted != -100].tolist()])


def parts_of(data_set):
    """The texts of the training and the test part."""
    return [text_of(*data_set.train()), text_of(*data_set.test())]


# -- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", few(range(4, 40), [4, 5, 6, 7, 10, 13]))
def test_every_token_but_the_first_is_predicted_once_by_what_stands_before_it(count):
    tokens = torch.arange(count) + 1
    windows, targets = resident_windows("TEXT", "test", tokens, 4)
    counted = targets[:, 1:].flatten()
    assert counted[counted != -100].tolist() == list(range(2, count + 1))
    assert windows.shape == targets.shape == (-(-(count - 1) // 3), 4)
    known = targets != -100
    assert torch.equal(windows[known], targets[known])
    assert (windows[:, 1:] == windows[:, :-1] + 1).all()


def test_windows_of_a_file_are_those_in_memory(tmp_path):
    tokens = torch.from_numpy(np.random.RandomState(0).randint(0, 70_000, 50))
    file = keep_tokens(tmp_path / "tokens", "x", [tokens[:20].numpy(), tokens[20:].numpy()], 70_000)
    lazily = TokenWindows("TEXT", "test", file, 8)
    windows, targets = resident_windows("TEXT", "test", tokens, 8)
    assert len(lazily) == len(windows)
    for number, (window, target) in enumerate(lazily):
        assert torch.equal(window, windows[number]) and torch.equal(target, targets[number])
        if number + 1 == len(windows):
            break


def test_a_text_shorter_than_one_window_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a short text\n" * 30)
    message = refusal(TEXT(str(tmp_path), context=256).test)
    assert "test text has 39 tokens" in message and "--context 256" in message
    assert "training text has 0 tokens" in refusal(resident_windows, "TEXT", "training", torch.zeros(0), 4)


# -- the standard library ---------------------------------------------------------------------------------------------


def test_the_standard_library_is_text_of_a_fixed_size_and_split():
    data_set = STDLIB(text_bytes=20_000, context=64)
    training, testing = parts_of(data_set)
    assert (len(training), len(testing)) == (20_000, 2_000)
    assert b"def " in training and b"import " in training
    assert [training, testing] == parts_of(STDLIB(text_bytes=20_000, context=64))
    # More text begins with the same text, and no file is in both parts.
    more, more_tested = parts_of(STDLIB(text_bytes=200_000))
    assert more.startswith(training) and more_tested.startswith(testing)
    assert testing[:500] not in more and training[:500] not in more_tested


def test_batches_of_the_standard_library_are_tokens():
    batches = make_batches(STDLIB(text_bytes=20_000, context=32), "train", batch_size=4, device="cpu")
    inputs, targets = next(iter(batches))
    assert inputs.dtype == targets.dtype == torch.int64 and inputs.shape == targets.shape == (4, 32)
    assert torch.equal(inputs, targets)


# -- a user's texts ---------------------------------------------------------------------------------------------------


def test_the_last_tenth_of_every_file_is_for_testing(tmp_path):
    (tmp_path / "deep").mkdir()
    first = "".join(f"line {number}\n" for number in range(100))
    (tmp_path / "deep" / "b.md").write_text(first)
    (tmp_path / "a.txt").write_text(first.upper())
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / "picture.png").write_text("no text")
    training, testing = parts_of(TEXT(str(tmp_path), context=16))
    cut = first.index("line 90\n") + len("line 90\n")  # the line that the tenth begins in stays whole
    assert training.decode() == first.upper()[:cut] + "\n" + first[:cut]
    assert testing.decode() == first.upper()[cut:] + "\n" + first[cut:]


@pytest.mark.parametrize("names", [("train/x.txt", "val/y.txt"), ("train.txt", "test.txt"), ("train.md", "valid.txt")])
def test_parts_that_the_user_named_are_taken(tmp_path, names):
    for name, text in zip(names, ("for training", "for a test  "), strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert parts_of(TEXT(str(tmp_path), context=4)) == [b"for training", b"for a test  "]


def test_records_are_documents_and_are_not_cut(tmp_path):
    lines = [{"text": "één"}, "plain", {"text": "two\nlines", "more": 1}, {"text": "last"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    training, testing = parts_of(TEXT(str(tmp_path / "a.jsonl"), context=2))
    assert training.decode() == "één\nplain\ntwo\nlines" and testing.decode() == "last"


@pytest.mark.parametrize("text", ["ü" * 1000, "x" * 999 + "\n", "a\n" + "ü" * 500, "", "ü"])
def test_a_text_without_lines_is_cut_between_letters(tmp_path, text):
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    training, testing = split_texts("TEXT", tmp_path)
    parts = [b"".join(b"".join(one) for one in documents("TEXT", part)).decode() for part in (training, testing)]
    assert "".join(parts) == text
    if len(text) > 100:
        assert 0.08 < len(parts[1]) / len(text) < 0.12


def test_long_texts_come_in_pieces_that_add_up(tmp_path):
    line = "äöü " * 100 + "\n"
    text = "\ufeff" + line * 5000 + "ß" * (3 * PIECE_BYTES)
    (tmp_path / "train.txt").write_text(text, encoding="utf-8")
    (tmp_path / "test.txt").write_text("unused")
    training, _ = split_texts("TEXT", tmp_path)
    (document,) = documents("TEXT", training)
    pieces = list(document)
    assert len(pieces) > 3 and max(map(len, pieces)) <= 2 * PIECE_BYTES + 2
    assert "".join(piece.decode() for piece in pieces) == text[1:]  # without the mark at its start


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.pdf", "x", "only .pdf"),
        ("a.jsonl", '{"text": "abc"}\n{"texts": "b"}\n', "line 2 has no text in a field 'text'; it has 'texts'"),
        ("a.jsonl", '{"text": "abc"}\n{"text": 3}\n', "line 2 has no text"),
        ("a.jsonl", '{"text": "abc"}\n{"text\n', "line 2 is no JSON"),
    ],
)
def test_files_that_hold_no_text_are_refused(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    assert says in refusal(lambda: parts_of(TEXT(str(tmp_path), context=2)))


def test_places_without_texts_are_refused(tmp_path):
    assert str(tmp_path / "none") in refusal(TEXT, str(tmp_path / "none"))
    assert "nothing" in refusal(TEXT, str(tmp_path))
    (tmp_path / "a.doc").write_text("x")
    assert ".txt, .md, .jsonl" in refusal(TEXT, str(tmp_path / "a.doc"))
    assert "no folder" in refusal(TEXT, str(_text(tmp_path)), tokenizer=str(tmp_path / "none"))
    assert "no tokenizer" in refusal(TEXT, str(_text(tmp_path)), tokenizer=str(tmp_path))


def _text(folder, text="some words\n" * 100):
    (folder / "a.txt").write_text(text)
    return folder / "a.txt"


# -- token files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("vocabulary", "dtype"), [(2, "uint8"), (256, "uint8"), (257, "uint16"), (70_000, "uint32")])
def test_tokens_are_kept_in_the_smallest_type(tmp_path, vocabulary, dtype):
    tokens = np.array([0, vocabulary - 1])
    file = keep_tokens(tmp_path / "tokens", "x", [tokens], vocabulary)
    assert file.dtype == dtype == token_type(vocabulary)
    assert file.read(0, 2).tolist() == tokens.tolist()


@pytest.mark.parametrize("harm", ["cut", "turned", "emptied", "other"])
def test_a_damaged_or_stale_token_file_is_not_taken(tmp_path, harm):
    file = keep_tokens(tmp_path / "tokens", "text 1", [np.arange(100)], 256)
    assert kept_tokens(file.path, "text 1").read(0, 100).tolist() == list(range(100))
    content = bytearray(file.path.read_bytes())
    if harm == "cut":
        content = content[:-1]
    elif harm == "turned":
        content[-7] ^= 1
    elif harm == "emptied":
        content = bytearray()
    file.path.write_bytes(content)
    assert kept_tokens(file.path, "text 2" if harm == "other" else "text 1") is None
    assert os.listdir(tmp_path) == ["tokens"]


def test_a_large_text_is_turned_into_tokens_once_and_read_as_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(text_module, "RESIDENT_TOKENS", 100)
    file = _text(tmp_path)
    data_set = TEXT(str(file), context=16)
    assert isinstance(data_set.train(), TokenWindows)
    (cache,) = tmp_path.glob(".a.txt-training-*.tokens")
    written = cache.stat().st_mtime_ns
    batches = make_batches(TEXT(str(file), context=16), "train", batch_size=5, device="cpu", workers=0)
    seen = torch.cat([targets[:, 1:][targets[:, 1:] != -100] for _, targets in batches])
    assert cache.stat().st_mtime_ns == written
    whole = b"".join(b"".join(document) for document in documents("TEXT", data_set.parts["training"]))
    assert sorted(seen.tolist()) == sorted(whole[1:])
    # Other words of the same length, at what may be the same time: only the content tells.
    kept = os.stat(file)
    file.write_text(file.read_text().replace("some", "more"))
    os.utime(file, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    changed = TEXT(str(file), context=16).train()
    assert bytes(changed[0][0][:4].tolist()) == b"more"


def test_a_folder_that_cannot_be_written_to_only_costs_time(tmp_path, monkeypatch):
    monkeypatch.setattr(text_module, "RESIDENT_TOKENS", 100)
    monkeypatch.setattr("data_sets._tokens.open", _refuse, raising=False)
    windows, _ = TEXT(str(_text(tmp_path)), context=16).train()
    assert bytes(windows[0].tolist()) == b"some words\nsome "
    assert os.listdir(tmp_path) == ["a.txt"]


def _refuse(*_args, **_kwargs):
    raise PermissionError("read-only")


# -- tokenizers -------------------------------------------------------------------------------------------------------


@pytest.fixture
def word_tokenizer(tmp_path):
    """A folder with a tokenizer of three words, in the form of transformers."""
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<end>": 1, "some": 2, "words": 3}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", unk_token="<unk>")
    folder = tmp_path / "model"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("by", ["flag", "model", "file"])
def test_a_tokenizer_makes_the_tokens(tmp_path, word_tokenizer, by):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "train.txt").write_text("some words some\n" * 3)
    (texts / "test.jsonl").write_text('{"text": "some words"}\n{"text": "new words"}\n')
    settings = {"tokenizer": str(word_tokenizer)} if by != "model" else {"model": f"hf/{word_tokenizer}"}
    if by == "file":  # which is enough, whatever else a folder lacks
        (word_tokenizer / "tokenizer_config.json").unlink()
    data_set = TEXT(str(texts), context=3, **settings)
    assert data_set.num_classes == 4 and data_set.input_shape == (3,)
    predicted = [targets[:, 1:].flatten() for _, targets in (data_set.train(), data_set.test())]
    train, test = ([token for token in part.tolist() if token != -100] for part in predicted)
    assert train == [3, 2, 2, 3, 2, 2, 3, 2]
    end = [1] if by != "file" else []  # which that file does not name; and to this tokenizer a line break is nothing
    assert test == [3, *end, 0, 3]
    assert len(list(texts.glob(".*.tokens"))) == 2


def test_code_that_lies_beside_a_tokenizer_is_refused(tmp_path, word_tokenizer):
    file = word_tokenizer / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": {"AutoTokenizer": ["code.T", None]}}))
    assert "auto_map" in refusal(TEXT, str(_text(tmp_path)), tokenizer=str(word_tokenizer))
    (word_tokenizer / "tokenizer.json").write_text("{")
    file.unlink()
    assert "cannot be read" in refusal(TEXT, str(tmp_path / "a.txt"), tokenizer=str(word_tokenizer))


def test_a_tokenizer_needs_text_in_utf_8(tmp_path, word_tokenizer):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9\n" * 100)
    assert "UTF-8" in refusal(TEXT(str(tmp_path / "a.txt"), tokenizer=str(word_tokenizer), context=4).train)
