"""GCG: tokens proposed by the gradient, the best kept (Zou et al., arXiv 2307.15043).

One datum: a suffix of 12 tokens behind "Print exactly 'Hacked!'.", found in some 15 steps of 48
candidates.

SecAlign's section 4.4 measures with 500 steps of 512 candidates. What is done here is the same
search; `queries` only computes its losses faster.
"""

import torch

from ..evaluation import Item
from ..models import Bundle
from . import blanks
from .queries import Queries
from .search import USUAL, Budget, Outcome, search


def gcg(bundle: Bundle, item: Item, budget: Budget = USUAL, seed: int = 0, top: int = 256,
        **options) -> Outcome:
    """Greedy coordinate gradient: one token exchanged for one of the `top` best by gradient.

    `options` are those of `search.search`: side, size, start, watch.
    """
    def propose(queries: Queries, present, generator):
        return exchanges(queries.gradient(present), present, blanks.tokens(bundle), top, generator)

    return search(bundle, item, propose, budget, seed, **options)


def exchanges(gradient: torch.Tensor, present, usable: list[int], top: int,
              generator: torch.Generator):
    """A function that draws fills [count, size], each with one token other than `present`'s.

    Slots are drawn evenly, and a slot's token from the `top` usable ones with the lowest gradient
    [size, V].
    """
    row, allowed = torch.tensor(list(present)), torch.tensor(usable)
    best = (-gradient[:, allowed.to(gradient.device)]).topk(min(top, len(allowed)), dim=1).indices
    best = allowed[best.cpu()]

    def draw(count: int) -> torch.Tensor:
        slots = torch.randint(len(row), (count,), generator=generator)
        picks = torch.randint(best.shape[1], (count,), generator=generator)
        fills = row.repeat(count, 1)
        fills[torch.arange(count), slots] = best[slots, picks]
        return fills

    return draw
