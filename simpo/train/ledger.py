"""What a training step needs of a GPU's memory, by arithmetic.

Bytes, with P weights of which t are trained, n processes, a bytes per number in the pass (2 under mixed precision,
else 4), T tokens and N label tokens in a micro-batch, and of the model L layers, hidden size h, widths q and k of
queries and of keys, i of the MLP, V words.

- weights: 4 each, or as they are stored; 2 under ZeRO in bf16. Frozen ones as stored (4 bits: 0.57).
- gradients: as the weights. optimizer: 8 t (Adam's moments), under ZeRO 4 t more (its own float32 weights).
- All three are divided by n where they are sharded. A reference copy is P times 2 (bf16) or 4, sharded as the weights.
- buckets: ZeRO: 5e8 gradients. Data parallel: as large as the gradients.
- gathered, until the backward pass is over: under ZeRO-3 1.05e9 weights at most, under FSDP two layers and what is
  outside of layers; and the gradients of one layer and of what is outside, before they are dealt out.
- activations of a layer, T times a (6 h + 3 q + 4 k + 4 i), and 8 h more where the norms compute in float32: the inputs
  of its norms, of its products and of attention. Under LoRA a (2 h + 3 q + 4 k + 3 i), and (a + 1) times each adapter's
  input (its dropout's output and mask). With gradient checkpointing only T h a per layer stays, and one layer is
  computed again. Eager attention: its scores as well, (2 a + 4) per head and pair of tokens.
- the backward pass of a layer holds T a (3 i + 2 h) more.
- head, without logits: a chunk of logits (4 + 2 under mixed precision) for its rows, N h (a + 4), what `logits_memory`
  keeps (at most N V a), and its gradient, 4 V h. With logits: 16 N V in the backward pass; in the forward pass a T V
  (and 4 T V under mixed precision) and 8 N V.
- mixed precision by autocast (neither ZeRO nor FSDP): 2 t for the weights' copies, until the backward pass is through
  with them; with gradient checkpointing until the forward pass is.
- the optimizer's step: 4 t / n more where it is not fused; under ZeRO 8 for a group of 1e9 at most.
- 2 GB on a GPU for CUDA, NCCL and what cannot be used for fragmentation.

The largest of four moments counts: the head's forward and backward pass, a layer's backward pass, the step. Without
accumulation, gradients come to be as activations go.
"""

from collections.abc import Callable
from dataclasses import dataclass

from simpo.logps.fused import CHUNK_LOGITS, KEPT_BYTES, KEPT_SHARE
from simpo.train.launch_plan import Launch

ZERO3_LIVE, ZERO_BUCKET, ZERO_GROUP = 1.05e9, 5e8, 1e9  # deepspeed's defaults, in weights
MOMENTS = {"adafactor": 0, "sgd": 0, "8bit": 2, "lion": 4}  # bytes a weight, by part of the name; else Adam's
ADAM = 8
RESERVED = 2e9


@dataclass(frozen=True)
class Shape:
    """A model, its adapters included, in numbers; counts of weights, or bytes where it says so."""

    trained: int
    trained_bytes: int
    frozen_bytes: int
    layer: int
    """One layer's weights; `outside` are those of no layer."""
    outside: int
    head_is_trained: bool
    layers: int
    hidden: int
    queries: int
    keys: int
    heads: int
    mlp: int
    """Width of what the MLP keeps, over all parts of it that a token passes: 4 (gated) or 2 times the intermediate."""
    adapted: int
    """Sum of the inputs' widths of a layer's adapters."""
    vocabulary: int
    eager: bool


@dataclass(frozen=True)
class Plan:
    shape: Shape
    launch: Launch
    micro_batch: Callable[[int], tuple[int, int, int]]
    """Of pairs to (tokens, label tokens, longest row) of the largest micro-batch, as the path runs it."""
    pairs: int
    accumulation: int
    mixed: bool
    checkpointing: bool
    fused: bool
    logits_memory: float | None
    optim: str
    reference: int = 0
    """Bytes of the reference copy, before it is sharded."""

    @property
    def number(self) -> int:
        return 2 if self.mixed else 4


def ledger(plan: Plan, card: float | None = None) -> tuple[dict[str, float], str]:
    """Bytes by what they are for, at the moment when there are most of them, and the name of that moment.

    Args:
        card: bytes that there are; a part of what is free is the head's to keep.
    """
    always, gradients = resident(plan)
    found = {name: always | needs for name, needs in moments(plan, gradients).items()}
    moment = max(found, key=lambda name: sum(found[name].values()))
    kept = logits_kept(plan, None if card is None else card - sum(found[moment].values()))
    for name in found:
        if name != "the optimizer's step":
            found[name]["logits kept"] = kept - min(kept, chunk_bytes(plan)) if "head" in name else 0  # a chunk is kept
    moment = max(found, key=lambda name: sum(found[name].values()))
    return {name: needed for name, needed in found[moment].items() if needed}, moment


def resident(plan: Plan) -> tuple[dict[str, float], float]:
    """What is there all the time; and the gradients, when all of them are."""
    shape, launch = plan.shape, plan.launch
    zero = launch.how.startswith("ZeRO")
    part = {kind: launch.processes if kind in launch.shards else 1 for kind in ("weights", "gradients", "optimizer")}
    stored = 2 * shape.trained if zero and plan.mixed else shape.trained_bytes
    size = next((size for name, size in MOMENTS.items() if name in plan.optim), ADAM)
    state = shape.trained * (size + (4 if zero else 0)) if zero else size / 4 * shape.trained_bytes
    on_host = launch.offloads and not zero
    always = {
        "weights": (0 if on_host else stored + shape.frozen_bytes) / part["weights"],
        "reference copy": plan.reference / part["weights"],
        "optimizer": 0 if launch.offloads else state / part["optimizer"],
        "buckets": buckets(plan),
        "CUDA, NCCL, fragmentation": 0 if launch.on_cpu else RESERVED,
    }
    return always, 0 if on_host else stored / part["gradients"]


def buckets(plan: Plan) -> float:
    if plan.launch.how.startswith("ZeRO"):
        return plan.number * ZERO_BUCKET
    return plan.shape.trained_bytes if plan.launch.how == "data parallel" else 0


def gathered(plan: Plan) -> float:
    """Whole weights and gradients of what is at work, where each process holds a part of them only."""
    shape, launch = plan.shape, plan.launch
    if "weights" not in launch.shards:
        return 0
    weights = shape.layers * shape.layer + shape.outside
    ahead = min(ZERO3_LIVE, weights) if launch.how == "ZeRO-3" else 2 * shape.layer + shape.outside
    gradients = (shape.layer + shape.outside) * min(1, shape.trained / weights)  # few under LoRA
    return plan.number * ((weights if launch.keeps_weights else ahead) + gradients)


def moments(plan: Plan, gradients: float) -> dict[str, dict[str, float]]:
    """By moment, what there is beside `resident`, without the logits that are kept."""
    shape, number = plan.shape, plan.number
    tokens, labels, longest = plan.micro_batch(plan.pairs)
    accumulates = plan.accumulation > 1 or plan.launch.how.startswith("ZeRO")
    one = tokens * layer_bytes(plan, longest)
    saved = shape.layers * (tokens * shape.hidden * number if plan.checkpointing else one)
    working = (one if plan.checkpointing else 0) + tokens * number * (3 * shape.mlp // 4 + 2 * shape.hidden)
    head = shape.vocabulary * shape.hidden if shape.head_is_trained else 0
    copies = 2 * shape.trained if plan.mixed and plan.launch.how in ("one process", "data parallel") else 0
    forward, backward = head_bytes(plan, tokens, labels)
    step = 0 if "fused" in plan.optim or plan.launch.on_cpu else 4 * shape.trained / plan.launch.processes
    if plan.launch.how.startswith("ZeRO"):
        step = 8 * min(ZERO_GROUP, shape.trained / plan.launch.processes)
    early = gradients if accumulates else 0
    late = copies if not plan.checkpointing else 0
    whole = {"gathered weights, gradients": gathered(plan)}
    of_head = 4 * head if plan.fused or not accumulates else number * head
    return {
        "the head's forward pass": {
            "gradients": early, "activations": saved, "copies for mixed precision": copies, "head": forward,
        } | whole,
        "the head's backward pass": {
            "gradients": early, "activations": saved, "copies for mixed precision": late, "head": backward + of_head,
        } | whole,
        "a layer's backward pass": {
            "gradients": early or of_head, "activations": saved, "copies for mixed precision": late,
            "a layer at work": working,
        } | whole,
        "the optimizer's step": {"gradients": gradients, "the step at work": step},
    }  # fmt: skip


def layer_bytes(plan: Plan, longest: int) -> float:
    """Bytes per token that a layer keeps for its backward pass."""
    shape, number = plan.shape, plan.number
    attention = 3 * shape.queries + 4 * shape.keys
    kept = number * (6 * shape.hidden + attention + shape.mlp)
    if shape.adapted:
        kept = number * (2 * shape.hidden + attention + 3 * shape.mlp // 4) + (number + 1) * shape.adapted
    kept += 8 * shape.hidden if plan.mixed else 0
    return kept + ((2 * number + 4) * shape.heads * longest if shape.eager else 0)


def head_bytes(plan: Plan, tokens: int, labels: int) -> tuple[float, float]:
    """What the head needs in its forward and its backward pass, without its gradient and the logits that are kept."""
    shape, number, extra = plan.shape, plan.number, 4 if plan.mixed else 0
    if not plan.fused:
        logits = shape.vocabulary * tokens
        return logits * (number + extra) + 8 * labels * shape.vocabulary, 16 * labels * shape.vocabulary
    chunk = chunk_bytes(plan)
    return chunk + labels * shape.hidden * number, chunk + labels * shape.hidden * (number + 4)


def chunk_bytes(plan: Plan) -> float:
    labels, words = plan.micro_batch(plan.pairs)[1], plan.shape.vocabulary
    rows = min(labels, max(1, CHUNK_LOGITS["cpu" if plan.launch.on_cpu else "cuda"] // words))
    return rows * words * (4 + (2 if plan.mixed else 0))


def logits_kept(plan: Plan, free: float | None) -> float:
    """What a trained head keeps of its logits (`simpo.logps.fused.free_for_logits`)."""
    if not plan.fused or not plan.shape.head_is_trained:
        return 0
    limit = KEPT_BYTES["cpu" if plan.launch.on_cpu else "cuda"]
    if free is not None:
        limit = min(limit, max(0, KEPT_SHARE * free))
    if plan.logits_memory is not None:
        limit = plan.logits_memory * 1e9
    return min(limit, plan.micro_batch(plan.pairs)[1] * plan.shape.vocabulary * plan.number)
