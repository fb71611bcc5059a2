"""Tokenization of one segment of a prompt as it would be read inside the whole.

One datum: with a Llama 2 tokenizer, `reader(tokenizer).ids("Count.")` is `Count .`, where
`tokenizer("Count.")` is `▁Count .`: the space that it puts before a text is not written again
before each segment.

A `Reader` shares the vocabulary of a tokenizer and chooses which of its added tokens it knows. No
added token that it does not know can come out of a text: it is spelled by ordinary pieces.

Limits: tokenizers of the `tokenizers` library ("fast" ones) only.
"""

import copy
import json
import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

ADDED = ("all", "unspecial", "blank")
"""Which added tokens a reader knows: all, those that are not special, runs of whitespace only."""


@dataclass(frozen=True)
class Reader:
    """A tokenizer's vocabulary with a choice of its added tokens.

    `renumbered` maps the ids of added tokens to those that they have in the tokenizer.
    """

    backend: Tokenizer
    renumbered: dict[int, int]

    def ids(self, text: str) -> list[int]:
        """The ids of a text, without tokens for its begin and end.

        Raises ValueError for half of a surrogate pair, which is no character.
        """
        if not text:
            return []
        try:
            ids = self.backend.encode(text, add_special_tokens=False).ids
        except TypeError:
            at = re.search("[\ud800-\udfff]", text)
            if not at:
                raise
            raise ValueError(f"the text {text[:60]!r} holds a lone surrogate at character "
                             f"{at.start()}; remove it") from None
        return [self.renumbered.get(i, i) for i in ids] if self.renumbered else ids

    def normalized(self, text: str) -> str:
        """The text as the vocabulary sees it."""
        normalizer = self.backend.normalizer
        return normalizer.normalize_str(text) if normalizer else text


_CACHE: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def cached(tokenizer, key, make):
    """`make()`, kept for this tokenizer until it gets another token."""
    size, known = _CACHE.get(tokenizer, (None, {}))
    if size != len(tokenizer):
        size, known = _CACHE[tokenizer] = len(tokenizer), {}
    if key not in known:
        known[key] = make()
    return known[key]


_ROWS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def limit(tokenizer, rows: int) -> None:
    """From now on the tokenizer is that of a model whose embedding has so many rows."""
    _ROWS[tokenizer] = rows


def refuse_unknown(tokenizer, ids: Sequence[int]) -> None:
    """Raises ValueError for an id beyond the model's rows, as of a token that was added later."""
    largest = max(ids, default=0)
    if (rows := _ROWS.get(tokenizer)) and largest >= rows:
        raise ValueError(f"the text spells {tokenizer.convert_ids_to_tokens(largest)!r}, token "
                         f"{largest}, and the model has an embedding of {rows} rows; remove it "
                         "from the text")


def reader(tokenizer, added: str = "all", prefix: bool = False) -> Reader:
    """A reader of the tokenizer; with `prefix`, one that writes the tokenizer's first space.

    Raises ValueError for a tokenizer that is not of the `tokenizers` library.
    """
    return cached(tokenizer, (added, prefix), lambda: _reader(tokenizer, added, prefix))


def added_tokens(tokenizer, added: str = "all") -> dict[int, str]:
    """Ids and texts of a choice of the added tokens."""
    return {i: token.content for i, token in _added(tokenizer) if _chosen(token, added)}


def _reader(tokenizer, added: str, prefix: bool) -> Reader:
    source = _backend(tokenizer)
    backend = Tokenizer(source.model)  # shares the vocabulary
    edit = (lambda part: part) if prefix else _without_prefix
    if normalizer := edit(source.normalizer):
        backend.normalizer = normalizer
    if pre_tokenizer := edit(source.pre_tokenizer):
        backend.pre_tokenizer = pre_tokenizer
    chosen = [(i, token) for i, token in _added(tokenizer) if _chosen(token, added)]
    for _, token in chosen:
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
    own = ((backend.token_to_id(token.content), i) for i, token in chosen)
    return Reader(backend, {here: there for here, there in own if here != there})


def _backend(tokenizer) -> Tokenizer:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ValueError(f"a {type(tokenizer).__name__} cannot keep the parts of a prompt apart; "
                         "give a model whose tokenizer is a `tokenizer.json`")
    return backend


def _added(tokenizer) -> list[tuple]:
    return sorted(_backend(tokenizer).get_added_tokens_decoder().items())


def _chosen(token, added: str) -> bool:
    blank = not token.content.replace("▁", " ").strip()
    return {"all": True, "unspecial": not token.special or blank, "blank": blank}[added]


def _without_prefix(part):
    """A normalizer or pre-tokenizer that puts no space before a text."""
    if part is None:
        return None
    state = _unprefixed(json.loads(part.__getstate__()))
    if state is None:
        return None
    new = copy.deepcopy(part)
    new.__setstate__(json.dumps(state).encode())
    return new


def _unprefixed(state: dict) -> dict | None:
    if state["type"] == "Prepend":
        return None
    if state["type"] == "Metaspace":
        return state | {"prepend_scheme": "never"}
    if state["type"] == "ByteLevel":
        return state | {"add_prefix_space": False}
    for key in ("normalizers", "pretokenizers"):
        if key in state:
            kept = [part for part in map(_unprefixed, state[key]) if part]
            return state | {key: kept}
    return state
