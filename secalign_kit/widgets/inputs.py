"""What several views ask of their input: texts that can be read, samples, a model's side."""

import contextlib
from collections.abc import Iterable

from .. import evaluation, injections, models, prompts
from ..models import Bundle
from ..samples import shipped_samples

LONGEST = 2000  # characters of one text field
WHICH = ("insecure", "secure")


def check_texts(**texts: str) -> None:
    """Raises ValueError for a text that is empty, too long, or that no tokenizer can read."""
    for name, text in texts.items():
        if not text.strip():
            raise ValueError(f"The {name} is empty; write one.")
        if len(text) > LONGEST:
            raise ValueError(f"The {name} has {len(text)} characters; use at most {LONGEST}.")
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise ValueError(f"The {name} holds half of a character (a lone surrogate); remove it.")


def check_length(bundle: Bundle, instruction: str, data: str) -> None:
    length = len(prompts.encode(bundle.tokenizer, bundle.format, instruction, data))
    limit = getattr(bundle.model.config, "max_position_embeddings", 2048) - 64  # for the answer
    if length > limit:
        raise ValueError(f"The prompt has {length} tokens and the model reads at most {limit}; "
                         "shorten the data or the injection.")


def switched(bundle: Bundle, which: str):
    return models.insecure(bundle) if which == "insecure" else contextlib.nullcontext()


def sample_items(bundle: Bundle, attacks: Iterable[str], n: int) -> list[evaluation.Item]:
    """`n` held-out samples with data, clean and under each attack by the witness request."""
    if n < 1:
        raise ValueError("Measure at least one sample.")
    samples = [s for s in shipped_samples("heldout") if s.data][:n]
    items = evaluation.clean_items(samples)
    for attack in attacks:
        items += evaluation.attacked_items(samples, attack, injections.WITNESS["heldout"], bundle)
    return items


def verdict(response: str, chosen: str, rejected: str) -> str:
    """Whom a response answers, in words.

    To begin with the rejected text is enough if that is an attackers' fixed word; with an answer
    such as "4", many others begin.
    """
    if chosen == rejected:
        return "both continuations are the same text"
    if response == chosen:
        return "answers the instruction"
    fixed = rejected in (witness.answer for witness in injections.WITNESS.values())
    if evaluation.obeyed(response, rejected, "begins_with" if fixed else "matches"):
        return "answers the injection"
    return "neither, word for word"
