"""One PyTorch contender, timed: the model of `torch_model` run eagerly, compiled, or as one CUDA graph.

No MLX is imported here, nor the BLAS that it prefers, which would stand in for PyTorch's own.
"""

import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.request import ContenderTiming, Request
from lib.torch_model import MODELS, TransformerLayer

WARM_UP = 2  # calls between the first and those that are timed
Step = Callable[[], Tensor]


def measure(request: Request) -> ContenderTiming:
    """Time the step that ``request`` asks for, each call ended by a synchronisation."""
    torch.set_float32_matmul_precision("high" if request.tf32 else "highest")
    device = find_device(request.gpu)
    torch.manual_seed(0)
    model = MODELS[request.model](SimpleNamespace(**request.config)).to(device)
    vocab, outputs = request.config["vocab_size"], request.config["out_size"] or request.config["vocab_size"]
    tokens = torch.randint(vocab, (request.batch, request.length), device=device)
    targets = tokens[:, : request.targets] % outputs  # (B, n)
    graphs = request.contender == "torch graphs"
    if request.mode == "training":
        step = training_step(model, tokens, targets, capturable=graphs)
    else:
        step = forward_step(model, tokens, targets)
    if request.contender == "torch compile":
        compile_layers(model)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()

    clock = time.perf_counter()
    step = capture(step) if graphs else step
    loss = step()
    synchronize(device)
    first = time.perf_counter() - clock
    times = []
    for _ in range(WARM_UP + request.repeats):
        clock = time.perf_counter()
        loss = step()
        synchronize(device)
        times.append(time.perf_counter() - clock)
    times = times[WARM_UP:]
    peak_gb, memory = memory_of(device)
    return ContenderTiming(
        seconds=statistics.median(times),
        fastest=min(times),
        slowest=max(times),
        first=first,
        peak_gb=peak_gb,
        memory=memory,
        loss=loss.item(),
        ran_on=f"torch {torch.__version__}, {torch.cuda.get_device_name() if device == 'cuda' else device}",
    )


def find_device(gpu: bool) -> str:
    """The device of MLX's kind that PyTorch has: ``cuda``, ``mps`` or ``cpu``."""
    if not gpu:
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    raise RuntimeError("MLX uses a GPU here, of which this PyTorch sees none")


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device != "cpu":
        getattr(torch, device).synchronize()


def memory_of(device: str) -> tuple[float | None, str]:
    """Peak memory in GB as far as the device tells it, and what that number is."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9, "peak of allocated memory"
    if device == "mps":  # it keeps no peak; what its allocator holds at the end comes closest
        return torch.mps.driver_allocated_memory() / 1e9, "held by the driver at the end, caches included"
    return None, "not told on a CPU"


def loss_of(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the last n positions."""
    logits = model(tokens, last=targets.shape[1])  # (B, n, outputs)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def forward_step(model: nn.Module, tokens: Tensor, targets: Tensor) -> Step:
    """The forward pass alone, and of it the loss, which costs nothing beside it."""
    model.eval()

    @torch.no_grad()
    def step() -> Tensor:
        return loss_of(model, tokens, targets)

    return step


def training_step(model: nn.Module, tokens: Tensor, targets: Tensor, capturable: bool) -> Step:
    """Loss, gradient, clipping at norm 1, AdamW: the paper's recipe for text, which MLX is given too."""
    model.train()
    weights = list(model.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [w for w in weights if w.ndim > 1]},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, capturable=capturable)

    def step() -> Tensor:
        loss = loss_of(model, tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # at the end: a capture must begin without gradients
        return loss.detach()

    return step


def compile_layers(model: nn.Module) -> None:
    """Compile the layer τ alone: hundreds of windows in one graph would be compiled for very long.

    Not for dynamic shapes: it meets two lengths, K and 2K, and each is faster with code of its own.
    """
    for module in model.modules():
        if isinstance(module, TransformerLayer):
            module.compile(dynamic=False)


def capture(step: Step) -> Step:
    """``step`` as one CUDA graph, which a single launch replays whole."""
    if not torch.cuda.is_available():
        raise RuntimeError("CUDA graphs need a CUDA device")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # off the default stream: the optimizer's state, and each library's workspace
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay
