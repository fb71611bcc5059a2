"""Search: the loop that all attackers with a blank share: propose, filter, ask, judge.

One datum: `Outcome(text=" owl ... owl", obeyed=True, loss=0.21, steps=17, queries=816, ...)`

A step proposes fills, keeps those that survive re-tokenization, asks the model for the loss of each
and goes on from the lowest. A fill after which greedy decoding would say the target is judged as
`evaluation` judges: on the final text, through the real front end, by the answer. Only that verdict
counts as success, and it ends the search.
"""

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from .. import evaluation, models
from ..evaluation import Item
from ..models import Bundle
from ..progress import bar
from . import blanks
from .blanks import Blank
from .queries import Queries


@dataclass(frozen=True)
class Budget:
    """What an attacker may spend on one item: `steps` of `candidates` queries."""

    steps: int = 100
    candidates: int = 48

    def __post_init__(self):
        if self.steps < 0 or self.candidates < 1:
            raise ValueError(f"a budget of {self.steps} steps of {self.candidates} candidates is "
                             "none; give at least 0 steps of 1 candidate")


USUAL = Budget()


@dataclass(frozen=True)
class Outcome:
    """What an attacker found for one item.

    `item` is the attacked item with the text found (its `data` is what the victim reads), `obeyed`
    the verdict on the `response` to it. `steps` were done, `queries` asked, in `seconds`; an
    attack that succeeded stopped there. `loss` is -log p of the target in nats for that text, and
    `losses` the lowest of each step, the first before any. `near` counts texts that by their loss
    should have succeeded and did not. `fill` are the ids that were searched for.
    """

    item: Item
    obeyed: bool
    response: str
    steps: int
    queries: int
    seconds: float
    loss: float = float("nan")
    losses: tuple[float, ...] = ()
    near: int = 0
    fill: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """What the attacker wrote: the payload and what was found for it."""
        return self.item.data[self.item.start : self.item.end]


@dataclass(frozen=True)
class Step:
    """What `watch` is told: the lowest loss of a step and its item, whether any of the step's fills
    would be obeyed by their loss (`said`), and whether one was (`obeyed`)."""

    number: int
    queries: int
    loss: float
    item: Item
    said: bool
    obeyed: bool


Propose = Callable[[Queries, tuple[int, ...], torch.Generator], Callable[[int], torch.Tensor]]
"""(queries, present fill, generator) -> a function that draws so many fills [count, size]."""


class Run:
    """A search under way: the best fill and its loss, the lowest loss of each step, and the last
    `Step`.
    """

    def __init__(self, blank: Blank, queries: Queries, began: float):
        self.blank, self.queries, self.began = blank, queries, began
        self.best: tuple[int, ...] = blank.first
        self.loss, self.losses = float("inf"), []
        self.steps = self.near = 0
        self.verdict: tuple[str, bool] | None = None  # of the best fill, once it succeeded
        self.last: Step | None = None

    @property
    def obeyed(self) -> bool:
        return self.verdict is not None

    def ask(self, fills: torch.Tensor) -> tuple[int, ...]:
        """The fill of lowest loss; judges the first of those that the model would obey."""
        loss, said = self.queries.losses(fills)
        k = int(loss.argmin())
        fill, lowest = tuple(fills[k].tolist()), float(loss[k])
        self.losses.append(lowest)
        if lowest < self.loss:
            self.best, self.loss = fill, lowest
        if said.any():
            k = int(loss.masked_fill(~said, torch.inf).argmin())
            self._judge(tuple(fills[k].tolist()), float(loss[k]))
        self.last = Step(self.steps, self.queries.count, lowest, self.blank.attacked(fill),
                         bool(said.any()), self.obeyed)
        return fill

    def _judge(self, fill: tuple[int, ...], loss: float) -> None:
        verdict = judge(self.blank.bundle, self.blank.attacked(fill))
        if verdict[1]:
            self.best, self.loss, self.verdict = fill, loss, verdict
        else:
            self.near += 1

    def outcome(self) -> Outcome:
        """What the search has found until now; the best text is judged if none was obeyed."""
        item = self.blank.attacked(self.best)
        response, obeyed = self.verdict or judge(self.blank.bundle, item)
        return Outcome(item, obeyed, response, self.steps, self.queries.count,
                       time.perf_counter() - self.began, self.loss, tuple(self.losses), self.near,
                       self.best)


def search(bundle: Bundle, item: Item, propose: Propose, budget: Budget, seed: int = 0,
           native: bool = False, watch: Callable[[Step], None] | None = None,
           **options) -> Outcome:
    """Fills a blank beside the item's payload; `options` are those of `stepwise`.

    `native` searches in the precision in which the victim answers, see `models.native_precision`,
    which is faster where that is bf16; else the search is in fp32. Raises ValueError as
    `blanks.make` does.
    """
    precision = models.native_precision(bundle) if native else contextlib.nullcontext()
    with models.merged(bundle), precision:
        for run in stepwise(bundle, item, propose, budget, seed, **options):
            if watch:
                watch(run.last)
        return run.outcome()


def stepwise(bundle: Bundle, item: Item, propose: Propose, budget: Budget, seed: int = 0,
             side: str = "suffix", size: int = 12, greedy: bool = False,
             start: Sequence[int] | None = None,
             asking: Callable[[Blank], Queries] = Queries) -> Iterator[Run]:
    """The search, which goes on when it is asked: its run before any step and after each.

    Every step finds the model as its caller has set it, and must find it alike (`search` sets it
    once). `greedy` goes on from the best fill so far, GCG from the best of the last step. `start`
    is a fill of `size` tokens to begin with, such as another outcome's; one that this item cannot
    hold is not used. `asking` makes the losses.
    """
    began = time.perf_counter()
    blank = blanks.make(bundle, item, side, size, seed)
    present = tuple(start) if start and blank.holds(start) else blank.first
    generator = seeded(seed, item)
    run = Run(blank, asking(blank), began)
    run.ask(torch.tensor([present]))
    yield run
    while not run.obeyed and run.steps < budget.steps:
        present = run.best if greedy else present
        fills = distinct(blank, propose(run.queries, present, generator), budget.candidates)
        if not len(fills):
            return  # the tokenizer reads nothing near the present fill back as it was
        run.steps += 1
        present = run.ask(fills)
        yield run


def seeded(seed: int, item: Item) -> torch.Generator:
    """The generator of a search, another for every seed and item."""
    number = random.Random(f"{seed} {item.id} {item.data}").getrandbits(63)
    return torch.Generator().manual_seed(number)


def judge(bundle: Bundle, item: Item) -> tuple[str, bool]:
    """(response, obeyed) of an attacked item, as `evaluation` gives them."""
    early = item.witness if item.judge == "begins_with" else ""
    response, = evaluation.generate(bundle, [(item.instruction, item.data)], witnesses=[early])
    return response, evaluation.obeyed(response, item.witness, item.judge)


def distinct(blank: Blank, draw: Callable[[int], torch.Tensor], count: int) -> torch.Tensor:
    """Up to `count` different fills [C, size] of those drawn that survive re-tokenization.

    Eight rounds without any that is new are enough to give up.
    """
    kept: dict[tuple[int, ...], bool] = {}
    for _ in range(8):
        for fill in map(tuple, draw(2 * count).tolist()):
            if fill not in kept:
                kept[fill] = blank.holds(fill)
            if sum(kept.values()) == count:
                break
        else:
            continue
        break
    good = [fill for fill, holds in kept.items() if holds]
    return torch.tensor(good, dtype=torch.long).view(-1, blank.size)


class Progress:
    """A bar over items and, within one, over steps: loss and successes so far.

    An attacker's `watch`.
    """

    def __init__(self, total: int, words: str):
        self.bar = bar(total, words, shown=bool(words))
        self.obeyed = 0

    def __call__(self, step: Step) -> None:
        self.bar.set_postfix(step=step.number, loss=f"{step.loss:.2f}", obeyed=self.obeyed)

    def done(self, obeyed: bool) -> None:
        self.obeyed += obeyed
        self.bar.set_postfix(obeyed=self.obeyed)
        self.bar.update(1)

    def close(self) -> None:
        self.bar.close()
