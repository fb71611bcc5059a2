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
from .attention import AttentiveQueries, shown
from .queries import Queries
from .search import USUAL, Budget, Outcome, Propose, search


def gcg(bundle: Bundle, item: Item, budget: Budget = USUAL, seed: int = 0, top: int = 256,
        attention: float = 0.0, **options) -> Outcome:
    """Greedy coordinate gradient: one token exchanged for one of the `top` best by gradient.

    With `attention`, losses are those of `attention.AttentiveQueries`, also in the outcome.
    `options` are those of `search.search`: side, size, start, watch.
    """
    propose = by_gradient(bundle, top)
    if not attention:
        return search(bundle, item, propose, budget, seed, **options)
    with shown(bundle):
        return search(bundle, item, propose, budget, seed,
                      asking=lambda blank: AttentiveQueries(blank, attention), **options)


def by_gradient(bundle: Bundle, top: int = 256) -> Propose:
    """GCG's proposals, for `search.search` and `search.stepwise`."""
    def propose(queries: Queries, present, generator):
        return exchanges(queries.gradient(present), present, blanks.tokens(bundle), top, generator)

    return propose


def exchanges(gradient: torch.Tensor, present, usable: list[int], top: int,
              generator: torch.Generator):
    """A function that draws fills [count, size], each with one token other than `present`'s.

    Slots are drawn evenly, and a slot's token from the `top` usable ones with the lowest gradient
    [size, V]. Tokens are drawn from all usable ones and kept if they are among those, so that two
    ways of rounding, which order near ties differently, mostly propose the same.
    """
    row, allowed = torch.tensor(list(present)), torch.tensor(usable)
    slopes = gradient[:, allowed.to(gradient.device)].cpu()
    top = min(top, len(usable))
    steepest = slopes <= slopes.kthvalue(top, dim=1, keepdim=True).values

    def draw(count: int) -> torch.Tensor:
        many = 2 * count * len(usable) // top + 8
        slots = torch.randint(len(row), (many,), generator=generator)
        picks = torch.randint(len(usable), (many,), generator=generator)
        kept = steepest[slots, picks].nonzero()[:count, 0]
        fills = row.repeat(len(kept), 1)
        fills[torch.arange(len(kept)), slots[kept]] = allowed[picks[kept]]
        return fills

    return draw
