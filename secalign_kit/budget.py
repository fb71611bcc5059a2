"""Budget: GPU memory and hours of a training, estimated before it is started.

One datum: for Llama 3.1 8B with four pairs of the benchmark at once, `estimate` gives `Memory(
weights=5.7, adapter=0.4, activations=12.3, working=0.3)`, together 18.7 GiB; 19.0 were measured.

Every term of memory is counted from the architecture; each says where it comes from. Compared with
eight peaks of steps in the shape of Llama 3.1 8B on one H100 (docs/gpu.md), it is within 3%, for
fused layers (`fused.steps`) and plain ones. The two constants of time were fitted to six rates and
meet them within 15%. No other model or GPU was measured.

Limits: dense decoders with a gated MLP, whose every layer attends; no mixture of experts. Two norms
a layer are counted; some models have four, or norms that are not fused (Gemma), and keep more.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from .config import RunConfig

GIB = 2**30
PAPER_PAIRS = 19_157  # SecAlign, section 4.1


@dataclass(frozen=True)
class Shape:
    """The few numbers of an architecture that memory and time depend on."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool  # whether the head's weights are the embedding's

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of a layer's matrices by name."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {"q_proj": (self.hidden, query), "k_proj": (self.hidden, key),
                "v_proj": (self.hidden, key), "o_proj": (query, self.hidden),
                "gate_proj": (self.hidden, self.intermediate),
                "up_proj": (self.hidden, self.intermediate),
                "down_proj": (self.intermediate, self.hidden)}

    @property
    def matrices(self) -> int:
        """Parameters of all layers' matrices, which are what 4-bit makes smaller."""
        return self.layers * sum(rows * columns for rows, columns in self.linear.values())

    @property
    def head(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        return self.matrices + self.head * (1 if self.tied else 2)

    @staticmethod
    def of(config) -> "Shape":
        """From a `transformers` configuration. Raises ValueError for other architectures."""
        text = config.get_text_config()
        sizes = [getattr(text, name, None) for name in (
            "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")]
        experts = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None)
        if experts or not all(isinstance(size, int) for size in sizes):
            raise ValueError(f"a model of type {text.model_type!r} is no dense decoder with a "
                             "gated MLP; its memory is not estimated, train on a few pairs instead")
        layers, hidden, intermediate, heads = sizes
        return Shape(layers, hidden, intermediate, heads,
                     getattr(text, "num_key_value_heads", None) or heads,
                     getattr(text, "head_dim", None) or hidden // heads, text.vocab_size,
                     bool(getattr(config, "tie_word_embeddings", False)))


@dataclass(frozen=True)
class Kept:
    """Bytes that a layer keeps for the backward pass, per token and number of a vector."""

    norm: int  # each of two norms keeps its input
    lora: int  # adapted matrices keep their input
    once: bool  # whether matrices that read the same vector keep it once, and not each a copy
    mlp: int = 6  # gate, activated gate and up, in bf16
    attention: int = 8  # query, key and value (repeated for every head) and output, in bf16


FUSED = Kept(norm=2, lora=2, once=True)  # all in bf16
PLAIN = Kept(norm=4, lora=4, once=False)  # norms compute in fp32, and adapters in their own fp32
READS = {"q_proj": "attention", "k_proj": "attention", "v_proj": "attention", "o_proj": "heads",
         "gate_proj": "mlp", "up_proj": "mlp", "down_proj": "gated"}  # what a matrix is given


def kept(config: RunConfig, bf16: bool = True) -> Kept:
    """What layers keep in this run; `fused` knows LoRA beside 4-bit matrices, without dropout."""
    fuses = bf16 and config.four_bit and not config.lora_dropout and config.shared_prefix
    return FUSED if fuses else PLAIN


@dataclass(frozen=True)
class Memory:
    """GiB at the peak of a training step."""

    weights: float
    adapter: float
    activations: float
    working: float  # for a moment: a piece's logits, or gradients within a layer

    @property
    def total(self) -> float:
        return self.weights + self.adapter + self.activations + self.working


def weights(shape: Shape, four_bit: bool) -> int:
    """Bytes of the base model. Embedding and head stay in half precision in 4-bit models too."""
    # NF4: 4 bits and, doubly quantized, 0.127 bits of scales (QLoRA, arXiv 2305.14314, section 3)
    layers = shape.matrices * (4.127 / 8 if four_bit else 2)
    return round(layers + 2 * (shape.parameters - shape.matrices))


def adapter(shape: Shape, config: RunConfig) -> int:
    """Bytes of LoRA: fp32 weights, their gradients, and AdamW's two moments."""
    adapted = [shape.linear[name] for name in _adapted(shape, config)]
    return shape.layers * config.lora_r * sum(map(sum, adapted)) * (4 + 4 + 8)


def scales(shape: Shape, config: RunConfig) -> int:
    """Bytes of expanded scales, an fp32 number for 64 weights, that `fused.steps` adds.

    With checkpointing these are only of matrices that are no larger than the mean.
    """
    sizes = [inputs * outputs for inputs, outputs in shape.linear.values()]
    most = sum(sizes) / len(sizes) if config.gradient_checkpointing else max(sizes)
    return shape.layers * sum(size for size in sizes if size <= most) * 4 // 64


def layer_activations(shape: Shape, config: RunConfig, keeps: Kept) -> int:
    """Bytes that one layer keeps of one token for the backward pass."""
    adapted = _adapted(shape, config)
    inputs = [shape.linear[name][0] for name in adapted]
    if keeps.once:
        inputs = {READS[name]: shape.linear[name][0] for name in adapted}.values()
    return (2 * keeps.norm * shape.hidden + keeps.lora * sum(inputs)
            + keeps.mlp * shape.intermediate + keeps.attention * shape.heads * shape.head_dim)


def activations(shape: Shape, config: RunConfig, tokens: int, keeps: Kept) -> int:
    """Bytes for a batch of so many tokens, padding included.

    With checkpointing, each layer keeps its input in half precision, and one is computed again.
    """
    layer = layer_activations(shape, config, keeps)
    if config.gradient_checkpointing:
        return tokens * (shape.layers * 2 * shape.hidden + layer)
    return tokens * shape.layers * layer


def working(shape: Shape, tokens: int) -> int:
    """Bytes of what is there for a moment: a piece's logits or gradients in an MLP, not both."""
    # logits in half precision, in fp32 and as a gradient; responses are two thirds of a row
    piece = shared_piece(tokens * 2 // 3, shape.vocabulary)
    gradients = 3 * 2 * shape.intermediate * tokens  # of gate, activated gate and up
    return max(8 * piece * shape.vocabulary, gradients)


def shared_piece(tokens: int, vocabulary: int) -> int:
    """As `shared_prefix.piece` on CUDA, which a test holds equal; this module needs no torch."""
    fewest, most = 2**22 // vocabulary, 2**26 // vocabulary
    return max(1, min(most, max(fewest, -(-tokens // 6))))


def estimate(shape: Shape, config: RunConfig, tokens: int, bf16: bool = True) -> Memory:
    """The peak for batches of at most so many tokens, padding included.

    `bf16` says whether the GPU computes in it; fp16 is never fused.
    """
    keeps = kept(config, bf16)
    base = weights(shape, config.four_bit) + (keeps == FUSED) * scales(shape, config)
    return Memory(*(size / GIB for size in (
        base, adapter(shape, config), activations(shape, config, tokens, keeps),
        working(shape, tokens))))


def longest_row(config: RunConfig) -> int:
    """Tokens of a row, if prompt and responses are each half of what `max_length` allows."""
    return config.max_length * 3 // 2


def _adapted(shape: Shape, config: RunConfig) -> list[str]:
    if unknown := set(config.lora_targets) - shape.linear.keys():
        raise ValueError(f"lora_targets names {sorted(unknown)[0]!r}; memory is estimated for "
                         f"{', '.join(shape.linear)}")
    return list(config.lora_targets)


# --- time -----------------------------------------------------------------------------------------

LAUNCH = 3.25e-3
"""Seconds that a pass through a layer takes at least: launching its kernels, which the GPU may
have to wait for (fitted to rates of one H100, fused)."""

REACHED = 0.37
"""Share of a GPU's nominal speed that a step reaches (fitted to rates of one H100, fused)."""

MEAN = 470 / 820
"""Mean length of a row by the longest, as in the benchmark's pairs."""


@dataclass(frozen=True)
class Gpu:
    memory: float  # GiB
    speed: float  # dense products in half precision, TFLOP/s, by the maker's data sheet
    bf16: bool = True


GPUS = {"T4": Gpu(14.7, 65, bf16=False), "L4": Gpu(22.0, 121), "A100 40 GB": Gpu(39.4, 312),
        "A100 80 GB": Gpu(79.2, 312), "H100 80 GB": Gpu(79.2, 989), "H200": Gpu(139.8, 989)}


def step_seconds(shape: Shape, config: RunConfig, mean: float, gpu: Gpu) -> float:
    """Seconds for a batch of pairs whose rows have so many tokens in the mean.

    The GPU computes while the processor launches what comes next, so the slower of them counts.
    """
    passes = _passes(config)
    flops = 2 * passes * (shape.matrices * mean + shape.head * mean / 2) * config.batch_size
    return max(passes * shape.layers * LAUNCH, flops / (REACHED * gpu.speed * 1e12))


def hours(shape: Shape, config: RunConfig, mean: float, gpu: Gpu,
          pairs: int = PAPER_PAIRS) -> float:
    """Hours for all epochs over the pairs, the reference's forward pass included."""
    batches = math.ceil(pairs / config.batch_size)
    step = step_seconds(shape, config, mean, gpu)
    return batches * step * (config.epochs + 1 / _passes(config)) / 3600


def _passes(config: RunConfig) -> int:
    """Forward, backward without gradients of weights, and forward again with checkpointing."""
    return 3 if config.gradient_checkpointing else 2


def fits(memory: Memory, gpu: Gpu) -> bool:
    """A tenth and half a GiB are left to CUDA itself and to gaps between tensors."""
    return 1.1 * memory.total + 0.5 <= gpu.memory


LARGEST = 16  # batch that was measured


def settings(config: RunConfig) -> Iterator[RunConfig]:
    """The same optimizer steps with fewer pairs at once, with and without checkpointing."""
    pairs = config.batch_size * config.accumulation
    smallest = 2 if config.loss == "kto" else 1  # which compares with other pairs of a batch
    for batch in (n for n in range(smallest, pairs + 1) if pairs % n == 0 and n <= LARGEST):
        for checkpointing in (False, True):
            yield config.replace(batch_size=batch, accumulation=pairs // batch,
                                 gradient_checkpointing=checkpointing)


def fastest(shape: Shape, config: RunConfig, longest: int, gpu: Gpu) -> RunConfig | None:
    """Of `settings`, those that fit the GPU and take the least time; None if none fits."""
    fitting = [c for c in settings(config)
               if fits(estimate(shape, c, longest * c.batch_size, gpu.bf16), gpu)]
    return min(fitting, key=lambda c: hours(shape, c, MEAN * longest, gpu), default=None)


def lines(name: str, shape: Shape, config: RunConfig) -> list[str]:
    """What `secalign-kit doctor --model` prints."""
    longest = longest_row(config)
    memory = estimate(shape, config, longest * config.batch_size)
    parts = {"weights": memory.weights, "LoRA, AdamW": memory.adapter,
             "activations": memory.activations, "working": memory.working, "peak": memory.total}
    said = [f"{'model':14} {name}, {shape.parameters / 1e9:.2f} billion parameters",
            f"{'recipe':14} {_said(config)}, max_length={config.max_length}: rows of at most "
            f"{longest} tokens"]
    said += [f"{part:14} {size:6.2f} GiB, estimated" for part, size in parts.items()]
    said += ["", f"{'GPU':14} {'fits':5} the fastest settings that fit, and hours for "
                 f"{PAPER_PAIRS:,} pairs ({config.epochs} epochs), estimated"]
    for gpu_name, gpu in GPUS.items():
        best = fastest(shape, config, longest, gpu)
        text = "nothing that keeps this recipe" if best is None else (
            f"{_said(best)}: {hours(shape, best, MEAN * longest, gpu):.1f} h")
        fit = fits(estimate(shape, config, longest * config.batch_size, gpu.bf16), gpu)
        said.append(f"{gpu_name:14} {'yes' if fit else 'no':5} {text}")
    return said


def _said(config: RunConfig) -> str:
    return (f"batch_size={config.batch_size} accumulation={config.accumulation} "
            f"gradient_checkpointing={str(config.gradient_checkpointing).lower()}")
