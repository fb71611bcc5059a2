"""Warm start: an attack on the secure model that begins on a less secure one.

One datum: a suffix found against a quarter of the adapter is where the search against half of it
begins, and so on to the whole.

A search from nothing has no slope to follow where the defended model is flat. Checkpoint-GCG
(arXiv 2505.15738) attacks the checkpoints of the training one after another and begins each search
with the last one's suffix. `along` does that for any sequence of adapters, such as a run's
`checkpoints/checkpoint-*`. `warm_start` needs no checkpoints: its ladder is the adapter's strength
(`models.strength`), which also leads from the insecure model to the secure one.
"""

import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from peft.tuners.lora import LoraLayer

from .. import models
from ..evaluation import Item
from ..models import Bundle
from .gcg import gcg
from .search import USUAL, Budget, Outcome

RUNGS = (0.25, 0.5, 0.75, 1.0)
"""Strengths of the adapter, one after another; the last is the victim's."""

PATIENCE = 25  # steps on a rung; of the budget's share, 50 steps would not begin as 500 do


def warm_start(bundle: Bundle, item: Item, budget: Budget = USUAL, seed: int = 0,
               rungs: Sequence[float] = RUNGS, **options) -> Outcome:
    """GCG along growing strengths of the adapter; all rungs together have the budget.

    A rung ends with success on it, or after `PATIENCE` steps unless it is the last. Raises
    ValueError for a bundle without adapter, and inside `models.merged`, where strength is fixed.
    """
    if any(m.merged for m in bundle.model.modules() if isinstance(m, LoraLayer)):
        raise ValueError("the adapter is merged into the weights, so its strength cannot change; "
                         "attack outside of models.merged")
    return _climb([models.strength(bundle, rung) for rung in rungs],
                  bundle, item, budget, seed, options)


def along(bundle: Bundle, adapters: Iterable, item: Item, budget: Budget = USUAL, seed: int = 0,
          **options) -> Outcome:
    """GCG along adapters (folders), such as a run's checkpoints with the run's own as the last.

    The bundle has the last one afterwards. Raises ValueError as `models.with_adapter` does.
    """
    @contextlib.contextmanager
    def standing_on(folder):
        models.with_adapter(bundle, folder)
        yield

    return _climb([standing_on(folder) for folder in adapters], bundle, item, budget, seed,
                  options)


def _climb(rungs: Sequence, bundle: Bundle, item: Item, budget: Budget, seed: int,
           options: dict) -> Outcome:
    began, steps, queries, losses, found = time.perf_counter(), 0, 0, [], None
    for number, rung in enumerate(rungs):
        left = budget.steps - steps
        share = left if number == len(rungs) - 1 else min(PATIENCE, left)
        with rung:
            found = gcg(bundle, item, Budget(share, budget.candidates), seed,
                        start=found.fill if found else None, **options)
        steps, queries = steps + found.steps, queries + found.queries
        losses += found.losses
    return replace(found, steps=steps, queries=queries, losses=tuple(losses),
                   seconds=time.perf_counter() - began)
