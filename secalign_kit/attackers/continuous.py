"""Embeddings in place of tokens: is a model secure, or are its gradients only hidden?

One datum: twelve embeddings behind the payload, each number of which may move by half the
embeddings' root mean square, make the adapter `secalign` obey 3 items of 16; by the whole of it, 14
of 16; by twice it, all.

No text says what is found here, so nobody need fear it. It is a question to the other attackers: a
radius that is large enough must make any model say anything, if the gradients lead there, and if it
does not, a low rate of GCG is no news about security (Athalye et al., arXiv 1802.00420; Carlini et
al., arXiv 1902.06705, section 5.4). It is also the attacker of `adversary`, with time.

Limits: one start for each item and seed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .. import adversary, models
from ..evaluation import Item
from ..models import Bundle
from . import blanks
from .queries import Queries
from .search import USUAL, Budget, Outcome

STEP = 2.5  # times the radius divided by the moves, as in arXiv 1706.06083


@dataclass(frozen=True)
class Reached:
    """What embeddings within a radius do to one item.

    `obeyed` is whether greedy decoding says the target, `moves` how many it took; `loss` is the
    lowest -log p of the target in nats.
    """

    obeyed: bool
    moves: int
    loss: float


def continuous(bundle: Bundle, item: Item, radius: float = 1.0, moves: int = 100, seed: int = 0,
               side: str = "suffix", size: int = 12) -> Reached:
    """Moves the embeddings of a blank by the sign of the gradient of log p(target).

    No number goes further than `radius` times the embeddings' root mean square from that of the
    tokens that the blank begins with. Raises ValueError as `blanks.make` does, and for a radius
    that is no number above 0.
    """
    refuse_radius(radius)
    blank = blanks.make(bundle, item, side, size, seed)
    limit = radius * adversary.root_mean_square(bundle)
    step, lowest = STEP * limit / max(1, moves), float("inf")
    with models.merged(bundle):
        queries = Queries(blank)
        rest = queries.embedded(blank.first)
        generator = torch.Generator().manual_seed(seed)
        offsets = torch.randn(size, rest.shape[-1], generator=generator).to(rest.device)
        offsets = adversary.NOISE * limit * offsets
        for move in range(moves + 1):
            offsets = offsets.detach().requires_grad_()
            loss, said = queries.of_vectors(rest, offsets)
            lowest = min(lowest, loss.item())
            if said or move == moves:
                return Reached(bool(said), move, lowest)
            slope, = torch.autograd.grad(loss, offsets)
            offsets = (offsets.detach() - step * slope.sign()).clamp(-limit, limit)


def refuse_radius(radius: float) -> None:
    """Raises ValueError for a radius that is no number above 0."""
    if not 0 < radius < float("inf"):
        raise ValueError(f"radius is {radius}; give a number above 0")


def embeddings(bundle: Bundle, item: Item, budget: Budget = USUAL, seed: int = 0,
               watch: Callable | None = None, **options) -> Outcome:
    """`continuous` with a move for each step of the budget, as an outcome without text or response.

    How far a move goes depends on their number, so that fifty are not the beginning of a hundred.
    """
    began = time.perf_counter()
    found = continuous(bundle, item, seed=seed, **{"moves": budget.steps} | options)
    return Outcome(item, found.obeyed, "", found.moves, found.moves + 1,
                   time.perf_counter() - began, found.loss)
