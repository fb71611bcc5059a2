"""Log-prob scoring: shared prefixes and prompt caches against TRL's reference pass and a loop."""

import contextlib
import io
import tempfile
from pathlib import Path

import torch

from secalign_kit import logprobs, models, preference, training

from .dpo import config_of, token_limit
from .measuring import Result, compare, take_turns, timed


def pairs_against_trl(rounds: int, n_pairs: int = 600) -> Result:
    """Both responses of a pair: `score_pairs` and TRL's own reference precomputation."""
    config = config_of(n_pairs, False, 5)
    bundle = models.load("toy", four_bit=False)
    encoded = logprobs.encode_pairs(bundle, training.training_pairs(config), config.max_length)
    rows = training.prepare(config, bundle, training.training_pairs(config), progress=False)
    plain = rows.remove_columns(["ref_chosen_logps", "ref_rejected_logps"])
    trainer = training.build_trainer(config.replace(shared_prefix=False), bundle, rows,
                                     Path(tempfile.mkdtemp()))
    trainer._precompute_model_hash = "same"
    found = {}

    def ours(number: int) -> float:
        with models.insecure(bundle):
            spent, found["ours"] = timed(lambda: logprobs.score_pairs(bundle, encoded))
        return spent

    def theirs(number: int) -> float:
        # a fresh fingerprint, or TRL would read the last round's answer from its cache
        fresh = plain.add_column("round", [number] * len(plain))
        with contextlib.redirect_stderr(io.StringIO()):
            spent, scored = timed(lambda: trainer._precompute_ref_logps(fresh, "train", 64))
        found["theirs"] = scored["ref_chosen_logps"], scored["ref_rejected_logps"]
        return spent

    seconds = take_turns({"ours": ours, "TRL's reference pass": theirs}, rounds, "scoring pairs")
    gap = max((mine - torch.tensor(other)).abs().max().item()
              for mine, other in zip(found["ours"], found["theirs"], strict=True))
    assert gap < 1e-3, f"log-probs differ by {gap} nats"
    return compare(seconds, "TRL's reference pass", "log-prob scoring, two responses a prompt",
                   2 * n_pairs, "responses/s", f"log p within {gap:.1e}", token_limit(rows), 1.7)


def many_against_loop(rounds: int, prompts: int = 24, count: int = 8) -> Result:
    """`count` responses to each prompt: one cache each, and a forward pass per response."""
    bundle = models.load("toy", four_bit=False)
    pairs = training.training_pairs(config_of(prompts * count, False, 6))
    rows = logprobs.encode_pairs(bundle, pairs, 256)
    heads = [row["prompt_ids"] for row in rows[:prompts]]
    responses = [[row["chosen_ids"] for row in rows[k::prompts]] for k in range(prompts)]
    found = {}

    def ours(number: int) -> float:
        spent, found["ours"] = timed(lambda: logprobs.score_responses(bundle, heads, responses))
        return spent

    @torch.inference_mode()
    def one(prompt, response) -> float:
        ids = torch.tensor([[*prompt, *response]])
        labels = ids.clone()
        labels[:, : len(prompt)] = preference.IGNORED
        return preference.response_logprobs(bundle.model(input_ids=ids).logits, labels)[1].item()

    def loop(number: int) -> float:
        spent, found["loop"] = timed(lambda: [[one(p, r) for r in group] for p, group in
                                              zip(heads, responses, strict=True)])
        return spent

    seconds = take_turns({"ours": ours, "one by one": loop}, rounds, "scoring many")
    gap = max(abs(a - b) for mine, other in zip(found["ours"], found["loop"], strict=True)
              for a, b in zip(mine, other, strict=True))
    assert gap < 1e-3, f"log-probs differ by {gap} nats"
    read = sum(map(len, heads))
    said = sum(len(response) for group in responses for response in group)
    return compare(seconds, "one by one", f"log-prob scoring, {count} responses a prompt",
                   prompts * count, "responses/s", f"log p within {gap:.1e}",
                   f"{(count * read + said) / (read + said):.2f}x by tokens")


def scoring(rounds: int) -> list[Result]:
    return [pairs_against_trl(rounds), many_against_loop(rounds)]
