"""Text to token ids and back, without transformers: the same class trains, serves, and reads checkpoints of others.

V vocabulary, T tokens. Its files are the ones that ``transformers.AutoTokenizer.from_pretrained(folder)`` loads, and that gives
the same ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from ssl_core.data.text.encoding import Encoder
from ssl_core.data.text.words import byte_of_character, continues_word, is_spaceless
from ssl_core.errors import UserError

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIALS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
"""The names of special tokens in a tokenizer that is trained here, in the order of their ids."""

_STAND_INS = {"cls": "bos", "sep": "eos"}
_USUAL = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
_VOCABULARY_FILE = "vocab.txt"


class Tokenizer:
    """What turns texts into ids ``0 .. V-1``.

    Special tokens are never found in a text: a text that says ``[MASK]`` holds five or so ordinary tokens.
    """

    def __init__(self, backend: tokenizers.Tokenizer, specials: dict[str, str]) -> None:
        """``specials``: the token's text for each of pad, unk, cls, sep and mask; all of them in the vocabulary."""
        backend.no_truncation()
        backend.no_padding()
        self._specials = {role: specials[role] for role in SPECIALS}
        ids: dict[str, Any] = {role: backend.token_to_id(token) for role, token in self._specials.items()}
        backend.add_special_tokens([AddedToken(token, special=True) for token in dict.fromkeys(specials.values())])
        cls, sep = self._specials["cls"], self._specials["sep"]
        # One template for all: what AutoTokenizer adds is what packing adds, whatever a checkpoint's own file says.
        backend.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {sep} $B:0 {sep}:0",
            special_tokens=[(cls, ids["cls"]), (sep, ids["sep"])],
        )
        backend.encode_special_tokens = True
        self._backend = backend
        self.pad_id: int = ids["pad"]
        self.unk_id: int = ids["unk"]
        self.cls_id: int = ids["cls"]
        self.sep_id: int = ids["sep"]
        self.mask_id: int = ids["mask"]

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """The tokenizer in ``folder``: ``tokenizer.json`` as the tokenizers library writes it, or BERT's ``vocab.txt``.

        Raises ``UserError`` where there is none, where it cannot be read, or where it lacks a mask token (then no token can be
        predicted) or another special token.
        """
        config = _read_json(folder / "special_tokens_map.json") | _read_json(folder / CONFIG_FILE)
        try:
            if (folder / TOKENIZER_FILE).is_file():
                backend = tokenizers.Tokenizer.from_str((folder / TOKENIZER_FILE).read_text(encoding="utf-8"))
            else:
                backend = _from_vocabulary(folder / _VOCABULARY_FILE, config)
        except FileNotFoundError:
            raise UserError(
                f"there is no {TOKENIZER_FILE} and no {_VOCABULARY_FILE}", place=str(folder),
                next_step="name a folder that holds its tokenizer, as save_pretrained of a fast tokenizer writes it",
            ) from None  # fmt: skip
        except Exception as error:  # the library raises plain Exception for anything that it cannot parse
            raise UserError(
                f"the tokenizer cannot be read: {error}", place=str(folder), next_step="write its files anew"
            ) from error
        specials = {role: _find_special(role, config, backend) for role in SPECIALS}
        specials["unk"] = specials["unk"] or specials["pad"]  # on bytes nothing is unknown, and some have no such token
        if missing := [role for role, token in specials.items() if not token]:
            raise UserError(
                f"the tokenizer has no {' and no '.join(missing)} token", place=str(folder),
                next_step="take a checkpoint of a masked language model (BERT, ModernBERT), or add the token and name it in "
                + CONFIG_FILE,
            )  # fmt: skip
        return cls(backend, {role: str(token) for role, token in specials.items()})

    def save(self, folder: Path, *, max_length: int | None = None) -> None:
        """Writes ``tokenizer.json`` and ``tokenizer_config.json``; ``max_length`` is where AutoTokenizer cuts if it is told to cut."""
        folder.mkdir(parents=True, exist_ok=True)
        config = self._config | ({"model_max_length": max_length} if max_length else {})
        (folder / TOKENIZER_FILE).write_text(self._backend.to_str(), encoding="utf-8")
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without special tokens; nothing is ever cut off."""
        ids, lengths = self.encode_flat(texts)
        return [part.tolist() for part in np.split(ids, lengths.cumsum()[:-1])] if len(texts) else []

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """int64 ids ``(T,)`` of N texts one after the other, and the number of each text's ids ``(N,)``."""
        return self._encoder.encode(texts)

    def decode(self, ids: Sequence[int]) -> str:
        """A text for ``ids``, special tokens left out. With byte-level BPE without added words it is the text that was encoded."""
        ids = [int(i) for i in ids]
        ends = [i for i, token in enumerate(ids) if token in self._added]
        if not ends:
            text = str(self._backend.decode(ids, skip_special_tokens=True))
            return text[1:] if self._has_prefix_space and text.startswith(" ") else text
        # An added word has taken the space before it.
        parts: list[str] = []
        start = 0
        for end in ends:
            parts += [self.decode(ids[start:end]), self._added[ids[end]]]
            start = end + 1
        return " ".join(part for part in (*parts, self.decode(ids[start:])) if part)

    def add_words(self, words: Sequence[str]) -> None:
        """Makes each of ``words`` one token; those that the vocabulary lacks get new ids at the end.

        Raises ``UserError`` where one is a special token: texts would then hold what stands for no text.
        """
        special = {token.content for token in self._backend.get_added_tokens_decoder().values() if token.special}
        if taken := [word for word in words if word in special]:
            raise UserError(
                f"{', '.join(taken)}: a special token of the tokenizer, which never occurs in a text",
                place="tokenizer.added",
                next_step="remove it from tokenizer.added",
            )
        self._backend.add_tokens(
            [
                AddedToken(
                    word,
                    # Between letters it is another word's part ("cat" in "category"); a script without spaces has no such edge.
                    single_word=not (is_spaceless(word[0]) or is_spaceless(word[-1])),
                    lstrip=True,
                    # Found in any case where text is made lower case; not where normalising would set spaces within the word.
                    normalized=not any(map(is_spaceless, word)),
                )
                for word in words
            ]
        )
        for name in ("size", "continues", "digest", "special_ids", "_added", "_vocabulary", "_encoder"):
            self.__dict__.pop(name, None)

    def __reduce__(self) -> tuple[Any, ...]:
        # The library's own pickle forgets that a text holds no special tokens.
        return _rebuilt, (self._backend.to_str(), self._specials)

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self._backend)

    @cached_property
    def size(self) -> int:
        """V: one more than the largest id."""
        return max(self._vocabulary.values()) + 1

    @cached_property
    def kind(self) -> str:
        """``wordpiece``, ``bpe``, ``unigram`` or ``wordlevel``."""
        return str(type(self._backend.model).__name__).lower()

    @cached_property
    def special_ids(self) -> tuple[int, ...]:
        """Ids that stand for no text, ascending."""
        added = self._backend.get_added_tokens_decoder()
        return tuple(sorted(i for i, token in added.items() if token.special))

    @cached_property
    def continues(self) -> np.ndarray:
        """``(V,)`` bool: where a token goes on with the word before it.

        WordPiece says so (``##ing``). In BPE and Unigram a token without the mark of a space does so if it begins with a
        letter or digit of a script with spaces: a comma is no part of the word before it, and a Chinese character is a word of
        its own, as in BERT.
        """
        found = np.zeros(self.size, dtype=bool)
        structure = json.loads(self._backend.to_str())
        words = set(self.special_ids) | set(self._added)
        prefix = structure["model"].get("continuing_subword_prefix")
        on_bytes = '"ByteLevel"' in json.dumps([structure["pre_tokenizer"], structure["decoder"]])
        for token, number in self._vocabulary.items():
            if number in words or self.kind == "wordlevel":
                continue
            if prefix:
                found[number] = token.startswith(prefix)
            elif on_bytes:
                found[number] = continues_word(bytes(byte_of_character(c) for c in token))
            elif len(token) == 6 and token.startswith("<0x"):
                found[number] = continues_word(bytes.fromhex(token[3:5]))
            else:
                found[number] = continues_word(token.replace("▁", " ").encode())
        found.setflags(write=False)
        return found

    @cached_property
    def fallback_ids(self) -> tuple[int, ...]:
        """Ids of single bytes that stand in for characters that the vocabulary lacks (Unigram), ascending."""
        return tuple(sorted(i for token, i in self._vocabulary.items() if len(token) == 6 and token.startswith("<0x")))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over its files: other digest, other ids."""
        files = [self._backend.to_str(), json.dumps(self._config)]
        return hashlib.sha256("\0".join(files).encode()).hexdigest()

    @property
    def _config(self) -> dict[str, Any]:
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{f"{role}_token": token for role, token in self._specials.items()},
            "split_special_tokens": True,
            "clean_up_tokenization_spaces": False,
            # All of BERT's token types are 0 here, and ModernBERT has none.
            "model_input_names": ["input_ids", "attention_mask"],
        }

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        return dict(self._backend.get_vocab(with_added_tokens=True))

    @cached_property
    def _added(self) -> dict[int, str]:
        """Added words by id."""
        added = self._backend.get_added_tokens_decoder()
        return {i: token.content for i, token in added.items() if not token.special}

    @property
    def _has_prefix_space(self) -> bool:
        before = self._backend.pre_tokenizer
        return isinstance(before, pre_tokenizers.ByteLevel) and bool(before.add_prefix_space)


def _rebuilt(structure: str, specials: dict[str, str]) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(structure), specials)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"not JSON: {error}", place=str(path), next_step="write the tokenizer's files anew") from None
    return content if isinstance(content, dict) else {}


def _find_special(role: str, config: dict[str, Any], backend: tokenizers.Tokenizer) -> str | None:
    """The text of a special token: as configured, or under one of the usual names, where the vocabulary has it."""
    named = [config.get(f"{role}_token"), config.get(f"{_STAND_INS.get(role, role)}_token")]
    named = [token.get("content") if isinstance(token, dict) else token for token in named]
    for token in (*named, *_USUAL[role]):
        if isinstance(token, str) and token and backend.token_to_id(token) is not None:
            return token
    return None


def _from_vocabulary(path: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    """BERT's own form: one token a line, its id the line's number."""
    # Not splitlines(): what it takes for a line's end besides (U+0085, U+2028) may be a token.
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    vocabulary = {token: i for i, token in enumerate(lines)}
    backend = tokenizers.Tokenizer(
        models.WordPiece(vocabulary, unk_token=SPECIALS["unk"], max_input_chars_per_word=100)
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=bool(config.get("do_lower_case", True)))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend
