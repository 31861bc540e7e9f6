"""Text <-> token ids, by Hugging Face `tokenizers` (the Rust library, not transformers).

Three sources: an alphabet (`characters`) or the characters of a text (`characters_of`), a corpus (`train_bpe`), a
directory that holds `tokenizer.json` or `vocab.json` with `merges.txt` (`Tokenizer.from_dir`; by the name of a model,
GPT-2's say, `models.pretrained.load_tokenizer`). A text that a vocabulary cannot spell is refused, never cut. Whether
a model puts the start token first is the model's business (`default_prepend_bos`); `encode` never adds one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Core

from interp.errors import LabError
from interp.files import write_text
from models.word_pieces import AROUND, surround, word_pieces
from models.word_pieces import ROLES as _WORD_PIECE_ROLES

ROLES = ("bos_token", "eos_token", "pad_token", "mask_token")
END = "<|endoftext|>"
PAD = "<|pad|>"
# GPT-2's split, but digits go in pairs: " 1732" is " 17" and "32", whatever the corpus.
_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


_RARE = "☃ꙮ𓀀"  # if a vocabulary has any way with characters that it lacks, it has one with these


class NoTokenizerError(LabError):
    """A directory that holds no tokenizer."""


@dataclass(frozen=True)
class Tokenizer:
    """A `tokenizers.Tokenizer` that knows its start, end, padding and mask tokens.

    Raises:
        LabError: one of these that is not in the vocabulary.
    """

    core: Core
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    mask_token: str | None = None

    def __post_init__(self) -> None:
        for role in ROLES:
            token = getattr(self, role)
            if token is not None and self.core.token_to_id(token) is None:
                raise LabError(f"{role} {token!r} is not in the tokenizer's vocabulary of {len(self)} tokens.")

    def __len__(self) -> int:
        """Size of the vocabulary, special tokens included."""
        return self.core.get_vocab_size(with_added_tokens=True)

    @property
    def bos_token_id(self) -> int | None:
        return self._id(self.bos_token)

    @property
    def eos_token_id(self) -> int | None:
        return self._id(self.eos_token)

    @property
    def pad_token_id(self) -> int | None:
        return self._id(self.pad_token)

    @property
    def mask_token_id(self) -> int | None:
        return self._id(self.mask_token)

    @property
    def unk_token_id(self) -> int | None:
        """What stands for words that the vocabulary lacks; None where there is no such token."""
        return self._id(getattr(self.core.model, "unk_token", None))

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of the tokens that stand for no text."""
        special = {i for i, token in self.core.get_added_tokens_decoder().items() if token.special}
        named = {self._id(getattr(self, role)) for role in ROLES} - {None}
        return sorted(special | {i for i in named if i is not None})

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """The ids of a text, by default without start or end tokens, which the file may have a rule to add.

        Raises:
            LabError: the text has a character for which the vocabulary has no token; the first one is named, with its
                place.
        """
        try:
            ids = self.core.encode(text, add_special_tokens=add_special_tokens).ids
        except Exception as error:  # the Rust library raises bare Exceptions
            self._refuse_missing(text)
            raise LabError(f"this tokenizer cannot encode {text!r}: {error}.") from error
        if self._leaves_out:
            self._refuse_missing(text)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens written out."""
        return self.core.decode(list(ids), skip_special_tokens=False)

    def strings(self, ids: Sequence[int]) -> list[str]:
        """The text that each id stands for inside a text: leading spaces stay, also where `decode` drops the first.

        A token that is part of a character shows as the replacement character.
        """
        return [self._string(int(i)) for i in ids]

    def _string(self, token: int) -> str:
        # Decoders may strip the space at the start of a text, so the token is decoded behind another one. A special
        # token would not do: some decoders treat what follows it as a start.
        alone, twice = self.decode([token]), self.decode([token, token])
        return twice[len(alone) :] if twice.startswith(alone) and len(twice) > 2 * len(alone) else alone

    def save(self, directory: str | Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, as transformers reads them too."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        roles = {role: getattr(self, role) for role in ROLES}
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{role: token for role, token in roles.items() if token is not None},
            "clean_up_tokenization_spaces": False,
        }
        write_text(directory / "tokenizer.json", self.core.to_str(pretty=True))
        write_text(directory / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")

    @classmethod
    def from_dir(cls, directory: str | Path) -> Tokenizer:
        """Read a Hugging Face directory: `tokenizer.json`, or else `vocab.json` with `merges.txt`, or `vocab.txt`.

        Start, end, padding and mask tokens come from `tokenizer_config.json` and `special_tokens_map.json`.

        Raises:
            NoTokenizerError: the directory has neither.
            LabError: a file is there but cannot be read.
        """
        directory = Path(directory)
        roles = _roles(directory)
        if (directory / "tokenizer.json").is_file():
            core = _read_core(directory / "tokenizer.json")
        elif (directory / "vocab.txt").is_file():
            core, roles = word_pieces(directory), {**_WORD_PIECE_ROLES, **roles}
        elif (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
            core = _byte_level(directory)
            if not roles and core.token_to_id(END) is not None:
                roles = {"bos_token": END, "eos_token": END}
        else:
            raise NoTokenizerError(
                f"no tokenizer in {directory}: expected tokenizer.json, or vocab.json with merges.txt, or vocab.txt.  "
                "Token ids work without one."
            )
        special = [AddedToken(token, special=True, normalized=False) for token in dict.fromkeys(roles.values())]
        core.add_special_tokens([token for token in special if core.token_to_id(token.content) is not None])
        known = {role: token for role, token in roles.items() if core.token_to_id(token) is not None}
        surround(core, known)
        return cls(core, **{role: token for role, token in known.items() if role in ROLES})

    @cached_property
    def _leaves_out(self) -> bool:
        """Whether characters that the vocabulary lacks get no token at all, as in a BPE without an unknown token."""
        return any(not self._spells(character) for character in _RARE)

    def _spells(self, character: str) -> bool:
        try:
            some = bool(self.core.encode(character, add_special_tokens=False).ids)
        except Exception:  # the Rust library raises bare Exceptions
            return False
        read = self.core.normalizer.normalize_str(character) if self.core.normalizer else character
        return some or (read.isspace() and self.core.pre_tokenizer is not None)  # which may split at spaces

    def _refuse_missing(self, text: str) -> None:
        """Raises:
        LabError: the vocabulary lacks a character of the text, outside of its special tokens.
        """
        if not (lacking := {character for character in set(text) if not self._spells(character)}):
            return
        special = [re.escape(token.content) for token in self.core.get_added_tokens_decoder().values()]
        pieces = "|".join([*special, f"([{re.escape(''.join(sorted(lacking)))}])"])
        offset = next((found.start() for found in re.finditer(pieces, text) if found[1]), None)
        if offset is None:
            return
        line, column = text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)
        raise LabError(
            f"the vocabulary of {len(self)} tokens cannot encode {text[offset]!r} (U+{ord(text[offset]):04X}), line "
            f"{line}, column {column} of the text (offset {offset}).  Take it out, or use "
            "a byte-level vocabulary (models.tokenizers.train_bpe), which spells any text."
        )

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self.core.token_to_id(token)


def characters(alphabet: str) -> Tokenizer:
    """One token per character of `alphabet`, in that order, then the end-of-text token (which also starts a text).

    Raises:
        LabError: a character occurs twice, or there is none. Encoding raises on a character outside the alphabet.
    """
    if not alphabet or len(set(alphabet)) != len(alphabet):
        raise LabError(f"an alphabet needs one or more different characters, not {alphabet!r}.")
    core = Core(models.WordLevel({character: i for i, character in enumerate(alphabet)}, unk_token=None))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens([END])
    return Tokenizer(core, bos_token=END, eos_token=END)


def characters_of(text: str) -> Tokenizer:
    """One token per character that occurs in `text`, in the order of their code points; see `characters`.

    Raises:
        LabError: an empty text.
    """
    if not text:
        raise LabError("an empty text has no characters; expected at least one.")
    return characters("".join(sorted(set(text))))


def train_bpe(texts: Iterable[str], vocab_size: int, min_frequency: int = 2) -> Tokenizer:
    """A byte-level BPE learned from `texts`: any text encodes and decodes without loss.

    Ids: 0 end of text (which also starts a text), 1 padding, 2..257 the bytes, then the merges in the order learned.
    Digits are split in pairs, so years line up. `vocab_size` is an upper bound; merges rarer than `min_frequency` are
    not made.

    Raises:
        LabError: a vocabulary too small for the bytes and the two special tokens.
    """
    if vocab_size < 258:
        raise LabError(f"a byte-level vocabulary holds 256 bytes and 2 special tokens; vocab_size={vocab_size}.")
    core = Core(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_WORDS), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return Tokenizer(core, bos_token=END, eos_token=END, pad_token=PAD)


def _roles(directory: Path) -> dict[str, str]:
    """The special tokens as the directory names them; `tokenizer_config.json` has the last word."""
    roles: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        entries = _read_json(directory / name) if (directory / name).is_file() else {}
        for role in (*ROLES, *AROUND):
            token = entries.get(role)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                roles[role] = token
    return roles


def _read_json(path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LabError(f"cannot read {path}: {error}.") from error
    if not isinstance(entries, dict):
        raise LabError(f"{path} holds a {type(entries).__name__}, expected a JSON object.")
    return entries


def _read_core(path: Path) -> Core:
    try:
        return Core.from_file(str(path))
    except Exception as error:  # the Rust library raises bare Exceptions
        raise LabError(f"cannot read {path} as a tokenizer: {error}.") from error


def _byte_level(directory: Path) -> Core:
    """GPT-2's two files, with GPT-2's pre-tokenizer."""
    try:
        model = models.BPE.from_file(str(directory / "vocab.json"), str(directory / "merges.txt"))
    except Exception as error:  # the Rust library raises bare Exceptions
        raise LabError(f"cannot read {directory}/vocab.json with merges.txt: {error}.") from error
    core = Core(model)
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if core.token_to_id(END) is not None:
        core.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return core
