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

Limits: one process on one device. One method of TRL that is not public is overridden,
`_prepare_dataset`; `pyproject.toml` names the versions of TRL that this was tested with.
"""

import contextlib
import functools
import hashlib
import json
import math
import platform
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from safetensors import safe_open
from torch.utils.data import DataLoader, Sampler
from tqdm.auto import tqdm
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

from . import generation, models, pairs, parity, preference, shared_prefix
from .config import RunConfig
from .logprobs import as_pair, encode_pairs, score_pairs
from .models import Bundle
from .preference import PairScores, dpo_loss
from .samples import Sample, shipped_samples, write_text

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets")
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

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset  # by `logprobs.encode_pairs`: TRL would tokenize texts, and cut long ones

    def get_train_dataloader(self) -> DataLoader:
        lengths = [sum(map(len, as_pair(row))) for row in self.train_dataset]
        size = self.args.train_batch_size
        return self.accelerator.prepare(DataLoader(
            self.train_dataset, size, sampler=LengthBuckets(lengths, size, self.args.seed),
            collate_fn=self.data_collator))


class PairTrainer(EncodedDPOTrainer):
    """TRL's trainer with a step of our own: `collate` makes the batch, `compute_loss` the loss.

    `objective` and `sft_weight` are those of `preference.batch_loss`; `precision` is the context
    that the model runs in.
    """

    def __init__(self, *args, objective: str, sft_weight: float = 0.0,
                 precision=contextlib.nullcontext, **kwargs):
        super().__init__(*args, **kwargs)
        self.objective, self.sft_weight, self.precision = objective, sft_weight, precision
        self.noted: list[torch.Tensor] = []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of a batch of B pairs with N response tokens, a scalar."""
        # log p of every response token under the policy, then of every response: [N], [B], [B]
        with self.precision():
            tokens = shared_prefix.token_logprobs(model, inputs)
            kl = self.drift(model, inputs["mismatched"]) if "mismatched" in inputs else 0.0
        chosen, rejected = shared_prefix.sum_responses(tokens, inputs)
        lengths = shared_prefix.sum_responses(torch.ones_like(tokens), inputs)
        # under the reference, the model without its adapter, they were computed before training
        reference = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        scores = PairScores(chosen, rejected, *reference, *lengths, kl)
        self.note(scores)
        return preference.batch_loss(scores, self.objective, self.args.beta, self.sft_weight)

    @torch.no_grad()
    def drift(self, model, batch) -> torch.Tensor:
        """KTO's reference point: how much likelier mismatched responses became, in nats, or 0."""
        policy = torch.cat(shared_prefix.pair_logprobs(model, batch))
        with self.accelerator.unwrap_model(model).disable_adapter():
            reference = torch.cat(shared_prefix.pair_logprobs(model, batch))
        return (policy - reference).mean().clamp(min=0)

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
        super().log(logs, *args, **kwargs)


def collate(rows: Sequence[dict], pad: int, mismatched: bool = False) -> dict:
    """A batch: `shared_prefix.collate` and the reference's log-probs.

    With `mismatched`, which KTO needs, also every prompt with the responses of the pair before it.
    """
    pairs = [as_pair(row) for row in rows]
    batch = shared_prefix.collate(pairs, pad)
    for key in ("ref_chosen_logps", "ref_rejected_logps"):
        batch[key] = torch.tensor([row[key] for row in rows])
    if mismatched:
        before = [pairs[-1], *pairs[:-1]]
        batch["mismatched"] = shared_prefix.collate(
            [(pair[0], *other[1:]) for pair, other in zip(pairs, before, strict=True)], pad)
    return batch


class RunLog(TrainerCallback):
    """Per step: loss and margin of the batch, log-probs of a fixed probe set; JSONL and bar."""

    def __init__(self, path: Path, probe, every: int, steps: int, on_record=None,
                 progress: bool = True):
        self.path, self.probe, self.every, self.on_record = path, probe, every, on_record
        lines = path.read_text().split("\n")[:-1] if path.exists() else []  # whole lines only
        self.records: list[dict] = [json.loads(line) for line in lines]
        self.bar = tqdm(total=steps, desc="training", disable=not progress)

    def on_train_begin(self, args, state, control, **kwargs):
        self.records = [r for r in self.records if r["step"] <= state.global_step]
        write_text(self.path, "".join(json.dumps(r) + "\n" for r in self.records))
        self.bar.update(state.global_step - self.bar.n)
        if not self.records:
            self._write({"step": 0, **self.probe()})

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise ValueError(f"the loss is no number at step {state.global_step}; lower "
                             "learning_rate, and choose another output folder")
        record = {"step": state.global_step, "loss": logs["loss"],
                  "margin": logs["rewards/margins"], "learning_rate": logs.get("learning_rate")}
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            record |= self.probe()
        self._write(record)
        self.bar.update(state.global_step - self.bar.n)
        self.bar.set_postfix(loss=f"{record['loss']:.3f}", margin=f"{record['margin']:.2f}")

    def _write(self, record: dict) -> None:
        self.records.append(record)
        with open(self.path, "a") as log:
            log.write(json.dumps(record) + "\n")
        if self.on_record:
            self.on_record(record)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


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
    with models.native_precision(bundle):  # as in training, so that the first loss is ln 2
        chosen, rejected = reference_logprobs(bundle, rows, progress, cache,
                                              scoring_batch(config))
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    return Dataset.from_dict(columns | {"ref_chosen_logps": chosen.tolist(),
                                        "ref_rejected_logps": rejected.tolist()})


def scoring_batch(config: RunConfig) -> int:
    """Pairs at once where nothing is trained, which needs less memory for each."""
    return min(64, 2 * config.batch_size)


def reference_logprobs(bundle: Bundle, rows: Sequence[dict], progress: bool,
                       cache: Path | None,
                       batch_size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """`score_pairs` under the reference, read from `cache` if its content hash is the same.

    Raises ValueError if it is not and a training beside it has begun, which would go on wrongly.
    """
    key = content_hash(bundle, rows) if cache else ""
    if cache and cache.exists():
        with safe_open(cache, "pt") as stored:
            if stored.metadata().get("content") == key:
                return stored.get_tensor("chosen"), stored.get_tensor("rejected")
        if last_checkpoint(cache.parent):
            raise ValueError(f"{str(cache.parent)!r} holds a run on other pairs or another base "
                             "model; choose another output folder or remove it")
    chosen, rejected = score_pairs(bundle, rows, batch_size,
                                   "reference log-probs" if progress else "")
    if cache:
        models.write_tensors(cache, {"chosen": chosen, "rejected": rejected}, {"content": key})
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
    common = dict(
        args=arguments, train_dataset=rows, processing_class=bundle.tokenizer,
        callbacks=list(callbacks), peft_config=models.lora(
            config.lora_r, config.lora_alpha, config.lora_dropout, config.lora_targets))
    if config.shared_prefix:
        batch = functools.partial(collate, pad=bundle.tokenizer.pad_token_id,
                                  mismatched=config.loss == "kto")
        trainer = PairTrainer(bundle.model, data_collator=batch, objective=config.loss,
                              sft_weight=config.sft_weight,
                              precision=functools.partial(models.native_precision, bundle),
                              **common)
    else:
        warnings.warn(f"prefixes are not shared; TRL's own trainer computes {config.loss}",
                      stacklevel=2)
        trainer = EncodedDPOTrainer(bundle.model, **common)
    trainer.remove_callback(PrinterCallback)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:  # TRL casts the LoRA of quantized models to bf16
            parameter.data = parameter.data.float()
    models.keep_gradients(trainer.model)
    bundle.model = trainer.model
    return trainer


def versions() -> dict[str, str]:
    found = {name: version(name) for name in PACKAGES}
    return found | {"python": platform.python_version(), "machine": platform.machine()}


def write_json(path: Path, value) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


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
    whole = [path.parent for path in folder.glob("checkpoints/checkpoint-*/trainer_state.json")]
    step = {path: int(path.name.rpartition("-")[2]) for path in whole}
    return str(max(whole, key=step.__getitem__)) if whole else None


def base_model(config: RunConfig) -> Bundle:
    """The model that a run starts from."""
    return models.load(config.model, four_bit=config.four_bit, format=config.format or None)


def training_pairs(config: RunConfig, n: int | None = None, split: str = "train", seed: int = 0,
                   bundle: Bundle | None = None,
                   samples: Sequence[Sample] | None = None) -> Dataset:
    """Preference pairs of a split, made as the config says; `n` overrides their number.

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
    if samples is None and config.responses == "self":
        bundle = bundle or base_model(config)
        samples = generation.own_answers(bundle, shipped_samples(split), "own answers")
    return pairs.pairs_dataset(
        shipped_samples(split) if samples is None else samples, seed=config.seed + seed,
        n=config.n_pairs if n is None else n,
        naive=config.naive, frames=config.frames, position=config.position, clean=config.clean,
    )


def probe_pairs(config: RunConfig, split: str, n: int) -> Dataset:
    """Injected pairs (none clean) of a split that training does not use."""
    return pairs.pairs_dataset(shipped_samples(split), seed=1, n=n, naive=config.naive, split=split)


def train(config: RunConfig, dataset: Dataset, probe: Dataset, bundle: Bundle | None = None,
          on_record=None, progress: bool = True) -> Run:
    """Trains an adapter on the pairs, or goes on from the folder's last checkpoint.

    `config.output` gets `config.yaml`, `pairs/`, `reference.safetensors`, `metrics.jsonl`,
    `versions.json` and `adapter/`.
    `on_record` gets each record of the log as it comes. Raises ValueError if a pair does not fit
    `max_length`, if the folder holds another run, on several processes, and for a loss that is no
    number.
    """
    began, folder = time.perf_counter(), Path(config.output)
    if PartialState().num_processes > 1:
        raise ValueError("a run is one process; start it without accelerate launch or torchrun")
    refuse_other_run(config)
    bundle = bundle or base_model(config)
    probe_rows = encode_pairs(bundle, probe, config.max_length)  # may refuse, before any writing
    rows = prepare(config, bundle, dataset, progress, folder / "reference.safetensors")
    folder.mkdir(parents=True, exist_ok=True)
    config.to_yaml(folder / "config.yaml")
    about = {"source": f"the pairs of {config.pairs}"} if config.pairs else {}
    pairs.save_pairs(dataset, folder / "pairs", **about)
    write_json(folder / "versions.json", versions())

    def measure() -> dict:
        with models.native_precision(bundle):
            chosen, rejected = score_pairs(bundle, probe_rows, scoring_batch(config))
        return {"chosen_logprob": chosen.mean().item(),
                "rejected_logprob": rejected.mean().item(),
                "chosen_logprobs": _rounded(chosen), "rejected_logprobs": _rounded(rejected)}

    batches = -(-len(rows) // config.batch_size)
    steps = config.epochs * -(-batches // config.accumulation)
    log = RunLog(folder / "metrics.jsonl", measure, config.probe_every, steps, on_record,
                 progress)
    trainer = build_trainer(config, bundle, rows, folder, [log])
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    bundle.model = trainer.model.eval()
    bundle.model.save_pretrained(folder / "adapter")
    bundle.adapter = str(folder / "adapter")
    return Run(bundle, log.records, folder, time.perf_counter() - began)
