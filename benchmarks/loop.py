"""The attacker in the training loop: what it adds to a training step.

Each round takes the same batches of the recipe `secalign`, forward and backward: with the attacker
who reads a prompt once (ours), without one, and with one who reads whole rows anew for every move.
"""

import functools
import tempfile
import time
from pathlib import Path

import torch

from secalign_kit import adversary, models, shared_prefix, training
from secalign_kit.config import recipe

from .measuring import Result, compare, take_turns

MOVES = 3


def trainer_of(four_bit: bool, n_pairs: int):
    """A trainer that goes on from the shipped adapter, and its batches with and without attacks."""
    config = recipe("secalign").replace(four_bit=four_bit, n_pairs=n_pairs, start="secalign",
                                        adversary_moves=MOVES)
    bundle = models.load("toy", four_bit=four_bit)
    rows = training.prepare(config, bundle, training.training_pairs(config), progress=False)
    trainer = training.build_trainer(config, bundle, rows, Path(tempfile.mkdtemp()))
    trainer.model.train()
    order = list(training.LengthBuckets([len(ids) for ids in rows["prompt_ids"]],
                                        config.batch_size, 0))
    groups = [[rows[k] for k in order[start : start + config.batch_size]]
              for start in range(0, len(order), config.batch_size)]
    plain = functools.partial(training.collate, pad=bundle.tokenizer.pad_token_id)
    return trainer, *([trainer._prepare_inputs(make(group)) for group in groups]
                      for make in (trainer.data_collator, plain))


def anew(trainer, model, inputs: dict):
    """`PairTrainer.attacked` without anything kept: every move reads all rows of the batch."""
    attack, base = inputs["attack"], shared_prefix.base_of(model)
    embed, which = base.get_input_embeddings(), rejected(inputs)
    origin = embed(inputs["input_ids"][attack["row"], attack["at"]]).detach()
    moved = attack["noise"]
    for _ in range(MOVES):
        moved = moved.detach().requires_grad_()
        tokens = shared_prefix.token_logprobs(
            model, inputs | {"replaced": (attack["row"], attack["at"], origin + moved)})
        slope, = torch.autograd.grad(tokens[which].sum(), moved)
        moved = trainer.adversary.move(moved.detach(), slope)
    return (inputs | {"replaced": (attack["row"], attack["at"], origin + moved)},
            adversary.per_answer(tokens[which].detach(), attack))


def rejected(inputs: dict) -> torch.Tensor:
    """Which of the batch's tokens [N] are those of attacked pairs' rejected answers."""
    return (inputs["rejected"] == 1) & torch.isin(inputs["row"], inputs["attack"]["rows"])


def steps(trainer, batches: list[dict], number: int, attacked=None) -> float:
    """Seconds of a forward and a backward pass of every batch, whatever the round's number."""
    if attacked:
        trainer.attacked = functools.partial(attacked, trainer)
    began = time.perf_counter()
    for inputs in batches:
        trainer.compute_loss(trainer.model, inputs).backward()
        trainer.model.zero_grad()
    spent = time.perf_counter() - began
    vars(trainer).pop("attacked", None)
    trainer.noted.clear()
    return spent


@torch.no_grad()
def parity(trainer, batches: list[dict]) -> float:
    """The largest difference, in nats, of a rejected token's log p behind heads that were read once
    and in whole rows, where the tokens stand that are moved."""
    base, worst = shared_prefix.base_of(trainer.model), 0.0
    trainer.model.eval()
    for inputs in (inputs for inputs in batches if "attack" in inputs):
        attack = inputs["attack"]
        rest = base.get_input_embeddings()(attack["tails"])
        vectors = rest[attack["tail_row"], attack["tail_at"]] + attack["noise"]
        cache, mask = shared_prefix.read(base, attack["heads"], attack["read"])
        mask = torch.cat([mask, attack["real"]], dim=1)
        short = adversary.rejected_logprobs(base, cache, mask, attack, rest, vectors)
        whole = shared_prefix.token_logprobs(
            base, inputs | {"replaced": (attack["row"], attack["at"], vectors)})
        worst = max(worst, (short - whole[rejected(inputs)]).abs().max().item())
    trainer.model.train()
    assert worst < 1e-4, f"reading prompts once changes log p by {worst} nats"
    return worst


def counted(batches: list[dict], plain: list[dict]) -> float:
    """A step's tokens with the attacker to those without, backward passes as long as forward ones.

    Heads are read forwards only, what follows them back and forth for every move.
    """
    def tokens(inputs: dict) -> int:
        own = 2 * int((inputs["segments"] >= 0).sum())
        if (attack := inputs.get("attack")) is None:
            return own
        return own + int(attack["read"].sum()) + 2 * MOVES * int(attack["real"].sum())

    return sum(map(tokens, batches)) / sum(map(tokens, plain))


def loop(rounds: int, n_pairs: int = 512) -> list[Result]:
    """`ratio` is the others' time to ours: 0.59 of a plain step is 1.7 times its time."""
    results = []
    for four_bit in (False, True):
        trainer, batches, plain = trainer_of(four_bit, n_pairs)
        checked = f"log p within {parity(trainer, batches):.1e} nats"
        limit = f"{1 / counted(batches, plain):.2f}x by tokens"
        share = sum(len(b["attack"]["rows"]) for b in batches if "attack" in b) / n_pairs
        name = (f"DPO step with {MOVES} moves of 12 tokens in {share:.0%} of the pairs, 4-bit "
                f"{'on' if four_bit else 'off'}")
        seconds = take_turns({
            "ours": functools.partial(steps, trainer, batches),
            "no attacker": functools.partial(steps, trainer, plain),
            "every row anew": functools.partial(steps, trainer, batches, attacked=anew)},
            rounds, name)
        results.append(compare(seconds, "no attacker", name, n_pairs, "pairs/s", checked, limit,
                               1 / 1.7))
        results.append(compare(seconds, "every row anew", name, n_pairs, "pairs/s", checked))
    return results
