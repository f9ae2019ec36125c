"""Time one PyTorch contender: the model of `torch_model` run eagerly, compiled, or as one CUDA graph.

This module imports neither MLX nor `mlx_rtx`, whose BLAS would replace PyTorch's own.
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

WARM_UP = 2  # calls between the first one and the timed ones
Step = Callable[[], Tensor]


def measure(request: Request) -> ContenderTiming:
    """Time the requested step; each call ends with a synchronisation."""
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
    """Return PyTorch's device of the same kind as MLX's: ``cuda``, ``mps`` or ``cpu``."""
    if not gpu:
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    raise RuntimeError("MLX uses a GPU here, but PyTorch finds none")


def synchronize(device: str) -> None:
    """Wait until the device has finished all queued work."""
    if device != "cpu":
        getattr(torch, device).synchronize()


def memory_of(device: str) -> tuple[float | None, str]:
    """Return peak memory in GB, if the device reports it, and a description of the number."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9, "peak of allocated memory"
    if device == "mps":  # PyTorch reports no peak for MPS; the memory held at the end is closest
        return torch.mps.driver_allocated_memory() / 1e9, "held by the driver at the end, caches included"
    return None, "not reported on a CPU"


def loss_of(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of the last n positions."""
    logits = model(tokens, last=targets.shape[1])  # (B, n, outputs)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def forward_step(model: nn.Module, tokens: Tensor, targets: Tensor) -> Step:
    """Return a step of the forward pass and the loss, whose cost is negligible."""
    model.eval()

    @torch.no_grad()
    def step() -> Tensor:
        return loss_of(model, tokens, targets)

    return step


def training_step(model: nn.Module, tokens: Tensor, targets: Tensor, capturable: bool) -> Step:
    """Return a step of loss, gradient, clipping at norm 1 and AdamW: the paper's text recipe, as for MLX."""
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
    """Compile only the layer τ: compiling hundreds of windows in one graph would take very long.

    Shapes are not dynamic: there are only two lengths, K and 2K, and specialised code is faster for each.
    """
    for module in model.modules():
        if isinstance(module, TransformerLayer):
            module.compile(dynamic=False)


def capture(step: Step) -> Step:
    """Capture ``step`` as one CUDA graph, which is replayed with a single launch."""
    if not torch.cuda.is_available():
        raise RuntimeError("CUDA graphs need a CUDA device")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # warm up on a side stream: creates optimizer state and libraries' workspaces
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
