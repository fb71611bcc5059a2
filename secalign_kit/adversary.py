"""The attacker in the training loop: embeddings that are moved against the model while it learns.

One datum: behind the data of an injected pair stand twelve random tokens. At first the rejected
answer has -7.5 nats a token; three moves of the tokens' embeddings raise it to -2.6, though each is
still nearest to its own token, and the DPO step is taken on the moved embeddings.

An adapter that is trained on texts, fixed or random, falls to an attacker who searches with
gradients. So one searches here, in every step, for a share of the injected pairs:

    e = embeddings of random printable tokens, d = noise of a tenth of the radius
    moves times:  d = clamp(d + 1.6 radius / moves * sign(gradient of log p(rejected) by d), radius)
    the DPO step is that of the pair whose prompt holds e + d

each coordinate on its own, in units of the embedding table's root mean square. The reference
log-probs stay those of the pair without an attacker. The idea is continuous adversarial training
(Xhonneux et al., arXiv 2405.15589); why it helps against attackers who exchange tokens: arXiv
2604.12817.

A move needs no gradient of the weights and nothing anew before its first free token: the prompt is
read up to there once, and every move runs only the rest of it and the rejected answer. What is
drawn depends on the seed and on the batch's own tokens, so a run that was killed goes on as if it
had not been, and ranks draw what one process would.

Limits: embeddings between tokens are no text, so this attacker is stronger than a real one in one
way, and weaker in another, since it takes a few steps only. For models whose prompts can be read
once (`shared_prefix.sharing`); the weights must lie on one device as a whole. In batches of one
pair, every epoch draws the same.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from . import prompts, ranks, shared_prefix
from .config import ADVERSARY_PLACES, RunConfig
from .logprobs import as_pair
from .models import Bundle
from .shared_prefix import Pair
from .tokenization import added_tokens

NOISE = 0.1  # at the start, times the radius
PATH = 1.6  # the length of all moves together, times the radius


@dataclass(frozen=True)
class Adversary:
    """What is drawn and how far it may move: `RunConfig`'s settings, in a model's own units.

    `radius` is in units of the embeddings, which have `width` numbers; `words` are the ids that
    are drawn from.
    """

    moves: int
    radius: float
    share: float
    tokens: int
    place: str
    seed: int
    words: tuple[int, ...]
    width: int

    def draw(self, rows: Sequence[dict]) -> list[tuple[Pair, tuple[int, ...], int]]:
        """For each row its pair, the positions of the prompt that are free to move, and a seed.

        The prompts of attacked pairs are longer by the drawn tokens; others have no position.
        """
        pairs = [as_pair(row) for row in rows]
        rng = random.Random(repr((self.seed, pairs)))
        return [self._opened(pair, row["spans"], rng)
                if row["spans"] and rng.random() < self.share else (pair, (), 0)
                for row, pair in zip(rows, pairs, strict=True)]

    def _opened(self, pair: Pair, spans: Sequence[int], rng: random.Random) -> tuple:
        prompt, *responses = pair
        place = rng.choice(ADVERSARY_PLACES[:-1]) if self.place == "any" else self.place
        start, end = spans[:2] if place in ("suffix", "prefix") else spans[2:]
        if place == "payload":
            return pair, tuple(range(start, end)), rng.getrandbits(63)
        before = {"prefix": self.tokens, "around": self.tokens // 2}.get(place, 0)
        drawn = rng.choices(self.words, k=self.tokens)
        opened = [*prompt[:start], *drawn[:before], *prompt[start:end], *drawn[before:],
                  *prompt[end:]]
        free = *range(start, start + before), *range(end + before, end + self.tokens)
        return (opened, *responses), free, rng.getrandbits(63)

    def noise(self, seed: int, count: int) -> torch.Tensor:
        """Where the moves of a pair's free tokens begin, [count, H]."""
        generator = torch.Generator().manual_seed(seed)
        return NOISE * self.radius * torch.randn(count, self.width, generator=generator)

    def move(self, moved: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        """One move uphill: offsets [M, H] by their slope [M, H]."""
        step = PATH * self.radius / self.moves
        return (moved + step * slope.sign()).clamp(-self.radius, self.radius)


def of(config: RunConfig, bundle: Bundle) -> Adversary | None:
    """The adversary of a run, None if it has none."""
    if not config.adversary_moves:
        return None
    embed = bundle.model.get_input_embeddings()
    width = embed(torch.tensor([0], device=bundle.device)).shape[-1]
    return Adversary(
        config.adversary_moves, config.adversary_radius * root_mean_square(bundle),
        config.adversary_share, config.adversary_tokens, config.adversary_place, config.seed,
        tuple(printable(bundle.tokenizer)), width)


@torch.no_grad()
def root_mean_square(bundle: Bundle) -> float:
    """Of all numbers of all embeddings, as the layer gives them; some scale what they store."""
    embed = bundle.model.get_input_embeddings()
    squares = [embed(ids).float().square().mean(1) for ids in
               torch.arange(embed.num_embeddings, device=bundle.device).split(4096)]
    return torch.cat(squares).mean().sqrt().item()


def printable(tokenizer) -> list[int]:
    """The ids of tokens that are printable ASCII by themselves, none of them added."""
    added = added_tokens(tokenizer)
    texts = ((i, tokenizer.decode([i])) for i in sorted(tokenizer.get_vocab().values()))
    return [i for i, text in texts
            if i not in added and text.strip() and text.isascii() and text.isprintable()]


def refuse(bundle: Bundle) -> None:
    """Raises ValueError for a model that cannot be attacked in its own training."""
    sharing = shared_prefix.sharing(bundle.model)
    if not (sharing.rows and sharing.caches):
        raise ValueError(f"the layers of model {bundle.name!r} do not let a prompt be read once, "
                         "which the adversary needs; set adversary_moves=0")
    if ranks.sharded():
        raise ValueError("the adversary needs the whole model on every rank; train without FSDP, "
                         "or set adversary_moves=0")


def refuse_long(rows: Sequence[dict], spans: Sequence[Sequence[int]], config: RunConfig) -> None:
    """Raises ValueError for pairs that do not fit `max_length` with the adversary's tokens."""
    room = config.max_length - (config.adversary_place != "payload") * config.adversary_tokens
    for number, (row, found) in enumerate(zip(rows, spans, strict=True)):
        prompt, *responses = map(len, as_pair(row))
        if found and prompt + max(responses) > room:
            raise ValueError(f"row {number} is longer than max_length={config.max_length} tokens "
                             "with the adversary's; raise max_length or drop this pair")


def spans(bundle: Bundle, pair: dict) -> list[int]:
    """Positions in the prompt: start and end of the data, start and end of the injection in them.

    [] for a pair without an injection. Where a token joins the injection to the text before it, the
    injection begins one token early.
    """
    if pair["injection_start"] < 0:
        return []
    instruction, data = prompts.messages_to_parts(pair["prompt"])
    read = _data(bundle, instruction, data)
    start, end = (_common(read, _data(bundle, instruction, data[: pair[f"injection_{side}"]]))
                  for side in ("start", "end"))
    if start == end:  # the front end left nothing of it
        return []
    first = read[0][0]
    return [first, first + len(read), first + start, first + end]


def _data(bundle: Bundle, instruction: str, data: str) -> list[tuple[int, int]]:
    encoded = prompts.encode(bundle.tokenizer, bundle.format, instruction, data)
    return [(at, token) for at, (token, role) in
            enumerate(zip(encoded.ids, encoded.roles, strict=True)) if role == "data"]


def _common(one: Sequence, other: Sequence) -> int:
    limit = min(len(one), len(other))
    return next((k for k in range(limit) if one[k] != other[k]), limit)


# --- the moves ------------------------------------------------------------------------------------


def collate(drawn: Sequence[tuple[Pair, tuple[int, ...], int]], adversary: Adversary,
            pad: int) -> dict[str, torch.Tensor]:
    """Tensors for the A attacked ones of B pairs, with M free and N rejected tokens.

    `rows` [A] are the attacked pairs, `row` and `at` [M] where the free tokens stand in the batch;
    `noise` [M, H]. Of each attacked pair, `heads` [A, L] end before its first free token, with
    `read` [A, L] saying what is no padding, and `tails` [A, W] hold what follows (`real` [A, W]).
    In the tails, `tail_row` and `tail_at` [M] are the free tokens, `source_row` and `source_at` [N]
    what predicts `target` [N].
    """
    free, noise, heads, tails, inside, scored = [], [], [], [], [], []
    for b, ((prompt, _, rejected), positions, seed) in enumerate(drawn):
        if not positions:
            continue
        first, a = positions[0], len(heads)
        free += [(b, at) for at in positions]
        inside += [(a, at - first) for at in positions]
        noise.append(adversary.noise(seed, len(positions)))
        heads.append(prompt[:first])
        tails.append([*prompt[first:], *rejected[:-1]])
        last = len(prompt) - 1 - first
        scored += [(a, last + k, token) for k, token in enumerate(rejected)]
    heads, read = shared_prefix.left_padded(heads, pad, "cpu")
    width = max(map(len, tails))
    names = ("row", "at"), ("tail_row", "tail_at"), ("source_row", "source_at", "target")
    tensors = {name: column for group, values in zip(names, (free, inside, scored), strict=True)
               for name, column in zip(group, torch.tensor(values).T.contiguous(), strict=True)}
    return tensors | {
        "rows": torch.tensor(sorted({b for b, _ in free})), "noise": torch.cat(noise),
        "heads": heads, "read": read,
        "tails": torch.tensor([tail + [pad] * (width - len(tail)) for tail in tails]),
        "real": torch.tensor([[1] * len(tail) + [0] * (width - len(tail)) for tail in tails])}


def attacked(model, attack: dict[str, torch.Tensor],
             adversary: Adversary) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of the free tokens after the moves [M, H], and before them the mean log p per
    token of each rejected answer in nats [A]. `model` is no wrapper such as DDP.
    """
    base = shared_prefix.base_of(model)
    state = base.training
    base.eval()  # no dropout, and no checkpoints, which keep no cache
    try:
        with torch.no_grad():
            cache, mask = shared_prefix.read(base, attack["heads"], attack["read"])
            rest = base.get_input_embeddings()(attack["tails"])
            origin = rest[attack["tail_row"], attack["tail_at"]].float()
        mask = torch.cat([mask, attack["real"]], dim=1)
        moved, before = attack["noise"], None
        for _ in range(adversary.moves):
            moved = moved.detach().requires_grad_()
            logps = rejected_logprobs(base, cache, mask, attack, rest, origin + moved)
            before = logps.detach() if before is None else before
            slope, = torch.autograd.grad(logps.sum(), moved)
            moved = adversary.move(moved.detach(), slope)
    finally:
        base.train(state)
    return origin + moved, per_answer(before, attack)


def rejected_logprobs(base, cache, mask: torch.Tensor, attack: dict, rest: torch.Tensor,
                      embeddings: torch.Tensor) -> torch.Tensor:
    """log p of each token of the rejected answers in nats, [N], behind heads that were read."""
    where = attack["tail_row"], attack["tail_at"]
    hidden = shared_prefix.follow(base, rest.index_put(where, embeddings.to(rest.dtype)), mask,
                                  cache)
    return shared_prefix.score(base, hidden[attack["source_row"], attack["source_at"]],
                               attack["target"])


def per_answer(logps: torch.Tensor, attack: dict) -> torch.Tensor:
    """The mean [A] over the tokens of each attacked pair's rejected answer."""
    sums = logps.new_zeros(2, len(attack["heads"]))
    both = torch.stack([logps, torch.ones_like(logps)])
    sums = sums.index_add(1, attack["source_row"], both)
    return sums[0] / sums[1]


def portrait(bundle: Bundle, adversary: Adversary, row: dict) -> dict:
    """What the moves do to one row of `training.prepare`, to look at.

    `before` and `after` are the rejected answer's mean log p per token in nats; `tokens` holds for
    each free token its text and its `neighbour`, the other token with the nearest embedding, how
    far off that is (`gap`), the `nearest` token after the moves, how far it `went`, and its
    `distance` from that one. All lengths are in root mean squares of a whole embedding.

    Raises ValueError for a row without an injection.
    """
    (pair, free, seed), = replace(adversary, share=1.0).draw([row])
    if not free:
        raise ValueError("this pair has no injection, so that the adversary leaves it alone; "
                         "choose another")
    attack = collate([(pair, free, seed)], adversary, bundle.tokenizer.pad_token_id)
    attack = {name: tensor.to(bundle.device) for name, tensor in attack.items()}
    vectors, before = attacked(bundle.model, attack, adversary)
    batch = shared_prefix.collate([pair], bundle.tokenizer.pad_token_id)
    batch = {name: tensor.to(bundle.device) for name, tensor in batch.items()}
    with torch.no_grad():
        table = bundle.model.get_input_embeddings()
        tokens = shared_prefix.token_logprobs(
            bundle.model, batch | {"replaced": (attack["row"], attack["at"], vectors)})
        ids = torch.arange(table.num_embeddings, device=bundle.device)
        known, own = table(ids).float(), batch["input_ids"][attack["row"], attack["at"]]
        far, nearest = torch.cdist(vectors, known).min(1)
        others = torch.cdist(known[own], known).scatter(1, own[:, None], torch.inf)
        gap, neighbour = others.min(1)
        went = (vectors - known[own]).norm(dim=1)
    unit = root_mean_square(bundle) * adversary.width**0.5
    texts = {name: [bundle.tokenizer.decode([i]) for i in found.tolist()] for name, found in
             (("token", own), ("neighbour", neighbour), ("nearest", nearest))}
    lengths = {name: (found / unit).tolist() for name, found in
               (("gap", gap), ("went", went), ("distance", far))}
    columns = texts | lengths
    return {"before": before.item(), "after": tokens[batch["rejected"] == 1].mean().item(),
            "tokens": [dict(zip(columns, values, strict=True))
                       for values in zip(*columns.values(), strict=True)]}


def plain_attacked(model, prompt: Sequence[int], rejected: Sequence[int], free: Sequence[int],
                   noise: Sequence[Sequence[float]], radius: float,
                   moves: int) -> tuple[list[list[float]], list[float]]:
    """The specification of `attacked` for one pair: whole forward passes, loops over numbers.

    Returns the embeddings of the free tokens, and the mean log p per token before each move and
    after the last.
    """
    base = shared_prefix.base_of(model)
    ids = torch.tensor([[*prompt, *rejected]], device=base.device)
    origin = base.get_input_embeddings()(ids).detach()
    moved, means = [list(row) for row in noise], []
    for move in range(moves + 1):
        offsets = torch.tensor(moved, device=base.device, requires_grad=True)
        inputs = origin.clone()
        for row, at in enumerate(free):
            inputs[0, at] = origin[0, at] + offsets[row]
        logps = base(inputs_embeds=inputs, use_cache=False).logits[0].float().log_softmax(-1)
        total = sum(logps[len(prompt) - 1 + k, token] for k, token in enumerate(rejected))
        means.append(total.item() / len(rejected))
        if move == moves:
            return inputs[0, list(free)].tolist(), means
        slopes, = torch.autograd.grad(total, offsets)
        for row, slope in enumerate(slopes.tolist()):
            for k, value in enumerate(slope):
                sign = (value > 0) - (value < 0)
                to = moved[row][k] + sign * PATH * radius / moves
                moved[row][k] = min(max(to, -radius), radius)
