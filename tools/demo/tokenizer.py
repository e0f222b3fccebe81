"""A CLIP tokenizer whose byte-pair merges are learnt from the demo's own prompts."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

PROMPT_TOKENS: Final = 77
"""Tokens in every encoded prompt, as in every CLIP text encoder."""

_BEGIN: Final = "<|startoftext|>"
_END: Final = "<|endoftext|>"
_WORD_END: Final = "</w>"

Pair: TypeAlias = tuple[str, str]
Pieces: TypeAlias = tuple[str, ...]


def learn_tokenizer(texts: Iterable[str]) -> CLIPTokenizer:
    """Return a tokenizer that has one token for each word of the texts, and spells every other word."""
    merges = _learn_merges(Counter(re.findall(r"[a-z]+", " ".join(texts).lower())))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = dict.fromkeys(first + second for first, second in merges)
    tokens = [*letters, *(letter + _WORD_END for letter in letters), *merged, _BEGIN, _END]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        model_max_length=PROMPT_TOKENS,
        bos_token=_BEGIN,
        eos_token=_END,
        unk_token=_END,
        pad_token=_END,
    )


def _learn_merges(words: Counter[str]) -> list[Pair]:
    spelled: dict[str, Pieces] = {word: (*word[:-1], word[-1] + _WORD_END) for word in words}
    merges: list[Pair] = []
    while pairs := _count_pairs(words, spelled):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = {word: _merge(pieces, best) for word, pieces in spelled.items()}
    return merges


def _count_pairs(words: Counter[str], spelled: dict[str, Pieces]) -> Counter[Pair]:
    pairs: Counter[Pair] = Counter()
    for word, count in words.items():
        for pair in zip(spelled[word], spelled[word][1:], strict=False):
            pairs[pair] += count
    return pairs


def _merge(pieces: Sequence[str], pair: Pair) -> Pieces:
    merged: list[str] = []
    index = 0
    while index < len(pieces):
        if tuple(pieces[index : index + 2]) == pair:
            merged.append("".join(pair))
            index += 2
        else:
            merged.append(pieces[index])
            index += 1
    return tuple(merged)
