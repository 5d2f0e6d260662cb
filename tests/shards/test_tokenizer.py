import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tst_lightning.errors import ConfigError
from tst_lightning.shards.tokenizer import END_OF_DOCUMENT, encode_batches, load_tokenizer, train_tokenizer

TEXT = ["the cat sat on the mat; the dog sat on the cat\n" * 20, "def the(cat):\n    return cat\n" * 20]


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer([TEXT], 280)


def test_training_gives_the_vocabulary_asked_for(trained):
    assert trained.vocab_size == 280 == trained.backend.get_vocab_size()
    assert trained.end_of_document_id == trained.backend.token_to_id(END_OF_DOCUMENT)


def test_training_is_the_same_however_the_text_is_batched(trained):
    assert train_tokenizer([[text] for text in TEXT], 280).sha256 == trained.sha256
    assert train_tokenizer([TEXT], 279).sha256 != trained.sha256


def test_a_small_corpus_gives_fewer_ids():
    assert train_tokenizer([["ab ab"]], 5000).vocab_size < 265


def test_a_vocabulary_below_the_bytes_is_refused():
    assert train_tokenizer([TEXT], 257).vocab_size == 257
    with pytest.raises(ConfigError, match="--vocab_size 256 is too small: .* at least 257"):
        train_tokenizer([TEXT], 256)


@settings(max_examples=50)
@given(texts=st.lists(st.text(), min_size=1))
def test_every_text_comes_back(texts):
    trained = train_tokenizer([TEXT], 280)
    batch = [entry for text in texts for entry in (("val", text), ("val", None))]
    ids = [ids for _, ids in encode_batches([batch], trained.encoder(), trained.end_of_document_id)]
    assert [trained.backend.decode(part) for part in ids[::2]] == texts
    assert ids[1::2] == [[trained.end_of_document_id]] * len(texts)


def test_text_that_spells_a_special_token_stays_text(trained):
    ids = trained.encoder().encode(f"a {END_OF_DOCUMENT} b", add_special_tokens=False).ids
    assert trained.end_of_document_id not in ids
    assert trained.backend.decode(ids) == f"a {END_OF_DOCUMENT} b"


def test_the_saved_folder_loads_in_transformers(trained, tmp_path):
    trained.save(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.eos_token_id == trained.end_of_document_id
    assert loaded("the cat", add_special_tokens=False).input_ids == trained.backend.encode("the cat").ids
    assert loaded.decode(loaded("the cat , sat").input_ids) == "the cat , sat"


def test_an_existing_tokenizer_as_folder_and_as_file(trained, tmp_path):
    trained.save(tmp_path)
    for name in (str(tmp_path), str(tmp_path / "tokenizer.json")):
        loaded = load_tokenizer(name)
        assert loaded.name == name
        assert (loaded.vocab_size, loaded.end_of_document_id) == (280, trained.end_of_document_id)
        loaded.save(tmp_path / "copy")
        again = load_tokenizer(str(tmp_path / "copy"))
        assert again.sha256 == loaded.sha256
        assert again.backend.encode("the cat sat").ids == trained.backend.encode("the cat sat").ids


def test_truncation_and_padding_of_an_existing_tokenizer_do_not_touch_the_corpus(trained, tmp_path):
    backend = Tokenizer.from_str(trained.backend.to_str())
    backend.enable_truncation(4)
    backend.enable_padding(length=9)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END_OF_DOCUMENT).save_pretrained(tmp_path)
    encoder = load_tokenizer(str(tmp_path)).encoder()
    assert encoder.encode("the cat sat on the mat").ids == trained.backend.encode("the cat sat on the mat").ids


def test_the_end_of_document_token_is_the_one_the_folder_names(trained, tmp_path):
    backend = Tokenizer.from_str(trained.backend.to_str())
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.end_of_document_id == 280
    assert loaded.vocab_size == 281  # the added token is beyond the model's vocabulary


def test_a_tokenizer_without_end_of_document_token_is_refused(tmp_path):
    Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="names no end-of-document token"):
        load_tokenizer(str(tmp_path / "tokenizer.json"))


def test_a_broken_tokenizer_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the variable is read at import
    broken = tmp_path / "tokenizer.json"
    broken.write_text(json.dumps({"model": 3}))
    for name in (str(broken), str(tmp_path), "no/such-tokenizer"):
        with pytest.raises(ConfigError, match="can't load tokenizer") as caught:
            load_tokenizer(name)
        assert "\n" not in str(caught.value)
