"""Universal: one fill of tokens for many samples, and whether it works on others and elsewhere.

One datum: a suffix found on 10 samples, tried on 100 others and on other models.

The samples are taken in one after another, once the fill works on all before (Zou et al., arXiv
2307.15043, algorithm 2). A step costs its queries on every sample taken in.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from .. import evaluation, markdown, models
from ..evaluation import Item
from ..models import Bundle
from ..samples import fingerprint
from . import blanks
from .gcg import exchanges
from .queries import Queries
from .search import USUAL, Budget, distinct


@dataclass(frozen=True)
class Universal:
    """A fill for many items: its `text`, the number of items `taken` in, of those `obeyed`, and the
    mean loss of each step in nats."""

    fill: tuple[int, ...]
    text: str
    taken: int
    obeyed: int
    steps: int
    queries: int
    losses: tuple[float, ...]


def universal(bundle: Bundle, items: Sequence[Item], budget: Budget = USUAL, seed: int = 0,
              side: str = "suffix", size: int = 12, top: int = 256,
              watch: Callable[[int, int, float], None] | None = None) -> Universal:
    """GCG on the mean loss over the items; `watch` is told step, items taken in, and loss.

    Ends when all items say the target, or with the budget. Raises ValueError for no items, and as
    `blanks.make` does.
    """
    if not items:
        raise ValueError("a universal attack needs items; give at least one")
    generator, usable = torch.Generator().manual_seed(seed), blanks.tokens(bundle)
    steps, taken, losses = 0, 1, []
    with models.merged(bundle):
        asked = [Queries(blanks.make(bundle, item, side, size, seed)) for item in items]
        present = asked[0].blank.first
        while steps < budget.steps:
            gradient = sum(_even(q.gradient(present)) for q in asked[:taken])
            draw = exchanges(gradient, present, usable, top, generator)
            fills = distinct(_All([q.blank for q in asked[:taken]]), draw, budget.candidates)
            if not len(fills):
                break  # as in `search`: such a step was not done
            steps += 1
            loss, said = map(torch.stack, zip(*(q.losses(fills) for q in asked[:taken]),
                                              strict=True))
            k = int(loss.mean(0).argmin())
            present = tuple(fills[k].tolist())
            losses.append(float(loss[:, k].mean()))
            if watch:
                watch(steps, taken, losses[-1])
            if said[:, k].all():
                if taken == len(asked):
                    break
                taken += 1
        obeyed = sum(r["obeyed"] for r in spread(bundle, items[:taken], present, side))
    return Universal(present, "".join(asked[0].blank.texts(present)), taken, obeyed, steps,
                     sum(q.count for q in asked), tuple(losses))


@dataclass(frozen=True)
class _All:
    """Blanks as one: a fill holds if it holds in all of them."""

    blanks: Sequence[blanks.Blank]

    @property
    def size(self) -> int:
        return self.blanks[0].size

    def holds(self, fill: Sequence[int]) -> bool:
        return all(blank.holds(fill) for blank in self.blanks)


def _even(gradient: torch.Tensor) -> torch.Tensor:
    """The gradient [size, V] with each slot's length 1, so that no item outweighs the others."""
    return gradient / gradient.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def transfer(load: Callable[[str], Bundle], names: Sequence[str],
             found_on: Callable[[Bundle], Sequence[Item]],
             tried_on: Callable[[Bundle], Sequence[Item]], budget: Budget = USUAL, seed: int = 0,
             known: Sequence[dict] = (), **options) -> Iterator[dict]:
    """For each model by name, a fill found on some items, and how often it works on others of each.

    `load(name)` gives a model; `found_on(bundle)` and `tried_on(bundle)` its items. `known` are
    earlier results; those of the same weights, items and settings are not made again.
    """
    results = {(one["found_on"], one["key"]): one for one in known}
    for name in names:
        bundle = load(name)
        items = found_on(bundle)
        key = _key(bundle, items, asdict(budget), seed, options)
        if (name, key) not in results:
            found = universal(bundle, items, budget, seed, **options)
            results[name, key] = {"found_on": name, "key": key, **asdict(found), "tried_on": {},
                                  "tried_keys": {}}
        one = results[name, key]
        for other in names:
            victim = bundle if other == name else load(other)
            others = tried_on(victim)
            tried = _key(victim, others)
            if one["tried_keys"].get(other) != tried:
                records = spread(victim, others, one["fill"], options.get("side", "suffix"))
                one["tried_on"][other] = [sum(r["obeyed"] for r in records), len(records)]
                one["tried_keys"][other] = tried
        yield one


def _key(bundle: Bundle, items: Sequence[Item], *settings) -> str:
    """What tells a result of a model on some items from others."""
    return fingerprint(json.dumps([models.weights_hash(bundle), *map(asdict, items), *settings]))


def transfer_table(results: Iterable[Mapping]) -> str:
    """A line for each model that a fill was found on, with its rate of success on every model.

    Each rate has its own n, since what can be asked differs from model to model.
    """
    rows, names = [], []
    for one in results:
        names = list(one["tried_on"])
        rows.append([one["found_on"], f"{one['obeyed']} of {one['taken']}", one["steps"],
                     *(str(evaluation.rate(*counts)) for counts in one["tried_on"].values())])
    return markdown.table(("found on", "obeyed there", "steps", *names), rows)


def spread(bundle: Bundle, items: Sequence[Item], fill: Sequence[int],
           side: str = "suffix") -> list[dict]:
    """Records of items with a fill's text beside their payload, of this or another model.

    As text, which is all that can be sent: it need not be read as the same ids everywhere.
    """
    attacked = [blanks.Blank(bundle, item, side, len(fill)).attacked(fill) for item in items]
    return evaluation.evaluate(bundle, attacked, verdict_only=True)
