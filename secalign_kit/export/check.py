"""The check of an exported folder: another process, without the kit, must answer as the run does.

One datum: `Check(n=120, same=119, token=0.004, largest=0.31, ...)`: 119 of 120 greedy responses are
the run's, and log p differs by 0.004 nats a token on average.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .. import evaluation, injections, logprobs, models
from ..models import Bundle
from ..prompts import encode, encode_response
from ..samples import shipped_samples
from . import reload
from .template import guarded, messages

N = 120
MAX_NEW_TOKENS = 32
TOKEN = 0.05  # nats by which log p may differ, per token, on average
SAME = 0.95  # share of greedy responses that must be the run's; rounding turns near-ties


@dataclass(frozen=True)
class Check:
    """How near a reloaded folder is to its run.

    `same` of `n` greedy responses are the run's; log p of `responses` given answers differs by
    `token` nats a token on average, and by `largest` nats in sum where it differs most.
    """

    n: int
    same: int
    responses: int
    token: float
    largest: float
    examples: tuple[tuple[str, str], ...] = ()  # (the run's response, the folder's)

    @property
    def passed(self) -> bool:
        return self.same >= SAME * self.n and self.token <= TOKEN

    def lines(self) -> list[str]:
        return [f"prompts, token for token      {self.n} of {self.n}",
                f"greedy responses, the same    {self.same} of {self.n} "
                f"(at least {SAME:.0%} are asked for)",
                f"log p, mean difference        {self.token:.4f} nats a token, {self.responses} "
                f"answers (at most {TOKEN})",
                f"log p, largest difference     {self.largest:.2f} nats of an answer"]

    def as_dict(self) -> dict:
        return asdict(self) | {"tolerances": {"same": SAME, "token": TOKEN}}


def questions(bundle: Bundle, n: int = N) -> list[evaluation.Item]:
    """Held-out samples, every other one attacked: by all five attacks, real delimiters among them,
    so that the template's filter has work."""
    samples = shipped_samples("heldout")
    step = max(1, len(samples) // n)
    chosen = samples[::step][:n]
    clean = evaluation.clean_items(chosen[::2])
    hosts = [sample for sample in samples if sample.data][::step][: n - len(clean)]
    witness = injections.WITNESS["heldout"]
    attacked = [evaluation.attacked_items(hosts[k :: len(evaluation.ATTACKS)], attack, witness,
                                          bundle) for k, attack in enumerate(evaluation.ATTACKS)]
    return [*clean, *(item for items in attacked for item in items)]


def expected(bundle: Bundle, items: Sequence[evaluation.Item]) -> dict:
    """What the run says to the items: ids of prompts and answers, log-probs in nats, responses.

    The answers are the right one and the attackers' word.
    """
    form = guarded(bundle.tokenizer, bundle.format)
    prompts = [list(encode(bundle.tokenizer, form, i.instruction, i.data).ids) for i in items]
    texts = [_texts(item) for item in items]
    answers = [[list(encode_response(bundle.tokenizer, form, text)) for text in both]
               for both in texts]
    with models.merged(bundle), models.native_precision(bundle):
        scores = logprobs.score_responses(bundle, prompts, answers, batch_size=16)
    said = evaluation.generate(bundle, [(i.instruction, i.data) for i in items],
                               max_new_tokens=MAX_NEW_TOKENS, batch_size=16)
    return {"prompts": prompts, "answers": answers, "logprobs": scores, "responses": said}


def _texts(item: evaluation.Item) -> list[str]:
    return [item.expected, item.witness or injections.WITNESS["heldout"].answer]


def reloaded(folder: Path, bundle: Bundle, items: Sequence[evaluation.Item],
             base: str = "") -> dict:
    """What the folder says to the items, asked in a fresh process without the kit.

    Raises ValueError if that process fails.
    """
    asked = {"turns": [messages(i.instruction, i.data) for i in items],
             "answers": list(map(_texts, items)), "max_new_tokens": MAX_NEW_TOKENS,
             "cuda": bundle.device.type == "cuda", "base": base, "four_bit": bundle.four_bit}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        source, target = Path(place, "asked.json"), Path(place, "answered.json")
        source.write_text(json.dumps(asked), encoding="utf-8")
        done = subprocess.run([sys.executable, "-I", reload.__file__, str(folder), str(source),
                               str(target)], stderr=subprocess.PIPE, text=True)
        if done.returncode:
            words = (done.stderr.strip() or "no reason given").splitlines()[-1]
            raise ValueError(f"a process without the kit cannot load the export ({words}); nothing "
                             "was written")
        return json.loads(target.read_text(encoding="utf-8"))


def compare(ours: dict, theirs: dict) -> Check:
    """Raises ValueError if a prompt or an answer has other tokens, or the kit was imported."""
    if theirs["kit"]:
        raise ValueError("the process that checks an export has imported the kit")
    for key in ("prompts", "answers"):
        if other := [k for k, (a, b) in enumerate(zip(ours[key], theirs[key], strict=True))
                     if a != b]:
            raise ValueError(f"the exported chat template writes {len(other)} of {len(ours[key])} "
                             f"{key} with other tokens than the kit (first: {other[0]}); nothing "
                             "was written")
    pairs = [(score, sum(tokens), len(tokens))
             for scores, rows in zip(ours["logprobs"], theirs["logprobs"], strict=True)
             for score, tokens in zip(scores, rows, strict=True)]
    gaps = [(abs(a - b), tokens) for a, b, tokens in pairs]
    said = list(zip(ours["responses"], theirs["responses"], strict=True))
    return Check(len(said), sum(a == b for a, b in said), len(pairs),
                 sum(gap / tokens for gap, tokens in gaps) / len(gaps), max(gaps)[0],
                 tuple((a, b) for a, b in said if a != b)[:3])
