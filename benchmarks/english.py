"""DPO on a real model: the kit against TRL's defaults, on the pairs of `secalign-kit real`.

Each round takes the next pairs of that run, as texts, through tokenization, reference log-probs and
one epoch. "TRL defaults" sets nothing but the batch and the rate. Both train the same LoRA on the
same weights, `smollm2-135m` in its own dtype. TRL ends every answer, also those that were cut off.
"""

import tempfile
from functools import partial
from pathlib import Path

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from secalign_kit import logprobs, models, pairs, prompts, real, training
from secalign_kit.config import RunConfig
from secalign_kit.pairs import CUT

from .dpo import token_limit
from .measuring import Result, compare, take_turns, timed

RUN = Path("runs/real")
PAIRS = 64  # of a round


def config_of(folder: Path) -> RunConfig:
    return real.settings(RUN)["smollm2_secalign"].replace(
        model=real.MODEL, n_pairs=PAIRS, save_steps=10**6, output=str(folder))


def some(number: int) -> Dataset:
    """A round's own pairs, so that no cache answers."""
    kept = pairs.load_pairs(RUN / "runs" / "smollm2_secalign" / "pairs")
    start = (number + 1) * PAIRS % (len(kept) - PAIRS + 1)
    return kept.select(range(start, start + PAIRS))


def ours(dataset: Dataset, folder: Path) -> tuple[float, object]:
    config, bundle = config_of(folder), models.load(real.MODEL, four_bit=False)

    def job():
        rows = training.prepare(config, bundle, dataset, progress=False)
        training.build_trainer(config, bundle, rows, folder).train()
        return rows

    return timed(job)


def theirs(dataset: Dataset, folder: Path) -> tuple[float, object]:
    """The same with TRL's DPOTrainer as its documentation shows it."""
    config, bundle = config_of(folder), models.load(real.MODEL, four_bit=False)
    texts = Dataset.from_list([
        {"prompt": prompts.render(bundle.format, *prompts.messages_to_parts(pair["prompt"])),
         "chosen": pair["chosen"][0]["content"], "rejected": pair["rejected"][0]["content"]}
        for pair in dataset])
    arguments = DPOConfig(
        output_dir=str(folder), per_device_train_batch_size=config.batch_size, num_train_epochs=1,
        learning_rate=config.learning_rate, max_length=config.max_length, report_to="none",
        disable_tqdm=True, save_strategy="no", use_cpu=True, dataloader_pin_memory=False)
    lora = models.lora(config.lora_r, config.lora_alpha, config.lora_dropout, config.lora_targets)

    def job():
        trainer = DPOTrainer(bundle.model, args=arguments, train_dataset=texts, peft_config=lora,
                             processing_class=bundle.tokenizer)
        trainer.train()
        return trainer.train_dataset

    return timed(job)


CONTENDERS = {"ours": ours, "TRL defaults": theirs}


def seconds_of(name: str, number: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return CONTENDERS[name](some(number), Path(folder))[0]


def same_tokens(count: int = 8) -> tuple[str, str]:
    """Stops unless both read the same tokens of answers that are whole; and the limit by tokens."""
    dataset = some(0)
    bundle = models.load(real.MODEL, four_bit=False)
    mine = logprobs.encode_pairs(bundle, dataset, 512)
    whole = [k for k, pair in enumerate(dataset)
             if CUT not in (pair["chosen"][0]["role"], pair["rejected"][0]["role"])][:count]
    with tempfile.TemporaryDirectory() as folder:
        other = theirs(dataset.select(whole), Path(folder))[1]
    for row, k in zip(other, whole, strict=True):
        for column in ("prompt_ids", "chosen_ids", "rejected_ids"):
            assert list(row[column]) == list(mine[k][column]), f"{column} differ"
    return f"same tokens in {len(whole)} pairs", token_limit(mine)


def english(rounds: int) -> list[Result]:
    """Raises ValueError without a finished `secalign-kit real` in `runs/real`."""
    parity, limit = same_tokens()
    seconds = take_turns({name: partial(seconds_of, name) for name in CONTENDERS}, rounds,
                         "DPO training, SmolLM2-135M")
    return [compare(seconds, "TRL defaults", f"DPO training, {real.MODEL}, the kit's English",
                    PAIRS, "pairs/s", parity, limit, goal=2.5)]
