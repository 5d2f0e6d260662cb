"""The tokenizer of a folder of shards: trained on its documents, or an existing one."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tst_lightning.errors import ConfigError, RunError

END_OF_DOCUMENT = "<|endoftext|>"
TRAINED = "byte-level BPE"
_AROUND_THE_TEXT = {"post_processor", "truncation", "padding"}


@dataclass(frozen=True)
class ShardTokenizer:
    """A tokenizer with what shards need to know of it.

    Attributes:
        name: "byte-level BPE" if trained here, else what was given.
        backend: encodes text.
        vocab_size: the largest id plus one.
        end_of_document_id: the id after each document.
        sha256: hash of its canonical JSON.
        pretrained: the transformers tokenizer it came from, None if trained here.
    """

    name: str
    backend: Tokenizer
    vocab_size: int
    end_of_document_id: int
    sha256: str
    pretrained: Any = None

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json and what transformers needs to load the folder.

        Raises:
            RunError: the files can't be written.
            OSError: the same.
        """
        if self.pretrained is None:
            self.save_plain(folder)
            return
        try:
            self.pretrained.save_pretrained(folder)
        except OSError:
            raise
        except Exception as error:  # the tokenizers library raises bare Exception for what the file system refuses
            raise RunError(f"can't save the tokenizer to '{folder}': {error}") from error

    def save_plain(self, folder: Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json, by the class that every version of transformers knows.

        It gives a text the ids that it has in the shards: puts nothing around it and cuts nothing off. The end-of-document
        token ends a text, pads, and is what a text begins after.

        Raises:
            OSError: the files can't be written.
        """
        content = json.loads(self.backend.to_str()) | dict.fromkeys(_AROUND_THE_TEXT)
        end = self.backend.id_to_token(self.end_of_document_id)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **dict.fromkeys(["eos_token", "bos_token", "pad_token"], end),
            "clean_up_tokenization_spaces": False,
        }
        for name, part in {"tokenizer.json": content, "tokenizer_config.json": config}.items():
            (folder / name).write_text(json.dumps(part, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def encoder(self) -> Tokenizer:
        """A copy that encodes text and nothing else.

        No padding, no truncation, and text that spells a special token stays text: else a document that quotes
        "<|endoftext|>" would be cut in two.
        """
        copy = Tokenizer.from_str(self.backend.to_str())
        copy.no_padding()
        copy.no_truncation()
        copy.encode_special_tokens = True
        return copy


def train_tokenizer(batches: Iterable[list[str]], vocab_size: int, show_progress: bool = False) -> ShardTokenizer:
    """Trains a byte-level BPE, so that every text can be encoded and decoded without loss.

    Args:
        batches: text; streamed, only word counts are held.
        vocab_size: ids to have at most, 256 bytes and the end-of-document token among them; a small corpus may give
            fewer.
        show_progress: draw the library's progress bars.

    Returns:
        The tokenizer; the same text gives the same one.

    Raises:
        ConfigError: a vocabulary too small for the bytes and the end-of-document token.
    """
    least = 256 + 1
    if vocab_size < least:
        raise ConfigError(
            f"--vocab_size {vocab_size} is too small: 256 bytes and {END_OF_DOCUMENT} need at least {least}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=show_progress,
    )
    tokenizer.train_from_iterator(batches, trainer)
    end = tokenizer.token_to_id(END_OF_DOCUMENT)
    assert end is not None  # the trainer gives special tokens the first ids
    return _describe(TRAINED, tokenizer, end)


def load_tokenizer(name: str) -> ShardTokenizer:
    """Loads an existing tokenizer.

    Args:
        name: a tokenizer.json file, a folder that transformers can load, or a name on the Hugging Face hub.

    Raises:
        ConfigError: nothing that can be loaded, no fast tokenizer, or no end-of-document token.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = Path(name)
    loaded: Any
    try:
        if path.is_file():
            loaded = PreTrainedTokenizerFast(tokenizer_file=str(path))
        else:
            # A folder may bring code of its own and ask for it to be run.
            loaded = AutoTokenizer.from_pretrained(name, local_files_only=path.is_dir(), trust_remote_code=False)
    except Exception as error:  # the library's own kinds: OSError, ValueError, bare Exception for a broken file
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ConfigError(
            f"can't load tokenizer '{name}': {reason}; give a tokenizer.json, a folder with one, or a hub name"
        ) from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ConfigError(f"tokenizer '{name}' has no tokenizer.json; save it in that form (a fast tokenizer) first")
    end = loaded.eos_token_id
    if end is None:  # a bare tokenizer.json doesn't say; one trained here is known by its token
        end = backend.token_to_id(END_OF_DOCUMENT)
    if end is None:
        raise ConfigError(
            f"tokenizer '{name}' names no end-of-document token; "
            "give a folder whose tokenizer_config.json sets eos_token, to a token of the vocabulary"
        )
    return _describe(name, backend, end, loaded)


def canonical_sha256(text: str) -> str:
    """Hash of what in a tokenizer's JSON decides the ids of a text, whatever its layout; it stands in the manifest.

    What adds special tokens, pads or truncates is not used here, and transformers writes it anew on every saving.
    """
    parts = {key: value for key, value in json.loads(text).items() if key not in _AROUND_THE_TEXT}
    content = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


def _describe(name: str, backend: Tokenizer, end: int, pretrained: Any = None) -> ShardTokenizer:
    vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
    sha256 = canonical_sha256(backend.to_str())
    return ShardTokenizer(name, backend, vocab_size, end, sha256, pretrained)


def encode_batches(
    batches: Iterable[list[tuple[str, str | None]]], encoder: Tokenizer, end_of_document_id: int
) -> Iterator[tuple[str, list[int]]]:
    """Encodes pieces of documents, each batch on all cores.

    Args:
        batches: of (split, piece of text), with (split, None) after a document's last piece.
        encoder: from :meth:`ShardTokenizer.encoder`.
        end_of_document_id: what stands for None.

    Yields:
        The split and the ids of each entry, in order.
    """
    for batch in batches:
        texts = [piece for _, piece in batch if piece is not None]
        encodings = iter(encoder.encode_batch_fast(texts, add_special_tokens=False))
        for split, piece in batch:
            yield split, [end_of_document_id] if piece is None else next(encodings).ids
