"""The check of an exported folder: another process, without the kit, must answer as the run does.

One datum: `Check(n=120, same=119, margin=0.02, layer=0.0011, token=0.004, ...)`: of 120 greedy
responses 119 are the run's, and where the other one parts from it the run preferred its own token
by 0.02 nats; no layer differs by more than 0.11% of its size; log p differs by 0.004 nats a token.

Both sides multiply in fp32: the run with its adapter beside its weights, the folder as it was
written. So what differs is what was written, and not how either is rounded when it is served.
"""

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .. import evaluation, generation, injections, logprobs, models
from ..models import Bundle
from ..prompts import encode, encode_response
from ..samples import shipped_samples
from ..shared_prefix import base_of
from . import reload, weights
from .template import guarded, messages

N = 120
MAX_NEW_TOKENS = 32
BATCH = 16


@dataclass(frozen=True)
class Tolerance:
    """What rounding each weight once may do."""

    layer: float  # of a layer's size; bf16 rounds a weight by 1/256 of itself at most
    token: float  # nats by which log p may differ, per token, on average
    margin: float  # nats by which the run may prefer its own token where a response parts from it


TOLERANCES = {"bf16": Tolerance(2**-8, 0.05, 0.5), "fp32": Tolerance(1e-4, 0.001, 0.01)}


@dataclass(frozen=True)
class Check:
    """How near a reloaded folder is to its run.

    Of `layers` layers the one that differs most, `name`, does so by `layer` of its size. `same` of
    `n` greedy responses are the run's; where others part from it, the run preferred its own token
    by `margin` nats at most. log p of `responses` given answers differs by `token` nats a token on
    average, and by `largest` nats in sum where it differs most. `rounding` names `TOLERANCES`.
    """

    rounding: str
    layers: int
    name: str
    layer: float
    n: int
    same: int
    margin: float
    responses: int
    token: float
    largest: float
    examples: tuple[tuple[str, str], ...] = ()  # (the run's response, the folder's)

    @property
    def allowed(self) -> Tolerance:
        return TOLERANCES[self.rounding]

    @property
    def passed(self) -> bool:
        return all(found <= most for found, most in (
            (self.layer, self.allowed.layer), (self.token, self.allowed.token),
            (self.margin, self.allowed.margin)))

    def lines(self) -> list[str]:
        least = self.allowed
        return [f"prompts, token for token      {self.n} of {self.n}",
                f"layers, largest difference    {self.layer:.2%} of {self.name!r}, of "
                f"{self.layers} (at most {least.layer:.2%})",
                f"log p, mean difference        {self.token:.4f} nats a token, {self.responses} "
                f"answers (at most {least.token})",
                f"log p, largest difference     {self.largest:.2f} nats of an answer",
                f"greedy responses, the same    {self.same} of {self.n}{self._parted()}"]

    def _parted(self) -> str:
        if self.same == self.n:
            return ""
        if math.isinf(self.margin):
            return "; one goes on behind the other's end (none may)"
        return (f"; where others part, the run prefers its own token by {self.margin:.3f} nats at "
                f"most (at most {self.allowed.margin})")

    def as_dict(self) -> dict:
        return asdict(self) | {"tolerances": asdict(self.allowed)}


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
    """What the run says to the items: ids of prompts and answers, log-probs in nats, responses,
    and `reload.sketches` of its layers.

    The answers are the right one and the attackers' word.
    """
    form = guarded(bundle.tokenizer, bundle.format)
    prompts = [list(encode(bundle.tokenizer, form, i.instruction, i.data).ids) for i in items]
    texts = [_texts(item) for item in items]
    answers = [[list(encode_response(bundle.tokenizer, form, text)) for text in both]
               for both in texts]
    with models.in_fp32(bundle.model):
        scores = logprobs.score_responses(bundle, prompts, answers, batch_size=BATCH)
        said = generation.greedy(bundle, prompts, MAX_NEW_TOKENS, batch_size=BATCH)
        layers = reload.sketches(base_of(bundle.model))
    texts = bundle.tokenizer.batch_decode(said, skip_special_tokens=True)
    ends = weights.generation(bundle).eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return {"prompts": prompts, "answers": answers, "logprobs": scores, "layers": layers,
            "responses": [text.strip() for text in texts],
            "ids": [_ended(ids, ends) for ids in said]}


def _ended(ids: list[int], ends: list[int]) -> list[int]:
    """A response up to where an export ends it, its end token included; the run's is the first."""
    whole = ids if len(ids) == MAX_NEW_TOKENS else [*ids, ends[0]]
    return whole[: next((at + 1 for at, i in enumerate(whole) if i in ends), len(whole))]


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


def margins(bundle: Bundle, ours: dict, theirs: dict) -> list[float]:
    """For every response that parts from the run's: by how many nats the run prefers its own token.

    At the first token that differs; infinite where one response goes on behind the other's end.
    """
    found, asked, tokens = [], [], []
    for prompt, own, other in zip(ours["prompts"], ours["ids"], theirs["ids"], strict=True):
        at = next((k for k, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), None)
        if at is not None:
            asked.append([*prompt, *own[:at]])
            tokens.append([[own[at]], [other[at]]])
        elif len(own) != len(other):
            found.append(math.inf)
    with models.in_fp32(bundle.model):
        scores = logprobs.score_responses(bundle, asked, tokens, batch_size=BATCH)
    return found + [mine - other for mine, other in scores]


def compare(bundle: Bundle, ours: dict, theirs: dict, rounding: str) -> Check:
    """The check, of what both say; `rounding` names the tolerances.

    Raises ValueError if a prompt or an answer has other tokens, the layers have other names, or the
    kit was imported.
    """
    _refuse_others(ours, theirs)
    parted = margins(bundle, ours, theirs)
    pairs = [(score, sum(tokens), len(tokens))
             for scores, rows in zip(ours["logprobs"], theirs["logprobs"], strict=True)
             for score, tokens in zip(scores, rows, strict=True)]
    gaps = [(abs(a - b), tokens) for a, b, tokens in pairs]
    said = list(zip(ours["responses"], theirs["responses"], strict=True))
    layer, name = max((_apart(numbers, theirs["layers"][name]), name)
                      for name, numbers in ours["layers"].items())
    return Check(rounding, len(ours["layers"]), name, layer, len(said), len(said) - len(parted),
                 max(parted, default=0.0), len(pairs),
                 sum(gap / tokens for gap, tokens in gaps) / len(gaps), max(gaps)[0],
                 tuple((a, b) for a, b in said if a != b)[:3])


def _apart(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How far two layers' sketches are from each other, as a share of the first one's size."""
    return math.dist(ours, theirs) / max(math.hypot(*ours), 1e-30)


def _refuse_others(ours: dict, theirs: dict) -> None:
    if theirs["kit"]:
        raise ValueError("the process that checks an export has imported the kit")
    for key in ("prompts", "answers"):
        if other := [k for k, (a, b) in enumerate(zip(ours[key], theirs[key], strict=True))
                     if a != b]:
            raise ValueError(f"the exported chat template writes {len(other)} of {len(ours[key])} "
                             f"{key} with other tokens than the kit (first: {other[0]}); nothing "
                             "was written")
    if ours["layers"].keys() != theirs["layers"].keys():
        raise ValueError("the reloaded export has other layers than the run; nothing was written")
