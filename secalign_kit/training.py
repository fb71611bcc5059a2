"""Training: SecAlign's DPO on injected preference pairs, with LoRA on a 4-bit model.

One datum of the log: `{"step": 40, "loss": 0.21, "margin": 3.4, "chosen_logprob": -1.9,
"rejected_logprob": -31.2}`, log-probs in summed nats per response, mean of a fixed probe set
(`chosen_logprobs` and `rejected_logprobs` list its pairs).

What happens in one training step stands in `PairTrainer.compute_loss`; it reads the log-probs of
`shared_prefix` and the loss of `preference`. All around it (adapter, optimizer, checkpoints) is
TRL's `DPOTrainer`. The reference is the model without its adapter (no second model in memory); its
log-probs are computed once, before training.

The losses that the paper compares with (`preference.LOSSES`: IPO, ORPO, KTO, SimPO) and StruQ's
supervised one run on the same forward pass, so that they differ in nothing but the loss.

With `shared_prefix: false`, TRL's own step and loss are used as they are, for DPO and IPO, and a
warning says so.

On several processes (`accelerate launch -m secalign_kit train ...`) every rank computes its share
of each batch; the loss is that of the whole batch, so a run is the same on one GPU and on many. In
a notebook, with everything that touches a GPU imported inside:

    def job():
        from secalign_kit import config, training
        settings = config.recipe("secalign").replace(model="qwen3-4b", output="runs/mine")
        bundle = training.base_model(settings)
        training.train(settings, training.training_pairs(settings, bundle=bundle),
                       training.probe_pairs(settings, "validation", 64), bundle)

    accelerate.notebook_launcher(job, num_processes=2)

This was run on two CPU processes with the embedded model, and not on GPUs.

Limits: one method of TRL that is not public is overridden, `_prepare_dataset`; `pyproject.toml`
names the versions of TRL that this was tested with. With FSDP the run's model stays in shards when
it has been trained; load its adapter to use it.
"""

import contextlib
import functools
import hashlib
import json
import math
import platform
import random
import shutil
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Sampler
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

from . import (
    adapters,
    adversary,
    english,
    fused,
    generation,
    injections,
    memory,
    models,
    pairs,
    parity,
    preference,
    ranks,
    roles,
    shared_prefix,
)
from .adversary import Adversary
from .config import RunConfig
from .logprobs import as_pair, encode_pair, encode_pairs, score_pairs  # noqa: F401 (as in 0.1.0)
from .models import Bundle
from .preference import PairScores, dpo_loss
from .progress import bar as progress_bar
from .samples import Sample, alone, as_json, shipped_samples, write_json, write_text

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets")
DIVERGED = 20.0  # times the first step's loss, or times 1 where that is less, as ln 2 for DPO
APART = 0.3  # nats a pair; different attention kernels in bf16 were up to 0.5 apart
IDLE, LIKELY = 1e-3, -1.0  # nats a token: no change, and an answer that is given anyway
ATTACKED = ("adversary_before", "adversary_after", "adversary_margin")
ANSWER_TOKENS = 48  # of a real model's own answers; longer ones are cut and get no end token
METRICS = ("rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected")  # TRL's names


@dataclass
class Run:
    """A finished training: the secure bundle, its log and its folder."""

    bundle: Bundle
    metrics: list[dict]
    folder: Path
    seconds: float


class LengthBuckets(Sampler):
    """Indices in batches of similar length, the batches in random order, anew each epoch."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed + 7919 * self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        size, pool = self.batch_size, 16 * self.batch_size
        batches = []
        for start in range(0, len(order), pool):
            group = sorted(order[start : start + pool], key=lambda k: self.lengths[k])
            batches += [group[i : i + size] for i in range(0, len(group), size)]
        if len(batches[-1]) < size:  # a short batch stays last, or all after it would be shifted
            whole, rest = batches[:-1], batches[-1:]
        else:
            whole, rest = batches, []
        shuffled = torch.randperm(len(whole), generator=generator).tolist()
        for batch in [whole[k] for k in shuffled] + rest:
            yield from batch


class EncodedDPOTrainer(DPOTrainer):
    """TRL's trainer, its step and its loss, on pairs that are encoded already."""

    fused = False  # its own step never is

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset  # by `logprobs.encode_pairs`: TRL would tokenize texts, and cut long ones

    def get_train_dataloader(self) -> DataLoader:
        lengths = [sum(map(len, as_pair(row))) for row in self.train_dataset]
        size = self.args.train_batch_size
        loader = DataLoader(
            self.train_dataset, size, sampler=LengthBuckets(lengths, size, self.args.seed),
            collate_fn=self.data_collator)
        # every rank reads the whole batch, and `collate` takes its share
        return prepare_data_loader(loader, self.accelerator.device, num_processes=1,
                                   process_index=0, put_on_device=True)


def fuses(trainer: DPOTrainer) -> bool:
    """Whether a trainer's steps are `fused`: on GPUs, with whole weights."""
    return trainer.model.device.type == "cuda" and not trainer.is_fsdp_enabled


class PairTrainer(EncodedDPOTrainer):
    """TRL's trainer with a step of our own: `collate` makes the batch, `compute_loss` the loss.

    `objective` and `sft_weight` are those of `preference.batch_loss`; `precision` is the context
    that the model runs in; `adversary`, if there is one, attacks the pairs that `collate` drew, in
    the context `still`.
    """

    def __init__(self, *args, objective: str, sft_weight: float = 0.0,
                 precision=contextlib.nullcontext, adversary: Adversary | None = None,
                 still=contextlib.nullcontext, **kwargs):
        super().__init__(*args, **kwargs)
        self.objective, self.sft_weight, self.precision = objective, sft_weight, precision
        self.adversary, self.still = adversary, still
        self.fused = fuses(self)
        self.noted: list[torch.Tensor] = []
        self.noted_attacks: list[torch.Tensor] = []

    def train(self, *args, **kwargs):
        """As TRL's; on a GPU the layers run in fewer kernels (`fused.steps`)."""
        with self.kernels() as self.changed:
            return super().train(*args, **kwargs)

    def kernels(self):
        """The context of all steps, their backward passes included."""
        if not self.fused:
            return contextlib.nullcontext()
        decoder = shared_prefix.decoder_of(shared_prefix.base_of(self.model))
        return fused.steps(self.model, decoder, sparing=self.args.gradient_checkpointing)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of a batch of B pairs with N response tokens, a scalar.

        On several ranks, B pairs are this rank's, and the loss is that of all ranks' pairs.
        """
        # log p of every response token under the policy, then of every response: [N], [B], [B]
        with self.precision():
            if "attack" in inputs:
                inputs, before = self.attacked(model, inputs)
            tokens = shared_prefix.token_logprobs(model, inputs)
            kl = self.drift(model, inputs) if "mismatched" in inputs else 0.0
        chosen, rejected = shared_prefix.sum_responses(tokens, inputs)
        lengths = shared_prefix.sum_responses(torch.ones_like(tokens), inputs)
        # under the reference, the model without its adapter, they were computed before training
        reference = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        scores = PairScores(chosen, rejected, *reference, *lengths, kl)
        if self.adversary:
            self.note_attack(scores, inputs, before if "attack" in inputs else None)
        scores = self.of_all(scores, inputs["pairs"])
        self.note(scores)
        return preference.batch_loss(scores, self.objective, self.args.beta, self.sft_weight)

    def attacked(self, model, inputs: dict) -> tuple[dict, torch.Tensor]:
        """The batch with the adversary's embeddings in its prompts, and log p before its moves."""
        attack = inputs["attack"]
        with self.still():
            vectors, before = adversary.attacked(self.accelerator.unwrap_model(model), attack,
                                                 self.adversary)
        return inputs | {"replaced": (attack["row"], attack["at"], vectors)}, before

    @torch.no_grad()
    def note_attack(self, scores: PairScores, inputs: dict, before: torch.Tensor | None) -> None:
        """Keeps the sums of `ATTACKED` over the attacked pairs of all ranks, and their number."""
        sums = scores.chosen.new_zeros(4)
        if before is not None and self.accelerator.process_index < inputs["pairs"]:
            rows = inputs["attack"]["rows"]
            margins = dpo_loss(scores.chosen, scores.rejected, scores.ref_chosen,
                               scores.ref_rejected, self.args.beta)[1]
            after = (scores.rejected / scores.rejected_tokens)[rows]
            sums = torch.stack([before, after, margins[rows], torch.ones_like(after)]).sum(1)
        self.noted_attacks.append(self.accelerator.reduce(sums, "sum"))

    def of_all(self, scores: PairScores, pairs: int) -> PairScores:
        """The scores of the whole batch, so many pairs, from every rank's share of it.

        A rank's own scores carry their gradient, times the number of ranks: gradients of ranks are
        averaged, and what a batch wants is their sum.
        """
        if (n := self.accelerator.num_processes) == 1:
            return scores
        rank = self.accelerator.process_index
        shares = [len(range(k, pairs, n)) for k in range(n)]  # as `collate` shares; 0 is the most
        columns = [field.name for field in fields(scores) if field.name != "kl"]
        own = torch.stack([getattr(scores, name) for name in columns])
        own = own.detach() + n * (own - own.detach())
        filled = F.pad(own.detach(), (0, shares[0] - own.shape[1]))
        parts = [part[:, :share] for part, share in
                 zip(self.accelerator.gather(filled[None]), shares, strict=True)]
        parts[rank] = own[:, : shares[rank]]
        # without a pair of its own a rank still owes the others a gradient, of nothing
        together = torch.cat(parts, dim=1) + (0 if shares[rank] else 0 * own.sum())
        return replace(scores, **dict(zip(columns, together, strict=True)))

    @torch.no_grad()
    def drift(self, model, inputs) -> torch.Tensor:
        """KTO's reference point: how much likelier mismatched responses became, in nats, or 0."""
        batch, pairs = inputs["mismatched"], inputs["pairs"]
        policy = torch.cat(shared_prefix.pair_logprobs(model, batch))
        with self.accelerator.unwrap_model(model).disable_adapter():
            reference = torch.cat(shared_prefix.pair_logprobs(model, batch))
        counts = self.accelerator.process_index < pairs  # or it has no pair of its own
        change = self.accelerator.reduce((policy - reference).sum() * counts, "sum")
        return (change / (2 * pairs)).clamp(min=0)

    @torch.no_grad()
    def note(self, scores: PairScores) -> None:
        """Keeps a batch's `METRICS` [4] on their device, since reading a number waits for it."""
        policy = scores.chosen, scores.rejected
        reference = scores.ref_chosen, scores.ref_rejected
        margins = dpo_loss(*policy, *reference, self.args.beta)[1]  # DPO's, whatever the loss
        self.noted.append(torch.stack([margins, (margins > 0).float(), *policy]).mean(1))

    def log(self, logs: dict, *args, **kwargs) -> None:
        if self.noted:
            logs |= zip(METRICS, torch.stack(self.noted).mean(0).tolist(), strict=True)
            self.noted.clear()
        if self.noted_attacks:
            *sums, count = torch.stack(self.noted_attacks).sum(0).tolist()
            logs |= {name: value / count for name, value in zip(ATTACKED, sums, strict=True)
                     if count}
            self.noted_attacks.clear()
        super().log(logs, *args, **kwargs)


def collate(rows: Sequence[dict], pad: int, mismatched: bool = False, rank: int = 0,
            of: int = 1, opponent: Adversary | None = None) -> dict:
    """A rank's share of a batch: `shared_prefix.collate` and the reference's log-probs.

    `pairs` is the number of pairs in the whole batch; a rank for which none is left gets the first
    one, which does not count. With `mismatched`, which KTO needs, also every prompt with the
    responses of the pair before it. Where the `opponent` attacks pairs of the share, `attack` is
    what `adversary.collate` makes of them.
    """
    pairs = [as_pair(row) for row in rows]
    own = range(len(rows))[rank::of] or range(1)
    drawn = opponent.draw(rows) if opponent else [(pair, (), 0) for pair in pairs]
    batch = shared_prefix.collate([drawn[k][0] for k in own], pad) | {"pairs": len(rows)}
    if any(drawn[k][1] for k in own):
        batch["attack"] = adversary.collate([drawn[k] for k in own], opponent, pad)
    for key in ("ref_chosen_logps", "ref_rejected_logps"):
        batch[key] = torch.tensor([rows[k][key] for k in own])
    if mismatched:
        batch["mismatched"] = shared_prefix.collate(
            [(pairs[k][0], *pairs[k - 1][1:]) for k in own], pad)
    return batch


class RunLog(TrainerCallback):
    """Per step: loss and margin of the batch, log-probs of a fixed probe set; JSONL and bar.

    Every rank has the records; the first one writes them, and calls `on_record`.
    """

    def __init__(self, path: Path, probe, every: int, steps: int, on_record=None,
                 progress: bool = True):
        self.path, self.probe, self.every, self.on_record = path, probe, every, on_record
        lines = path.read_text().split("\n")[:-1] if path.exists() else []  # whole lines only
        self.records: list[dict] = [json.loads(line) for line in lines]
        self.writes = ranks.first()
        self.bar = progress_bar(steps, "training", progress and self.writes, leave=True)

    def on_train_begin(self, args, state, control, **kwargs):
        self.records = [r for r in self.records if r["step"] <= state.global_step]
        if self.writes:
            write_text(self.path, "".join(as_json(r) + "\n" for r in self.records))
        self.bar.update(state.global_step - self.bar.n)
        if not self.records:
            self._write({"step": 0, **self.probe()})

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or "loss" not in logs:
            return
        record = {"step": state.global_step, "loss": logs["loss"],
                  "margin": logs["rewards/margins"], "learning_rate": logs.get("learning_rate")}
        if ATTACKED[0] in logs:
            if not any(ATTACKED[0] in before for before in self.records):
                refuse_idle(*(logs[name] for name in ATTACKED[:2]))
            record |= {name: logs[name] for name in ATTACKED}
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            record |= self.probe()
        first = next((before["loss"] for before in self.records if "loss" in before), logs["loss"])
        refuse_diverged(record, first)
        self._write(record)
        self.bar.set_postfix(loss=f"{record['loss']:.3f}", margin=f"{record['margin']:.2f}")
        self.bar.update(state.global_step - self.bar.n)

    def _write(self, record: dict) -> None:
        self.records.append(record)
        if not self.writes:
            return
        with open(self.path, "a") as log:
            log.write(as_json(record) + "\n")
        if self.on_record:
            self.on_record(record)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


class FirstStep(TrainerCallback):
    """Looks at a run's first step: weights that are not trained, a reference that is not the base.

    bitsandbytes left LoRA without gradients on some CPUs, with no more than a warning; see
    `models.keep_gradients`. `even` says that policy and reference begin as one, so that the first
    margin, `beta` times nats, is 0 but for rounding.
    """

    def __init__(self, even: bool, beta: float):
        self.even, self.beta, self.seen = even, beta, False

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not self.seen and not ranks.sharded():  # a rank need not hold a part of every weight
            refuse_untrained(model)
        self.seen = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.even and state.global_step == 1 and logs and METRICS[0] in logs:
            warn_of_other_reference(logs[METRICS[0]] / self.beta)


def refuse_untrained(model) -> None:
    """Raises ValueError if an adapter's weight in the text model has no gradient, or if all are 0.
    """
    decoder = shared_prefix.decoder_of(shared_prefix.base_of(model))
    trained = {name: weight.grad for name, weight in decoder.named_parameters()
               if weight.requires_grad}
    without = [name for name, gradient in trained.items() if gradient is None
               and ".lora_" in name and "expert" not in name]  # of which a batch may ask none
    if without:
        raise ValueError(f"{len(without)} of {len(trained)} weights of the adapter get no gradient "
                         f"(first: {without[0]}) and would stay as they are; load the model anew "
                         "with models.load, and choose another output folder")
    gradients = [gradient for gradient in trained.values() if gradient is not None]
    if gradients and not any(gradient.any() for gradient in gradients):
        raise ValueError("every gradient of the first step is 0, so that the adapter would change "
                         "nothing; check the pairs, and choose another output folder")


def warn_of_other_reference(nats: float) -> None:
    """Warns if chosen and rejected are this far apart before any training, as the mean of a batch.
    """
    if abs(nats) > APART:
        warnings.warn(f"policy and reference differ by {nats:.2f} nats a pair before the first "
                      "step, more than rounding does: the reference may be another model than the "
                      "base, or computed in another way", stacklevel=2)


def refuse_diverged(record: dict, first: float) -> None:
    """Raises ValueError if a step's numbers are none, or its loss is far above the first step's."""
    broken = [f"{name} is no number" for name in ("loss", "chosen_logprob", "rejected_logprob")
              if not math.isfinite(record.get(name, 0.0))]
    if record["loss"] > DIVERGED * max(first, 1.0):
        broken.append(f"the loss grew from {first:.2f} to {record['loss']:,.2f}")
    if broken:
        raise ValueError(f"{broken[0]} at step {record['step']}; lower learning_rate, and choose "
                         "another output folder")


def refuse_idle(before: float, after: float) -> None:
    """Raises ValueError for an adversary whose moves change nothing, or do not raise log p.

    In nats per token. Where the rejected answer is likely already, as an insecure model's is, there
    is nothing to raise, and long moves may lower it.
    """
    if abs(after - before) < IDLE or after < before < LIKELY:
        raise ValueError(f"the adversary does nothing: log p of the rejected answers is "
                         f"{before:.4f} nats a token before its moves and {after:.4f} after them; "
                         "change adversary_moves or adversary_radius, and choose another output "
                         "folder")


def trainer_arguments(config: RunConfig, folder: Path, device: torch.device,
                      half: bool = False) -> DPOConfig:
    """Every TRL default that costs time or changes the method is set here.

    `half` is for models in fp16, whose gradients need scaling.
    """
    arguments = DPOConfig(
        output_dir=str(folder / "checkpoints"),
        beta=config.beta, loss_type=["ipo" if config.loss == "ipo" else "sigmoid"],
        learning_rate=config.learning_rate, lr_scheduler_type="cosine",
        per_device_train_batch_size=config.batch_size, num_train_epochs=config.epochs,
        max_length=config.max_length, disable_dropout=config.lora_dropout == 0,
        gradient_accumulation_steps=config.accumulation,
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=False, fp16=half, use_cpu=device.type == "cpu",
        logging_steps=1, logging_nan_inf_filter=False, report_to="none", disable_tqdm=True,
        seed=config.seed,
        save_strategy="steps", save_steps=config.save_steps, save_total_limit=1,
        remove_unused_columns=False, dataloader_pin_memory=False, max_grad_norm=1.0,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one of several, where nobody asked for more
    return arguments


def prepare(config: RunConfig, bundle: Bundle, dataset: Dataset, progress: bool = True,
            cache: Path | None = None) -> Dataset:
    """Encoded pairs with the reference's log-probs, the columns TRL's trainer reads.

    `cache` is a file that keeps the log-probs for the same pairs and the same weights.
    """
    rows = encode_pairs(bundle, dataset, config.max_length)
    parity.check(bundle, rows)
    refuse_beside(config, bundle)
    spans = {}
    if config.adversary_moves:
        adversary.refuse(bundle)
        spans["spans"] = [adversary.spans(bundle, pair) for pair in dataset]
        adversary.refuse_long(rows, spans["spans"], config)
    rows = read_in_steps(config, rows)
    if supervises(config):
        chosen = rejected = torch.zeros(len(rows))
    else:
        with models.native_precision(bundle):  # as in training, so that the first loss is ln 2
            chosen, rejected = reference_logprobs(bundle, rows, progress, cache,
                                                  scoring_batch(config))
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    return Dataset.from_dict(columns | spans | {"ref_chosen_logps": chosen.tolist(),
                                        "ref_rejected_logps": rejected.tolist()})


def refuse_beside(config: RunConfig, bundle: Bundle) -> None:
    """Raises ValueError for a model that cannot have what the run learns beside its adapter."""
    if config.beside == "none":
        return
    roles.refuse(bundle.model, bundle.tokenizer, bundle.format, config.beside)
    if not shared_prefix.sharing(bundle.model).caches:
        raise ValueError(f"the layers of model {bundle.name!r} do not let a prompt be read once, "
                         f"which {config.beside} need; choose another model, or beside=none")
    if ranks.sharded():
        raise ValueError(f"{config.beside} need the whole model on every rank; train without FSDP, "
                         "or set beside=none")


def supervises(config: RunConfig) -> bool:
    """Whether neither the reference nor the rejected answers are computed, which cost a third.

    Those of the embedded model are, for its figures.
    """
    return config.loss == "sft" and config.samples == "english"


def read_in_steps(config: RunConfig, rows: Sequence[dict]) -> list[dict]:
    """The encoded pairs as steps read them: if supervised, one token stands for the rejected."""
    if not supervises(config):
        return list(rows)
    return [row | {"rejected_ids": row["rejected_ids"][-1:]} for row in rows]


def scoring_batch(config: RunConfig) -> int:
    """Pairs at once where nothing is trained, which needs less memory for each."""
    return min(64, 2 * config.batch_size)


def reference_logprobs(bundle: Bundle, rows: Sequence[dict], progress: bool,
                       cache: Path | None,
                       batch_size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """`score_pairs` under the reference, read from `cache` if its content hash is the same.

    Raises ValueError if it is not and a training beside it has begun, which would go on wrongly.
    """
    key = ranks.of_first(lambda: content_hash(bundle, rows)) if cache else ""
    if found := ranks.of_first(lambda: _stored(cache, key)):
        return found
    chosen, rejected = shared_scores(bundle, rows, batch_size,
                                     "reference log-probs" if progress else "")
    if cache and ranks.first():
        models.write_tensors(cache, {"chosen": chosen, "rejected": rejected}, {"content": key})
    return chosen, rejected


def _stored(cache: Path | None, key: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    if not (cache and cache.exists()):
        return None
    with safe_open(cache, "pt") as stored:
        if stored.metadata().get("content") == key:
            return stored.get_tensor("chosen"), stored.get_tensor("rejected")
    if last_checkpoint(cache.parent):
        raise ValueError(f"{str(cache.parent)!r} holds a run on other pairs or another base "
                         "model; choose another output folder or remove it")
    return None


def shared_scores(bundle: Bundle, rows: Sequence[dict], batch_size: int,
                  progress: str = "") -> tuple[torch.Tensor, torch.Tensor]:
    """`score_pairs`, each rank a share of the rows."""
    def scores(share: list[dict]) -> list[list[float]]:
        both = score_pairs(bundle, share, batch_size, progress if ranks.first() else "")
        return torch.stack(both, dim=1).tolist()

    chosen, rejected = torch.tensor(ranks.each(rows, scores)).T.contiguous()
    return chosen, rejected


def content_hash(bundle: Bundle, rows: Sequence[dict]) -> str:
    """A hash of every weight and every token id that the log-probs depend on."""
    text = json.dumps([models.weights_hash(bundle), list(map(as_pair, rows))])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def build_trainer(config: RunConfig, bundle: Bundle, rows: Dataset, folder: Path,
                  callbacks=()) -> EncodedDPOTrainer:
    """A trainer over the bundle's base model with a fresh LoRA; `bundle.model` becomes wrapped.

    A `PairTrainer`, or TRL's own where prefixes are not to be shared. Raises ValueError for a kto
    batch of one pair.
    """
    torch.manual_seed(config.seed)  # peft draws LoRA A from torch's generator
    if config.loss == "kto" and len(rows) % config.batch_size == 1:
        raise ValueError(f"{len(rows)} pairs in batches of {config.batch_size} leave one alone, "
                         "and loss kto compares pairs of a batch; change batch_size or n_pairs")
    arguments = trainer_arguments(config, folder, bundle.device,
                                  half=bundle.model.dtype == torch.float16)
    if models.multiplies_in_bf16(bundle):
        arguments.gradient_checkpointing_kwargs["context_fn"] = models.around_checkpoints
    roles.put(bundle.model, bundle.tokenizer, bundle.format, config.beside, config.seed)
    common = dict(
        args=arguments, train_dataset=rows, processing_class=bundle.tokenizer,
        callbacks=list(callbacks), peft_config=models.lora(
            config.lora_r, config.lora_alpha, config.lora_dropout, config.lora_targets,
            config.beside))
    # DDP looks for weights without a gradient only where there are some: beside a text model
    text = bundle.model.config.get_text_config()
    arguments.ddp_find_unused_parameters = text is not bundle.model.config
    if config.shared_prefix:
        opponent = adversary.of(config, bundle)
        batch = functools.partial(collate, pad=bundle.tokenizer.pad_token_id,
                                  mismatched=config.loss == "kto", rank=ranks.number(),
                                  of=ranks.count(), opponent=opponent)
        trainer = PairTrainer(bundle.model, data_collator=batch, objective=config.loss,
                              sft_weight=config.sft_weight,
                              precision=functools.partial(models.native_precision, bundle),
                              adversary=opponent,
                              still=functools.partial(models.merged, bundle), **common)
    else:
        warnings.warn(f"prefixes are not shared; TRL's own trainer computes {config.loss}",
                      stacklevel=2)
        trainer = EncodedDPOTrainer(bundle.model, **common)
    trainer.remove_callback(PrinterCallback)
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:  # TRL casts the LoRA of quantized models to bf16
            parameter.data = parameter.data.float()
            parameter.requires_grad_(roles.trained(config.beside, name))
    models.keep_gradients(trainer.model)
    if config.start:
        begin_with(trainer.model, config)
    bundle.model = trainer.model
    return trainer


def begin_with(model, config: RunConfig) -> None:
    """Gives the run's fresh adapter the weights of `config.start`.

    Raises ValueError for an adapter of another base model, rank, alpha or other targets.
    """
    folder = starting_adapter(config)
    adapters.refuse_other_base(folder, adapters.read(folder), model.get_base_model())
    adapters.refuse_missing(folder, model)
    own = get_peft_model_state_dict(model, save_embedding_layers=False)  # where it has nothing
    set_peft_model_state_dict(model, own | load_file(folder / adapters.WEIGHTS))


def starting_adapter(config: RunConfig) -> Path:
    """The folder of `config.start`. Raises ValueError unless its LoRA is shaped as the run's."""
    folder = models.adapter_folder(config.start)
    stored = adapters.read(folder)
    shapes = {"lora_r": (stored.r, config.lora_r), "lora_alpha": (stored.lora_alpha,
                                                                  config.lora_alpha),
              "lora_targets": (sorted(stored.target_modules), sorted(config.lora_targets))}
    for name, (found, wanted) in shapes.items():
        if found != wanted:
            raise ValueError(f"the adapter {config.start!r} to start with has {name} {found} and "
                             f"the run {wanted}; set {name} as the adapter has it")
    if stored.modules_to_save == [config.beside]:
        stored.modules_to_save = None  # the run's adapter has them too
    other = adapters.unscalable(stored) or next(
        (name for name in ("use_rslora", "rank_pattern", "alpha_pattern") if getattr(stored, name)),
        "")
    if other:  # its weights would mean something else in the run's adapter
        raise ValueError(f"the adapter {config.start!r} to start with has {other}, which the run's "
                         "adapter has not; start with another")
    return folder


# --- settings that fit a GPU's memory -------------------------------------------------------------

FITTED = ("batch_size", "accumulation", "gradient_checkpointing")
FUSED = "fused_steps"  # in versions.json, beside `FITTED`: whether steps ran `fused`
SPARE = 0.03  # of a GPU's memory stays free when a step is tried, for gaps between tensors


def tries_first(bundle: Bundle) -> bool:
    """Whether a step is tried before a run: on one GPU; ranks would wait for one that failed."""
    return bundle.device.type == "cuda" and ranks.count() == 1


def fitted(config: RunConfig, bundle: Bundle, rows: Dataset) -> tuple[RunConfig, bool]:
    """The config as it fits the GPU's memory, and whether steps can be `fused` there.

    A step is tried on the longest pairs. Where memory runs out, layers are computed anew in the
    backward pass (checkpointing), then fewer pairs are computed at once and more batches
    accumulated; a step of the optimizer keeps its number of pairs. One warning says what was
    changed. Raises ValueError if nothing fits.
    """
    wanted, quick = config, True
    while trouble := _trouble(config, bundle, rows, quick):
        if trouble == "memory":
            config = smaller(config)
        else:
            quick = False
            warnings.warn(f"steps are not fused, since here that fails ({trouble})", stacklevel=3)
    if config != wanted:
        said = ", ".join(f"{name} {getattr(config, name)}" for name in FITTED)
        warnings.warn(f"the GPU's memory is too small for batch_size {wanted.batch_size}; going "
                      f"on with {said}", stacklevel=3)
    return config, quick


def smaller(config: RunConfig) -> RunConfig:
    """The next settings that need less memory. Raises ValueError if there are none."""
    if not config.gradient_checkpointing:
        return config.replace(gradient_checkpointing=True)
    parts = next((k for k in range(2, config.batch_size + 1) if config.batch_size % k == 0), 0)
    if not parts or config.loss == "kto":  # which compares the pairs of a batch
        raise ValueError(f"the GPU's memory is too small for a batch of {config.batch_size} "
                         "with checkpointing; set a smaller max_length or model")
    return config.replace(batch_size=config.batch_size // parts,
                          accumulation=config.accumulation * parts)


def _trouble(config: RunConfig, bundle: Bundle, rows: Dataset, quick: bool) -> str:
    """What keeps a step from working: "memory", another error of a fused step, "" for nothing."""
    try:
        _try_step(config, bundle, rows, quick)
        return ""
    except Exception as error:
        full = memory.ran_out(error)
        if not (full or quick):
            raise
        found = "memory" if full else f"{type(error).__name__}: {error}"
    memory.release()  # out here, where the error holds no tensor any more
    return found


def _try_step(config: RunConfig, bundle: Bundle, rows: Dataset, quick: bool) -> None:
    """One step forwards and backwards on the longest pairs; the bundle is as before in the end."""
    longest = sorted(range(len(rows)), key=lambda k: sum(map(len, as_pair(rows[k]))))
    with tempfile.TemporaryDirectory() as folder:
        try:
            trainer = build_trainer(config, bundle, rows, Path(folder))
            trainer.fused = trainer.fused and quick
            held = [torch.empty_like(weight) for weight in trainer.model.parameters()
                    if weight.requires_grad for _ in range(2)]  # as AdamW's moments will be
            if bundle.device.type == "cuda":
                size = torch.cuda.get_device_properties(bundle.device).total_memory
                held.append(torch.empty(int(SPARE * size), dtype=torch.uint8, device=bundle.device))
            batch = trainer.data_collator([rows[k] for k in longest[-config.batch_size :]])
            trainer.model.train()
            with trainer.kernels():
                trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch)).backward()
        finally:
            bundle.model = untrained(bundle.model)


def untrained(model):
    """The base model as it was before a trainer got it."""
    base = shared_prefix.base_of(model)
    if base is not model:
        base = model.unload()
    roles.take_off(base)
    base.gradient_checkpointing_disable()
    with contextlib.suppress(AttributeError):  # of a model that has no such hook
        base.disable_input_require_grads()
    base.__dict__.pop("forward", None)  # accelerate's
    return base.requires_grad_(False).eval()


def used(folder: Path) -> tuple[dict, bool]:
    """What a run that has a checkpoint goes on with: the settings of `FITTED`, and whether its
    steps may be fused. No settings where there is no checkpoint.
    """
    stored = folder / "versions.json"
    if not (last_checkpoint(folder) and stored.exists()):
        return {}, True
    noted = json.loads(stored.read_text())
    return {name: noted[name] for name in FITTED if name in noted}, noted.get(FUSED, True)


def versions() -> dict[str, str]:
    found = {name: version(name) for name in PACKAGES}
    return found | {"python": platform.python_version(), "machine": platform.machine()}


def refuse_other_run(config: RunConfig) -> None:
    """Raises ValueError if the output folder holds a run with another configuration."""
    stored = Path(config.output) / "config.yaml"
    if stored.exists() and RunConfig.from_yaml(stored).replace(output=config.output) != config:
        raise ValueError(
            f"{config.output!r} holds a run with another configuration; choose another output "
            "folder or remove it"
        )


def _rounded(values: torch.Tensor) -> list[float]:
    """To a hundredth of a nat, which keeps a log small and a cloud of points the same."""
    return [round(value, 2) for value in values.tolist()]


def last_checkpoint(folder: Path) -> str | None:
    """The run's newest whole checkpoint; one that a kill cut off lacks its state, written last."""
    whole = [path.parent for path in folder.glob("checkpoints/checkpoint-*/trainer_state.json")
             if _is_json(path)]  # a full disk may have cut that file too
    step = {path: int(path.name.rpartition("-")[2]) for path in whole}
    return str(max(whole, key=step.__getitem__)) if whole else None


def _is_json(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")))
    except ValueError:
        return False


def base_model(config: RunConfig) -> Bundle:
    """The model that a run starts from."""
    return models.load(config.model, four_bit=config.four_bit, format=config.format or None)


def training_pairs(config: RunConfig, n: int | None = None, bundle: Bundle | None = None,
                   samples: Sequence[Sample] | None = None) -> Dataset:
    """Preference pairs for training, made as the config says; `n` overrides their number.

    `bundle` is asked for its own answers if the config says `responses: self`; `samples`, if given,
    are taken as they are. Pairs that were saved (`config.pairs`) are loaded; raises ValueError if
    there are not as many as the config says.
    """
    if config.pairs:
        dataset = pairs.load_pairs(config.pairs)
        if len(dataset) != config.n_pairs:
            raise ValueError(f"{config.pairs!r} holds {len(dataset)} pairs and n_pairs is "
                             f"{config.n_pairs}; say train --pairs {config.pairs}")
        return dataset if n is None else dataset.select(range(n))
    payloads = None
    if samples is None:
        samples, payloads = _answered(config, bundle, *_collected(config))
    return pairs.pairs_dataset(
        samples, seed=config.seed, n=config.n_pairs if n is None else n, naive=config.naive,
        frames=config.frames, position=config.position, clean=config.clean, payloads=payloads,
    )


def _collected(config: RunConfig) -> tuple[list[Sample], list[Sample] | None]:
    """(hosts, payloads) of the collection; None if the hosts are the payloads too."""
    if config.samples == "english":
        rng = random.Random(f"few-{config.seed}")  # no pair needs an answer that it does not show
        hosts, requests = (found if len(found) <= config.n_pairs else
                           rng.sample(found, config.n_pairs)
                           for found in english.training(config.seed))
        return hosts, requests
    return shipped_samples("train"), None


def _answered(config: RunConfig, bundle: Bundle | None, *groups) -> list[list[Sample] | None]:
    """The groups of samples with the model's own answers, as far as the config wants them.

    The kit's English has requests without an answer, which get one in any case, of
    `ANSWER_TOKENS` at most; the answers are kept beside the run.
    """
    real = config.samples == "english"
    options = dict(max_new_tokens=ANSWER_TOKENS, keep_cut=True) if real else {}
    if real and ranks.count() == 1:
        options["cache"] = Path(config.output).parent / "own_answers.jsonl"

    def asked(sample: Sample) -> bool:
        return config.responses == "self" or (real and not sample.answer)

    everyone = [s for group in groups for s in group or () if asked(s)]
    if not everyone:
        return list(groups)
    bundle = bundle or base_model(config)
    own = iter(ranks.each(everyone, lambda share: generation.own_answers(
        bundle, share, "own answers" if ranks.first() else "", **options)))
    return [group and [next(own) if asked(s) else s for s in group] for group in groups]


def probe_pairs(config: RunConfig, split: str, n: int) -> Dataset:
    """Injected pairs (none clean) of a split that training does not use."""
    if config.samples == "english":
        return pairs.pairs_dataset(english.texts(split), seed=1, n=n, naive=config.naive,
                                   split=split, payloads=english.probes(split))
    return pairs.pairs_dataset(shipped_samples(split), seed=1, n=n, naive=config.naive, split=split)


def train(config: RunConfig, dataset: Dataset, probe: Dataset, bundle: Bundle | None = None,
          on_record=None, progress: bool = True) -> Run:
    """Trains an adapter on the pairs, or goes on from the folder's last checkpoint.

    `config.output` gets `config.yaml`, `pairs/`, `reference.safetensors`, `metrics.jsonl`,
    `versions.json` (with the batches that were really used, and whether steps were fused) and
    `adapter/`.
    `on_record` gets each record of the log as it comes. On several ranks all of them call this, and
    the first one writes. Raises ValueError if a pair does not fit `max_length`, if the folder holds
    another run or another process is at work there, for a batch that ranks cannot share, for kto
    under FSDP, and for a loss that is no number.
    """
    began, folder = time.perf_counter(), Path(config.output)
    ranks.refuse_uneven(config.batch_size)
    if ranks.count() > 1 and not config.shared_prefix:
        raise ValueError("shared_prefix false is TRL's own step, for one process; leave it true or "
                         "start without accelerate launch")
    if config.loss == "kto" and ranks.sharded():
        raise ValueError("loss kto switches the adapter off within a step, which weights in shards "
                         "may answer without gradients; start with ddp.yaml or choose another loss")
    refuse_other_run(config)
    if config.start:
        starting_adapter(config)  # may refuse, as what follows, before any writing
    with alone(folder / ".lock") if ranks.first() else contextlib.nullcontext():
        bundle, records = _trained(config, dataset, probe, bundle, on_record, progress)
    return Run(bundle, records, folder, time.perf_counter() - began)


def _trained(config: RunConfig, dataset: Dataset, probe: Dataset, bundle: Bundle | None, on_record,
             progress: bool) -> tuple[Bundle, list[dict]]:
    """`train` in a folder that is this process's own."""
    folder = Path(config.output)
    bundle = bundle or base_model(config)
    if isinstance(bundle.model, PeftModel):
        raise ValueError("the model to train has an adapter already, so that the reference would "
                         "not be the base model; load it without, or name the adapter as start")
    if ranks.first() and (leaks := injections.leaks(_texts(dataset))):
        words = max(leaks, key=leaks.__getitem__)
        warnings.warn(f"{leaks[words]} of {len(dataset)} pairs hold {words!r}, which the tests say "
                      "too: rates of those tests would be about something that was trained",
                      stacklevel=3)
    probe_rows = encode_pairs(bundle, probe, config.max_length)  # may refuse, before any writing
    rows = prepare(config, bundle, dataset, progress, folder / "reference.safetensors")
    asked, (begun, quick) = config, used(folder)
    if begun:
        config = config.replace(**begun)
    elif config.shared_prefix and tries_first(bundle):
        config, quick = fitted(config, bundle, rows)
    if ranks.first():
        folder.mkdir(parents=True, exist_ok=True)
        asked.to_yaml(folder / "config.yaml")
        about = {"source": f"the pairs of {config.pairs}"} if config.pairs else {}
        pairs.save_pairs(dataset, folder / "pairs", **about)

    def measure() -> dict:
        with models.native_precision(bundle):
            if trainer.is_fsdp_enabled:  # all ranks have to make the same passes
                wrapped = replace(bundle, model=trainer.model_wrapped)
                chosen, rejected = score_pairs(wrapped, probe_rows, scoring_batch(config))
            else:
                chosen, rejected = shared_scores(bundle, probe_rows, scoring_batch(config))
        return {"chosen_logprob": chosen.mean().item(),
                "rejected_logprob": rejected.mean().item(),
                "chosen_logprobs": _rounded(chosen), "rejected_logprobs": _rounded(rejected)}

    batches = -(-len(rows) // config.batch_size)
    steps = config.epochs * -(-batches // config.accumulation)
    log = RunLog(folder / "metrics.jsonl", measure, config.probe_every, steps, on_record,
                 progress)
    even = config.beside == "none" and not (config.start or config.adversary_moves
                                            or config.lora_dropout)
    trainer = build_trainer(config, bundle, rows, folder,
                            [log, FirstStep(even and not supervises(config), config.beta)])
    trainer.fused = trainer.fused and quick
    if ranks.first():  # a run that goes on computes its steps as it began
        write_json(folder / "versions.json", versions() | {FUSED: trainer.fused} | {
            name: getattr(config, name) for name in FITTED})
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    bundle.model = trainer.model.eval()
    save_adapter(trainer, folder / "adapter")
    bundle.adapter = str(folder / "adapter")
    return bundle, log.records


def _texts(dataset: Dataset) -> list[str]:
    """All that a pair teaches, as one text each."""
    return ["\n".join([*(turn["content"] for turn in pair["prompt"]),
                       *(turn["content"] for key in ("chosen", "rejected") for turn in pair[key])])
            for pair in dataset]


def save_adapter(trainer: DPOTrainer, folder: Path) -> None:
    """Saves the trained adapter, whole or not at all; the first rank writes, all wait for it."""
    state = None
    if trainer.is_fsdp_enabled:  # the shards of all ranks
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if ranks.first():
        fresh = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(fresh, ignore_errors=True)
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(fresh, state_dict=state)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    ranks.wait()
