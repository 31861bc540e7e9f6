"""BERT's vocabulary: words in pieces, and the special tokens that stand round a text (Devlin et al. 2019, §3)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from interp.errors import LabError

ROLES = {"pad_token": "[PAD]", "mask_token": "[MASK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
"""BERT's own, where a directory names none."""
AROUND = ("cls_token", "sep_token")
UNKNOWN = "[UNK]"


def word_pieces(directory: Path) -> Core:
    """The tokenizer of a directory that has `vocab.txt` alone, as transformers reads it.

    Raises:
        LabError: the file cannot be read, or has no token for unknown words.
    """
    settings = _settings(directory / "tokenizer_config.json")
    try:
        lines = (directory / "vocab.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise LabError(f"cannot read {directory / 'vocab.txt'}: {error}.") from error
    unknown = settings.get("unk_token", UNKNOWN)
    if unknown not in lines:
        raise LabError(f"{directory / 'vocab.txt'} has no {unknown!r}, the token for unknown words.")
    core = _core({token: i for i, token in enumerate(lines)}, unknown)
    core.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    return core


def words(texts: Iterable[str]) -> Core:
    """A vocabulary of whole words, those of some texts, with BERT's special tokens first: [PAD] has id 0.

    Words and punctuation marks are split as BERT splits them; what the texts lack is unknown.
    """
    split = pre_tokenizers.BertPreTokenizer()
    found = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})
    special = [ROLES["pad_token"], UNKNOWN, *(ROLES[role] for role in (*AROUND, "mask_token"))]
    core = _core({token: i for i, token in enumerate([*special, *found])}, UNKNOWN)
    core.add_special_tokens(special)
    surround(core, ROLES)
    return core


def surround(core: Core, roles: Mapping[str, str]) -> None:
    """Put the first and the last token round every text, unless the file has a rule of its own."""
    first, last = (roles.get(role) for role in AROUND)
    if core.post_processor is not None or first is None or last is None:
        return
    core.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(token, core.token_to_id(token)) for token in (first, last)],
    )


def _core(vocabulary: dict[str, int], unknown: str) -> Core:
    core = Core(models.WordPiece(vocabulary, unk_token=unknown, max_input_chars_per_word=100))
    core.pre_tokenizer, core.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(cleanup=False)
    return core


def _settings(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise LabError(f"cannot read {path}: {error}.") from error
    return content if isinstance(content, dict) else {}
