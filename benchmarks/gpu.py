"""DPO steps on a GPU: this kit and TRL in turn, in one process, on random 4-bit weights.

    python -m benchmarks.gpu [tiny 1B 8B] [--seconds 280] [--rounds 1]
    python -m benchmarks.gpu --profile                  # launches, of rows with four pairs
    python -m benchmarks.gpu --notebook 06_training     # one notebook, from top to bottom

The weights are random in the true shapes of Llama 3.1 8B and of a 1B model, made where they are
needed and quantized to NF4; nothing is downloaded. Every line is printed as it comes, the most
telling first; what no longer fits into `--seconds` is named and left out. `tiny` runs on a CPU too.

Every contender trains the same LoRA (r 64 on q_proj and v_proj) on the same random pairs, prompts
of 80 to 320 tokens and responses of 20 to 250. "TRL defaults" sets nothing but the batch; "TRL
tuned" turns checkpointing off and computes the reference once. Steps are counted after the first
few. `train` is pairs/s of steps, by tokens, since batches differ in length; `reference` is pairs/s
of the reference's log-probs, where they are computed apart; `loss` is the first step's, which is
log 2 = 0.6931 if policy and reference run the same kernels. `stall` is the slowest step after the
second by the median one. `share` is the part of the card's own rate of matrix products that does
what cannot be left out: forward and backward through rows that hold a prompt once. With
`--profile`, `launches` are the kernels of one more step and `busy` the share of its time that the
card works; the profiler slows what comes after it, so its rates are not to be read.

"kit, plain" is the kit without `secalign_kit.fused`. Liger changes the layers of the
whole process, so its row comes last, and with the last shape only.
"""

import argparse
import contextlib
import importlib.util
import math
import os
import random
import shutil
import statistics
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"

import bitsandbytes  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import (  # noqa: E402
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    TrainerCallback,
)
from transformers import logging as transformers_logging  # noqa: E402
from trl import DPOConfig, DPOTrainer  # noqa: E402

from secalign_kit import fused, logprobs, memory, models, shared_prefix, training  # noqa: E402
from secalign_kit.budget import Shape  # noqa: E402
from secalign_kit.config import recipe  # noqa: E402
from secalign_kit.models import Bundle  # noqa: E402

CUDA = torch.cuda.is_available()
SHAPES = {
    "tiny": dict(vocab_size=2048, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                 num_attention_heads=4, num_key_value_heads=2),
    "1B": dict(vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
               num_attention_heads=32, num_key_value_heads=8, head_dim=64,
               tie_word_embeddings=True),
    "8B": dict(vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
               num_attention_heads=32, num_key_value_heads=8),
}
STEPS = {1: (3, 13), 4: (3, 13), 16: (2, 7)}
"""Steps to warm up and steps in all, by pairs of a step (the micro-batch)."""

ROWS = [("kit", 4), ("TRL tuned", 4), ("kit, checkpointing", 4), ("kit, plain", 4), ("kit", 16),
        ("TRL tuned", 16), ("kit, checkpointing", 1), ("TRL defaults", 4), ("kit", 1),
        ("kit, checkpointing", 16), ("TRL tuned", 1), ("kit, plain, checkpointing", 4),
        ("TRL defaults", 16), ("TRL defaults", 1)]
LIGER = ("TRL defaults, Liger", 4)
FOR_LIGER = 35  # seconds that are kept for its row


@dataclass(frozen=True)
class Measured:
    train: float  # pairs/s
    reference: float | None  # pairs/s
    gib: float  # at the peak
    loss: float
    stall: float  # the slowest step after the second, in medians
    flops: float  # a second, of what cannot be left out
    launches: int | None
    busy: float | None
    changed: dict | None  # by `fused.steps`


def random_bundle(shape: str) -> Bundle:
    """Random weights in NF4, as `models.load` would load them, with the embedded model's tokenizer.
    """
    device = "cuda" if CUDA else "cpu"
    kind = models.compute_dtype(device) if CUDA else torch.float32
    settings = models.nf4(device)
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=8192, pad_token_id=0,
                         bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    for name, linear in list(model.model.named_modules()):
        if isinstance(linear, torch.nn.Linear):
            four = bitsandbytes.nn.Linear4bit(
                linear.in_features, linear.out_features, bias=False, quant_type="nf4",
                compute_dtype=settings.bnb_4bit_compute_dtype, device="meta")
            four.weight = bitsandbytes.nn.Params4bit(
                linear.weight.data, requires_grad=False, quant_type="nf4",
                compress_statistics=True, module=four).to(device)
            model.model.set_submodule(name, four)
    model.is_loaded_in_4bit = True  # peft and TRL ask
    models.keep_gradients(model.requires_grad_(False))
    models.one_attention_kernel()
    toy = models.load("toy", four_bit=False, device="cpu")
    return Bundle(model.eval(), toy.tokenizer, toy.format, f"random {shape}", four_bit=True)


def random_rows(n: int, seed: int) -> list[dict]:
    draw = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [draw.randrange(10, 2000) for _ in range(draw.randint(low, high))]

    return [{"prompt_ids": ids(80, 320), "chosen_ids": ids(20, 250), "rejected_ids": ids(20, 250)}
            for _ in range(n)]


def plain_tokens(rows) -> int:
    """Tokens of two sequences for each pair, which is what a pair is weighed by."""
    return sum(2 * len(r["prompt_ids"]) + len(r["chosen_ids"]) + len(r["rejected_ids"])
               for r in rows)


def needed_flops(shape: Shape, rows) -> float:
    """Of matrix products, forwards and backwards to the inputs, with every prompt read once."""
    responses = sum(len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in rows)
    prompts = sum(len(r["prompt_ids"]) for r in rows)
    return 4 * (shape.matrices * (prompts + responses) + shape.head * responses)


def own_rate(seconds: float = 0.5) -> float:
    """The card's rate of products of large bf16 matrices, in flops a second."""
    size, dtype = (8192, torch.bfloat16) if CUDA else (256, torch.float32)
    a = torch.randn(size, size, device="cuda" if CUDA else "cpu", dtype=dtype)
    for _ in range(3):
        a @ a
    wait()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        for _ in range(10):
            a @ a
        wait()
        count += 10
    return 2 * size**3 * count / (time.perf_counter() - began)


class Clock(TrainerCallback):
    """Seconds of every step; stops a training when the time is up. The last step is not counted,
    and profiled if it is wished."""

    def __init__(self, warm: int, steps: int, deadline: float, profiled: bool = False):
        self.warm, self.steps, self.deadline, self.seconds = warm, steps, deadline, []
        self.profiled, self.profiler, self.launches, self.busy = profiled, None, None, None

    def on_step_begin(self, args, state, control, **kwargs):
        wait()
        if self.profiled and len(self.seconds) == self.steps and CUDA:
            with contextlib.suppress(Exception):  # no right to profile costs two figures only
                self.profiler = torch.profiler.profile(
                    activities=[torch.profiler.ProfilerActivity.CUDA])
                self.profiler.start()
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        wait()
        seconds = time.perf_counter() - self.began
        if len(self.seconds) == self.steps:
            with contextlib.suppress(Exception):
                self.count(seconds)
            return
        self.seconds.append(seconds)
        if time.perf_counter() > self.deadline and len(self.seconds) > self.warm:
            control.should_training_stop = True

    def count(self, seconds: float) -> None:
        self.profiler.stop()
        events = self.profiler.events()
        kernels = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
        self.launches = len(kernels) or None
        self.busy = sum(e.self_device_time_total for e in kernels) / 1e6 / seconds or None


class Encoded(DPOTrainer):
    """TRL as it is, given tokens."""

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def forget(bundle: Bundle) -> None:
    """The bundle's model as it was before it was trained."""
    bundle.model = training.untrained(bundle.model)
    for module in bundle.model.modules():  # the kit's rows change them anew
        if type(module).__name__.endswith("RMSNorm"):
            vars(module).pop("forward", None)
    memory.release()
    if CUDA:
        torch.cuda.reset_peak_memory_stats()


def kit(bundle: Bundle, rows: list[dict], micro: int, folder: Path, clock: Clock,
        who: str) -> tuple[DPOTrainer, float | None]:
    """(trainer, seconds of the reference pass)."""
    config = recipe("demo").replace(
        n_pairs=len(rows), batch_size=micro, sft_weight=0.0, clean=0.0, save_steps=10**6,
        max_length=2048, lora_r=64, lora_alpha=8, lora_dropout=0.0, learning_rate=2e-4, seed=0,
        lora_targets=["q_proj", "v_proj"], gradient_checkpointing="checkpointing" in who)
    norms = 0 if "plain" in who else fused.norms(bundle.model)
    with models.native_precision(bundle):
        widest = sorted(rows, key=lambda row: sum(map(len, row.values())))
        logprobs.score_pairs(bundle, widest[-2 * micro :], 2 * micro)  # to warm up
        wait()
        began = time.perf_counter()
        both = logprobs.score_pairs(bundle, rows, training.scoring_batch(config))
    wait()
    seconds = time.perf_counter() - began
    data = Dataset.from_list([row | {"ref_chosen_logps": c, "ref_rejected_logps": r}
                              for row, c, r in zip(rows, *(x.tolist() for x in both), strict=True)])
    trainer = training.build_trainer(config, bundle, data, folder, [clock])
    trainer.args.save_strategy = "no"
    trainer.fused = trainer.fused and "plain" not in who
    trainer.norms = norms
    return trainer, seconds


def trl(bundle: Bundle, rows: list[dict], micro: int, folder: Path, clock: Clock,
        who: str) -> tuple[DPOTrainer, float | None]:
    """The same with TRL's own trainer."""
    tuned = {"gradient_checkpointing": False} if "tuned" in who else {}
    liger = {"use_liger_kernel": True} if "Liger" in who else {}
    arguments = DPOConfig(
        output_dir=str(folder), per_device_train_batch_size=micro, num_train_epochs=1,
        learning_rate=2e-4, max_length=2048, report_to="none", disable_tqdm=True,
        save_strategy="no", bf16=CUDA and models.has_bf16("cuda"), use_cpu=not CUDA,
        logging_steps=1, remove_unused_columns=False, **tuned, **liger)
    trainer = Encoded(bundle.model, args=arguments, train_dataset=Dataset.from_list(rows),
                      peft_config=models.lora(64, 8, 0.0, ("q_proj", "v_proj")),
                      processing_class=bundle.tokenizer, callbacks=[clock])
    bundle.model = trainer.model
    trainer.remove_callback(PrinterCallback)
    models.keep_gradients(trainer.model)
    if not tuned:
        return trainer, None
    # the pass that TRL makes with precompute_ref_log_probs, without hashing all weights before it
    trainer._precompute_model_hash = f"{time.time()}"
    wait()
    began = time.perf_counter()
    trainer.train_dataset = trainer._precompute_ref_logps(trainer.train_dataset, "train", 2 * micro)
    wait()
    trainer.precompute_ref_logps = True
    return trainer, time.perf_counter() - began


def measure(bundle: Bundle, who: str, micro: int, deadline: float,
            profiled: bool = False) -> Measured:
    warm, steps = STEPS[micro]
    rows, seen = random_rows(micro * (steps + 1), micro), []
    clock = Clock(warm, steps, deadline, profiled)
    forget(bundle)
    with tempfile.TemporaryDirectory() as folder:
        make = kit if who.startswith("kit") else trl
        trainer, reference = make(bundle, rows, micro, Path(folder), clock, who)
        collate = trainer.data_collator

        def weighed(batch):
            seen.append(batch)
            return collate(batch)

        trainer.data_collator = weighed
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    counted, batches = clock.seconds[warm:], seen[warm : len(clock.seconds)]
    weight = sum(map(plain_tokens, batches)) / (plain_tokens(rows) / len(rows))
    shape = Shape.of(shared_prefix.base_of(bundle.model).config)
    return Measured(
        weight / sum(counted), reference and len(rows) / reference,
        torch.cuda.max_memory_allocated() / 2**30 if CUDA else math.nan, losses[0],
        max(clock.seconds[2:]) / statistics.median(clock.seconds[2:]),
        sum(needed_flops(shape, batch) for batch in batches) / sum(counted),
        clock.launches, clock.busy,
        {"norms": trainer.norms} | trainer.changed if getattr(trainer, "changed", None) else None)


@torch.no_grad()
def parity(bundle: Bundle, n: int = 8) -> str:
    """The kit's log-probs, rows and caches, against one plain forward pass per response."""
    forget(bundle)
    fused.norms(bundle.model)
    rows = random_rows(n, 99)
    chosen, rejected = logprobs.score_pairs(bundle, rows, n)
    cached = logprobs.score_responses(bundle, [row["prompt_ids"] for row in rows],
                                      [[row["chosen_ids"], row["rejected_ids"]] for row in rows])
    gaps = []
    for k, row in enumerate(rows):
        for side, found in (("chosen_ids", (chosen[k].item(), cached[k][0])),
                            ("rejected_ids", (rejected[k].item(), cached[k][1]))):
            plain = shared_prefix.plain_logprobs(bundle.model, row["prompt_ids"], row[side])
            gaps.append([abs(x - plain.sum().item()) for x in found] + [len(plain)])
    shared, cache = (max(gap[j] for gap in gaps) for j in (0, 1))
    token = max(gap[0] / gap[2] for gap in gaps)
    return (f"parity over {2 * n} responses: rows within {shared:.4f} nats ({token:.5f} a token), "
            f"caches within {cache:.4f}; {shared_prefix.sharing(bundle.model)}")


COLUMNS = ("", "pairs", "train", "reference", "GiB", "loss", "stall", "share", "launches", "busy",
           "row s")
WIDTHS = (27, 6, 8, 10, 7, 8, 7, 7, 9, 6, 7, 0)


def line(*cells) -> str:
    return "".join(f"{cell:<{w}}" if k == 0 else f"{cell:>{w}}"
                   for k, (cell, w) in enumerate(zip(cells, WIDTHS, strict=False)))


def told(who: str, micro: int, found: Measured, rate: float, seconds: float) -> str:
    def or_blank(value, form: str) -> str:
        return "" if value is None else format(value, form)

    return line(who, micro, f"{found.train:.2f}", or_blank(found.reference, ".2f"),
                f"{found.gib:.1f}", f"{found.loss:.4f}", f"{found.stall:.2f}",
                f"{found.flops / rate:.0%}", or_blank(found.launches, ""),
                or_blank(found.busy, ".0%"), f"{seconds:.0f}",
                f"  {' '.join(f'{k} {n}' for k, n in (found.changed or {}).items())}")


def run(shape: str, deadline: float, rounds: int, only: str, last: bool,
        profiled: bool = False) -> None:
    began = time.perf_counter()
    bundle = random_bundle(shape)
    wait()
    say(f"\n{shape}: made in {time.perf_counter() - began:.0f} s")
    rate = own_rate()
    say(f"large products: {rate / 1e12:.0f} TFLOP/s")
    try:
        say(parity(bundle))
    except Exception as error:
        say(f"parity failed: {short(error)}")
    say(line(*COLUMNS))
    for who, micro in ROWS * rounds + [LIGER] * last:
        if only not in who or (profiled and micro != 4):
            continue
        liger = "Liger" in who
        until = deadline if liger or not last else deadline - FOR_LIGER
        began = time.perf_counter()
        if began > until:
            say(line(who, micro, "no time"))
            continue
        if liger and not importlib.util.find_spec("liger_kernel"):
            say(line(who, micro, "absent"))
            continue
        failed = ""
        try:
            found = measure(bundle, who, micro, until, profiled)
            say(told(who, micro, found, rate, time.perf_counter() - began))
        except Exception as error:  # one row that fails must not cost the others
            failed = short(error)
        if failed:  # out here, where what it held can go
            say(line(who, micro, "failed") + f"  {failed}")


def notebook(name: str, seconds: float) -> None:
    """Runs a notebook of the kit from top to bottom, as it is, on the GPU that it finds."""
    import nbclient
    import nbformat

    path, = Path("notebooks").glob(f"{name}*.ipynb")
    with tempfile.TemporaryDirectory() as folder:
        for part in Path("notebooks").iterdir():
            if part.is_file():
                shutil.copy(part, folder)
        os.environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, (os.getcwd(), os.environ.get("PYTHONPATH"))))
        cells = nbformat.read(path, as_version=4)
        began = time.perf_counter()
        nbclient.NotebookClient(cells, timeout=seconds, kernel_name="python3",
                                resources={"metadata": {"path": folder}}).execute()
        used = time.perf_counter() - began
    code = [cell for cell in cells.cells if cell.cell_type == "code"]
    printed = [out.text for cell in code for out in cell.outputs if out.output_type == "stream"]
    say(f"{path.name}: {len(code)} cells ran from top to bottom in {used:.0f} s")
    say("".join(printed)[-1500:])


def short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    began = time.perf_counter()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=", ".join(SHAPES))
    parser.add_argument("--seconds", type=float, default=280)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--notebook", help="run this notebook instead, e.g. 06_training")
    parser.add_argument("--only", default="", help="contenders whose name holds this")
    arguments = parser.parse_args()
    shapes = arguments.shapes or (["8B"] if CUDA else ["tiny"])
    if unknown := set(shapes) - SHAPES.keys():
        parser.error(f"no shape {unknown.pop()}; choose of {', '.join(SHAPES)}")
    warnings.filterwarnings("ignore")
    transformers_logging.set_verbosity_error()
    gpu = torch.cuda.get_device_name() if CUDA else "no GPU"
    say(f"{gpu}; " + ", ".join(f"{k} {v}" for k, v in training.versions().items()))
    if arguments.notebook:
        notebook(arguments.notebook, arguments.seconds)
        return
    for shape in shapes:
        run(shape, began + arguments.seconds, arguments.rounds, arguments.only,
            shape == shapes[-1], arguments.profile)


if __name__ == "__main__":
    main()
