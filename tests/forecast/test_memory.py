"""Predicted memory: compared with the measured peak on a CPU, and its dependence on the settings."""

from dataclasses import replace

from mlx_rtx import ModelConfig, RecurrentTransformer, kernels
from mlx_rtx.forecast.graph import Work
from mlx_rtx.forecast.memory import Memory, forward_memory, kernel_memory, parameter_count, training_memory
from mlx_rtx.forecast.step_benchmark import StepBenchmark
from mlx_rtx.support.trees import flat
from mlx_rtx.training.recipes import COPY_PAPER, IMAGE_PAPER, TEXT, TEXT_PAPER

import mlx.core as mx
import pytest

from tiny import HISTORIES

COPY = {"vocab_size": 16, "max_len": 544, "dim": 96, "heads": 6, "block": 32, "dropout": 0.05}
IMAGE = {"vocab_size": 256, "max_len": 512, "dim": 32, "heads": 4, "block": 32, "out_size": 10, "tie_embeddings": False}
WORDS = {"vocab_size": 65, "max_len": 128, "dim": 96, "heads": 6, "block": 16, "dropout": 0.2, "activation": "gelu"}


@pytest.fixture
def on_cpu():
    """Use the CPU, where the size of an allocation is that of its array."""
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


@pytest.mark.parametrize(
    ("history", "sizes", "batch", "targets", "segment"),
    [
        ("hidden", COPY, 4, 16, 4),
        ("output", COPY, 8, 16, 8),
        ("hidden", {**COPY, "positions": "block", "state_norm": True}, 8, 16, 8),
        ("output", {**COPY, "positions": "axial"}, 8, 16, 8),
        ("hidden", {**COPY, "block": 64, "dropout": 0.0}, 4, 16, 4),
        ("output", {**COPY, "block": 64, "dropout": 0.0}, 4, 16, 4),
        ("output", IMAGE, 16, 1, 8),
        ("hidden", {**IMAGE, "dtype": "bfloat16"}, 16, 1, 8),
        ("output", {**IMAGE, "dtype": "bfloat16"}, 16, 1, 8),
        ("hidden", {**IMAGE, "attention_dropout": 0.1}, 16, 1, 8),
        ("output", {**IMAGE, "attention_dropout": 0.1}, 16, 1, 8),
        ("output", WORDS, 8, 128, 8),
        ("hidden", WORDS, 8, 128, 4),
        ("output", {**WORDS, "layers": 2}, 4, 128, 4),
    ],
)
def test_a_training_step_takes_the_predicted_memory(on_cpu, history, sizes, batch, targets, segment):
    benchmark = StepBenchmark(ModelConfig(**sizes, history=history), segment=segment)
    check(benchmark, batch, sizes["max_len"], targets, within=0.2 if "dtype" in sizes else 0.15)


@pytest.mark.parametrize(
    ("sizes", "targets"),
    [
        ({**IMAGE, "layers": 4}, 1),
        ({**IMAGE, "layers": 2, "attention_dropout": 0.1}, 1),
        (WORDS, 128),
        ({**WORDS, "layers": 3}, 128),
    ],
)
def test_a_regular_training_step_takes_the_predicted_memory(on_cpu, sizes, targets):
    check(StepBenchmark(ModelConfig(**sizes), "regular"), 8, sizes["max_len"], targets)


def check(benchmark: StepBenchmark, batch: int, length: int, targets: int, within: float = 0.15) -> None:
    measured = benchmark.measure(batch, length, targets, repeats=1, shortest=0.0).peak_bytes
    assert measured == pytest.approx(benchmark.memory(batch, length, targets, gpu=False).peak, rel=within)


def test_a_forward_pass_of_a_long_sequence_takes_the_predicted_memory(on_cpu):
    benchmark = StepBenchmark(ModelConfig(**{**COPY, "max_len": 4128}), mode="forward")
    check(benchmark, 4, 4128, 16, within=0.25)  # depends more on how far the host runs ahead


def test_a_large_model_with_a_small_batch_peaks_in_the_optimizer(on_cpu):
    config = ModelConfig(**{**COPY, "max_len": 8000})
    memory = training_memory(config, 64, 1, 1, 1)
    assert memory.peak == memory.optimizer
    check(StepBenchmark(config, segment=1), 1, 64, 1)


def test_parts_of_the_memory():
    config = ModelConfig(**COPY)

    def at(batch=8, segment=4, length=544):
        return training_memory(config, length, batch, 16, segment)

    assert at(batch=16).carries == 2 * at().carries
    assert at(batch=16).segment == pytest.approx(2 * at().segment, abs=1)
    assert at(batch=16).weights == at().weights
    assert at(segment=8).segment > 1.5 * at().segment
    assert at(segment=8).carries < at().carries
    assert at(segment=None).segment == at(segment=17).segment > at(segment=16).segment
    assert at(segment=None).carries == 4 * 8 * 544  # tokens alone
    assert forward_memory(config, 544, 8, 16).peak < at().peak


def test_the_memory_of_a_segment_does_not_depend_on_the_length():
    config = ModelConfig(**{**COPY, "positions": "block"})
    short, long = (training_memory(config, length, 8, 16, 8) for length in (2**12, 2**17))
    assert (short.segment, short.weights) == (long.segment, long.weights)
    assert forward_memory(config, 2**12, 8, 16).segment == forward_memory(config, 2**17, 8, 16).segment


def test_a_gpu_frees_arrays_later():
    """Arrays of 150 launches at segments of 8 blocks, fewer at others, at most a fraction of all launches."""
    benchmark = StepBenchmark(ModelConfig(**COPY), segment=8)
    work = benchmark.work(8, 544, 16)
    cpu, gpu = (benchmark.memory(8, 544, 16, gpu=on) for on in (False, True))
    assert work.launches > 8 * 150
    assert gpu.peak - cpu.peak == gpu.queued == round(150 * work.bytes / work.launches)
    assert gpu.least - cpu.peak == gpu.queued_least == round(75 * work.bytes / work.launches)
    assert cpu.least == cpu.peak

    def queued(launches=10_000, megabytes=1.0, training=True, segment=8, model="recurrent"):
        return cpu.on_gpu(Work(launches, 0, round(1e6 * launches * megabytes)), training, segment, model).queued / 1e6

    assert queued() == 150
    assert queued(launches=800) == 100
    assert queued(segment=16) == queued(segment=4) == pytest.approx(150 * 0.5**0.75)
    assert queued(megabytes=7.0) == 7 * 210
    assert queued(megabytes=70.0) == 70 * 400
    assert queued(training=False) == 200
    assert queued(launches=120, segment=None, model="regular") == 10


@pytest.mark.parametrize("plain", [{"alpha_kind": "gated"}, {"dtype": "bfloat16"}])
def test_the_memory_of_kernels_is_predicted_if_they_are_used(monkeypatch, plain):
    monkeypatch.setattr(kernels, "available", lambda: True)
    fused, other = StepBenchmark(ModelConfig(**COPY)), StepBenchmark(ModelConfig(**COPY, **plain))
    assert fused.memory(8, 544, 16) == kernel_memory(fused.config, 544, 8, 16)
    assert other.memory(8, 544, 16).segment == training_memory(other.config, 544, 8, 16).segment > 0


def test_attention_dropout_takes_memory():
    without, dropping = (training_memory(ModelConfig(**COPY, attention_dropout=p), 544, 8, 16) for p in (0.0, 0.05))
    assert dropping.segment > 1.1 * without.segment
    assert replace(dropping, segment=0) == replace(without, segment=0)


@pytest.mark.parametrize("history", HISTORIES)
def test_attention_dropout_takes_memory_with_kernels(history):
    without, dropping = (
        kernel_memory(ModelConfig(**COPY, history=history, attention_dropout=p), 544, 8, 16) for p in (0.0, 0.05)
    )
    weights = 8 * 8 * 6 * 64 * (64 if history == "output" else 32)  # of a segment: B·S·H·N·n
    assert dropping.queued_least - without.queued_least == pytest.approx(2.0 * 4 * 2.25 * weights, abs=2)
    assert replace(dropping, queued=0, queued_least=0) == replace(without, queued=0, queued_least=0)


def test_ratio_of_a_peak_to_a_range():
    memory = Memory(weights=1, carries=2, segment=97, optimizer=10, queued=100, queued_least=50)
    assert [memory.ratio(measured) for measured in (75, 150, 180, 200, 250)] == [0.5, 1, 1, 1, 1.25]


def test_parameters_are_counted_without_a_model():
    config = ModelConfig(**WORDS)
    model = RecurrentTransformer(config)
    assert parameter_count(config) == sum(array.size for array in flat(model.parameters()).values())
    assert parameter_count(config, "regular") == parameter_count(config) - 1  # no alpha


@pytest.mark.parametrize(
    ("recipe", "segment", "peaks"),  # GB on NVIDIA H200s with fused kernels, at the recipes' batches
    [
        (COPY_PAPER, 2, [0.60]),
        (COPY_PAPER, 4, [0.846]),
        (COPY_PAPER, 8, [1.342]),
        (COPY_PAPER, 16, [2.35]),
        (IMAGE_PAPER, 16, [1.18, 1.26, 1.34]),
        (TEXT_PAPER, 8, [2.64, 3.17, 3.63, 3.82, 4.31]),
        (TEXT_PAPER, 16, [4.52, 4.63, 5.24]),
        (TEXT, 8, [2.85]),
    ],
)
def test_kernels_took_the_predicted_memory(recipe, segment, peaks):
    shape = recipe.task.shape
    config, batch = recipe.model_config(shape), 120 if recipe is IMAGE_PAPER else 64
    config = replace(config, attention_dropout=0.0)  # as in the recipes at that time
    memory = kernel_memory(config, shape.length, batch, shape.targets, segment)
    assert [memory.ratio(1e9 * peak) for peak in peaks] == pytest.approx([1] * len(peaks), abs=0.15)
    assert memory.peak < 3 * memory.least
