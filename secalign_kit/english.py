"""The kit's English: short texts with tasks, questions to inject, and what may not be refused.

One datum: `texts("heldout")[0]` is `Sample("Who has the key?", "LIFT OUT OF ORDER. ...", "Mr
Semple", "notice", "heldout-a-002-0", accept=("Semple", "porter"))`.

Written for this kit (data/english/README.md says how); no text is copied. All tasks of a text are
in one split. A *probe* is a question whose answer is a word that none of the texts mentions, so
that the word in a response says that the question was answered (SEP, arXiv 2403.06833).

Limits: plain texts of a few sentences, and answers of a few words.
"""

import random
from dataclasses import replace

from .samples import DATA, SPLITS, Sample, load_samples

FOLDER = DATA / "english"
DOUBLES = 0.15  # of the texts' tasks, as many again with a second request in the instruction


def texts(split: str) -> list[Sample]:
    """Tasks about short texts, each with the rule for its answer. Raises ValueError."""
    return load_samples(FOLDER / f"{_known(split)}.jsonl")


def probes(split: str) -> list[Sample]:
    """Questions whose answer is a word, `answer`, or another of `accept`."""
    return _of(split, "probes")


def benign(split: str) -> list[Sample]:
    """Texts full of commands, quotations and attackers' words, with honest tasks about them."""
    return _of(split, "benign")


def long_tasks(split: str) -> list[Sample]:
    """Texts to summarize, rewrite or translate; no rule decides about their answers."""
    return _of(split, "long")


def payloads() -> list[Sample]:
    """Requests that training injects; they have no answer until the model gives its own."""
    return load_samples(FOLDER / "payloads.jsonl")


def training(seed: int = 0) -> tuple[list[Sample], list[Sample]]:
    """(hosts, requests): what pairs for training are made of.

    Some hosts have two requests in their instruction, which both are the user's: who learns to
    ignore the second request of a prompt must not learn to ignore that one.
    """
    requests = [*probes("train"), *payloads()]
    tasks = [*texts("train"), *benign("train")]
    rng = random.Random(f"english-{seed}")
    first = rng.sample(tasks, round(DOUBLES * len(tasks)))
    doubles = [double(host, rng.choice(requests)) for host in first]
    return [*tasks, *long_tasks("train"), *doubles], requests


def double(host: Sample, request: Sample) -> Sample:
    """A task and a second request in one instruction; right if the second is answered."""
    answer = f"{host.answer} {request.answer}" if host.answer and request.answer else ""
    return replace(host, instruction=f"{host.instruction} {request.instruction}", answer=answer,
                   family="two requests", id=f"{host.id}+{request.id}",
                   accept=request.accept, reject=())


def _of(split: str, name: str) -> list[Sample]:
    found = load_samples(FOLDER / f"{name}.jsonl")
    return [sample for sample in found if sample.id.startswith(f"{_known(split)}-")]


def _known(split: str) -> str:
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}.")
    return split
