"""A sparse network that imitates its dense one comes nearer to it, and keeps its zeros."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="imitating needs PyTorch: pip install 'coresident[train]'")

from coresident.errors import UnsupportedModel  # noqa: E402
from coresident.graph.graph import Fact, Graph, Node  # noqa: E402
from coresident.sparsification import data, finishing  # noqa: E402
from coresident.sparsification.agreement import Task  # noqa: E402
from coresident.sparsification.checkpoint import Checkpoint  # noqa: E402
from coresident.sparsification.execution import Engine  # noqa: E402
from coresident.sparsification.network import layers, prepare  # noqa: E402
from coresident.sparsification.progress import NO_PROGRESS, Progress  # noqa: E402
from coresident.sparsification.project import Project  # noqa: E402
from coresident.sparsification.settings import Settings  # noqa: E402
from coresident.sparsification.training import imitation  # noqa: E402

Array = np.ndarray[Any, Any]
SIZE, CHANNELS, CLASSES = 12, 16, 5
PRUNED = ("second", "third")


def network(end: str = "classes") -> Graph:
    rng = np.random.default_rng(0)
    constants: dict[str, Array] = {}
    nodes = []
    for place, name in enumerate(("first", "second", "third")):
        inputs = CHANNELS if place else 3
        scale = np.sqrt(2 / (9 * inputs))
        constants[f"{name}.w"] = (rng.standard_normal((CHANNELS, inputs, 3, 3)) * scale).astype(np.float32)
        constants[f"{name}.b"] = (0.1 * rng.standard_normal(CHANNELS)).astype(np.float32)
        read = f"{nodes[-1].outputs[0]}" if nodes else "x"
        nodes.append(Node("Conv", (read, f"{name}.w", f"{name}.b"), (name,), {"pads": (1,) * 4}, name))
        nodes.append(Node("HardSwish" if place == 1 else "Relu", (name,), (f"{name}.a",), {}, f"{name}.a"))
    if end == "map":
        nodes.append(Node("LRN", ("third.a",), ("y",), {"size": 3}, "end"))
    elif end == "pooled":
        nodes += [
            Node("GlobalAveragePool", ("third.a",), ("pooled",), {}, "pooled"),
            Node("Flatten", ("pooled",), ("y",), {}, "end"),
        ]
    else:
        constants["fc"] = rng.standard_normal((CHANNELS, CLASSES)).astype(np.float32)
        nodes += [
            Node("GlobalAveragePool", ("third.a",), ("pooled",), {}, "pooled"),
            Node("Flatten", ("pooled",), ("flat",), {}, "flat"),
            Node("Gemm", ("flat", "fc"), ("logits",), {}, "last"),
            Node("Softmax", ("logits",), ("y",), {}, "end"),
        ]
    facts = {"x": Fact(np.dtype(np.float32), ("N", 3, SIZE, SIZE))}
    return Graph(("x",), ("y",), tuple(nodes), constants, facts)


def project(
    folder: Path | None = None,
    graph: Graph | None = None,
    task: Task = "classifier",
    progress: Progress = NO_PROGRESS,
    deadline: float | None = None,
) -> Project:
    shapes = {"x": (1, 3, SIZE, SIZE)}
    prepared = prepare(graph or network(), shapes)
    pictures = np.random.default_rng(1).standard_normal((48, 3, SIZE, SIZE)).astype(np.float32)
    samples = data.read(pictures, data.inputs_of(prepared, shapes))
    return Project(
        prepared,
        layers(prepared, shapes),
        shapes,
        *samples.split(0.25, 0),
        task,
        Settings(effort="max", sparsity=0.5),
        Engine(1),
        Checkpoint(folder, {}),
        progress,
        deadline,
    )


def halved(project: Project) -> Graph:
    """The dense network without the smaller half of the weights of `PRUNED`."""
    arrays = dict(project.graph.initializers)
    for layer in project.layers:
        if layer.name in PRUNED:
            w = arrays[layer.weight]
            arrays[layer.weight] = np.where(abs(w) > np.median(abs(w)), w, np.float32(0))
    return project.graph.with_(initializers=arrays)


def imitated(project: Project) -> tuple[Graph, Graph]:
    sparse = halved(project)
    pruned = [layer for layer in project.layers if layer.name in PRUNED]
    trained, note = imitation.imitate(project, sparse, pruned)
    assert ("given up" in note) == (trained is sparse)
    return sparse, trained


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imitation, "STEPS", 60)
    monkeypatch.setattr(imitation, "WARM", 5)


def loss(project: Project, graph: Graph) -> float:
    reference = project.outputs(project.graph, project.held_out)
    return project.compare(reference, project.outputs(graph, project.held_out)).loss


@pytest.mark.parametrize("task", ["classifier", "other"])
def test_it_comes_nearer_and_keeps_its_zeros(task: Task) -> None:
    work = project(task=task)
    sparse, trained = imitated(work)
    assert loss(work, trained) < 0.5 * loss(work, sparse)
    for name, array in sparse.initializers.items():
        if name.removesuffix(".w") in PRUNED:
            assert np.array_equal(trained.initializers[name] == 0, array == 0)
    # What stands in front of the first change is as it was.
    assert np.array_equal(trained.initializers["first.w"], work.graph.initializers["first.w"])
    _, again = imitated(work)
    assert all(np.array_equal(again.initializers[n], a) for n, a in trained.initializers.items())


class _Interrupted:
    def __init__(self, steps: int) -> None:
        self._left = steps

    def stage(self, name: str, total: int) -> None:
        pass

    def advance(self, n: int = 1, note: str = "") -> None:
        self._left -= n
        if self._left < 0:
            raise KeyboardInterrupt


def test_an_interrupted_one_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole = imitated(project())
    monkeypatch.setattr(imitation, "_SAVED", 0.0)
    with pytest.raises(KeyboardInterrupt):
        imitated(project(tmp_path, progress=_Interrupted(20)))
    seen = []
    monkeypatch.setattr(
        imitation._Stream,
        "at",
        lambda self, step, at=imitation._Stream.at: (seen.append(step), at(self, step))[1],
    )
    _, resumed = imitated(project(tmp_path))
    assert seen[imitation.JUDGING] == 20  # behind those by which it is judged
    assert all(np.array_equal(resumed.initializers[n], a) for n, a in whole.initializers.items())


def test_what_makes_it_worse_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imitation, "RATE", 10.0)
    sparse, trained = imitated(project())
    assert trained is sparse


def test_without_time_it_stays_as_it_is() -> None:
    sparse, trained = imitated(project(deadline=0.0))
    assert trained is sparse
    kept, note = finishing.imitating(project(deadline=0.0), sparse, (), 1.0)
    assert kept is sparse
    assert "no time" in note


def test_what_the_last_layer_makes_is_imitated_before_it_is_averaged() -> None:
    work = project(graph=network("pooled"))
    sparse = halved(work)
    pruned = [layer for layer in work.layers if layer.name in PRUNED]
    student = imitation._Student(work, sparse, pruned)
    assert student.outputs == ("y",)
    assert student.between == ("second.a", "third")


def test_operators_without_a_gradient_are_named() -> None:
    with pytest.raises(UnsupportedModel, match="LRN"):
        imitated(project(graph=network("map"), task="other"))


@pytest.mark.parametrize("size", [1 << 60, None])
def test_without_memory_it_stays_as_it_is_and_says_so(
    monkeypatch: pytest.MonkeyPatch, size: int | None
) -> None:
    def allocate(*_: object) -> None:
        if size is None:
            raise RuntimeError("expected scalar type Float but found Double")
        torch.empty(size)

    monkeypatch.setattr(imitation, "_trained", allocate)
    work = project()
    sparse, pruned = halved(work), [layer for layer in work.layers if layer.name in PRUNED]
    if size is None:
        with pytest.raises(RuntimeError, match="scalar type"):
            finishing.imitating(work, sparse, pruned, 1.0)
        return
    kept, note = finishing.imitating(work, sparse, pruned, 1.0)
    assert kept is sparse
    assert "not enough memory" in note
