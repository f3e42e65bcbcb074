"""What sparsifying a network did: layer by layer and for the whole, as JSON, as text and as plots."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from coresident.errors import InputError, ResourceError
from coresident.runtime import cpu
from coresident.runtime.files import write_atomically
from coresident.sparsification import plots
from coresident.sparsification.records import decoded, encoded
from coresident.sparsification.report_text import markdown

_LARGEST = 256 << 20
_PACKAGES = ("coresident", "numpy", "scipy", "onnx", "llvmlite", "onnxruntime")


@dataclass(frozen=True)
class LayerReport:
    """One layer with weights.

    Args:
        name: of its node.
        op: its operator.
        shape: of its weights.
        sparsity: share of its weights that are zero now.
        pattern: of the zeros.
        dtype: that it is computed in now.
        seconds_before, seconds_after: of one call as measured here, dense float32 and now.
        error: of its output on the calibration samples, squared and relative to the output's variance; NaN
            where it was not measured.
        kept: why it stayed dense or in float; "" where it did not, or where the budget allowed it.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    sparsity: float
    pattern: Literal["dense", "unstructured", "4block"]
    dtype: Literal["float32", "int8"]
    seconds_before: float
    seconds_after: float
    error: float
    kept: str = ""

    @property
    def weights(self) -> int:
        """How many there are."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class Latency:
    """Seconds of one call, measured in turns; None where that was not measured.

    Args:
        dense_float: the original network here.
        result: what was made of it.
        dense_int8: the original in 8 bits.
        onnxruntime_original, onnxruntime_result: both in ONNX Runtime.
    """

    dense_float: float
    result: float
    dense_int8: float | None = None
    onnxruntime_original: float | None = None
    onnxruntime_result: float | None = None

    @property
    def speedup(self) -> float:
        """How many times as fast as the original here."""
        return self.dense_float / self.result


@dataclass(frozen=True)
class Sizes:
    """Bytes of files; None for one that was not made."""

    onnx_before: int
    onnx_after: int
    artifact: int | None = None


@dataclass(frozen=True)
class Accuracy:
    """Against labels, on the samples held back.

    Args:
        metric: what is counted: "top-1", "Dice", ...
        before, after: of the original and the result; more is better.
    """

    metric: str
    before: float
    after: float


@dataclass(frozen=True)
class Target:
    """What was asked for.

    Args:
        kind: "target_speedup", times as fast as the original; "latency_ms"; "sparsity" of all weights that
            can have zeros; "max_drop" of accuracy or agreement.
        asked: how much of it.
        reached: how much there is, as measured.
        feasible: whether it was predicted to be reached.
        holding: where not, the layers that hold it, with their shares of the least time possible.
    """

    kind: Literal["target_speedup", "latency_ms", "sparsity", "max_drop"]
    asked: float
    reached: float
    feasible: bool = True
    holding: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Machine:
    """Where it was measured.

    Args:
        cpu: its name.
        threads: used.
        versions: of packages.
    """

    cpu: str
    threads: int
    versions: Mapping[str, str]

    @staticmethod
    def here(threads: int) -> Machine:
        versions = {"python": platform.python_version()}
        for package in _PACKAGES:
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        return Machine(cpu.model_name(), threads, versions)


@dataclass(frozen=True)
class Report:
    """What sparsifying a network did.

    Args:
        model: name of the network.
        task: "classifier", "segmenter", "detector" or "other".
        target: what was asked for.
        layers: in the graph's order.
        latency, sizes: of the whole.
        agreement: with the original network, on the samples held back (`Agreement.record`).
        accuracy: against labels, where there are.
        calibration_samples, held_back_samples: how many there were.
        rejected: samples that could not be read, and why.
        shapes: of the inputs that times are for.
        settings: all options, as JSON values.
        seed: of everything random.
        machine: where it was done.
        seconds: that it took.
        notes: what else its reader should know.
    """

    model: str
    task: str
    target: Target
    layers: tuple[LayerReport, ...]
    latency: Latency
    sizes: Sizes
    agreement: Mapping[str, Any]
    machine: Machine
    seed: int
    seconds: float
    accuracy: Accuracy | None = None
    calibration_samples: int = 0
    held_back_samples: int = 0
    rejected: tuple[tuple[str, str], ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    version: int = 1

    @property
    def sparsity(self) -> float:
        """Share of the weights of all layers that are zero."""
        weights = sum(layer.weights for layer in self.layers)
        return sum(layer.sparsity * layer.weights for layer in self.layers) / max(weights, 1)

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        sums = {"speedup": self.latency.speedup, "overall_sparsity": self.sparsity}
        return {**encoded(self), **encoded(sums)}

    def markdown(self, pictures: tuple[str, ...] = (), remark: str = "") -> str:
        """For people.

        Args:
            pictures: names of files to show.
            remark: said in their place.
        """
        return markdown(self, pictures, remark)

    def write(self, folder: Path) -> tuple[Path, ...]:
        """Write report.json, report.md and, where matplotlib is installed, plots.

        Returns:
            The files.

        Raises:
            ResourceError: the disk does not take them.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(f"can't be made: {error.strerror or error}", file=folder) from error
        drawn = plots.draw(self) if plots.available() and self.layers else {}
        remark = "" if plots.available() else plots.MISSING
        contents = {
            **drawn,
            "report.md": self.markdown(tuple(drawn), remark).encode("utf-8", "backslashreplace"),
            "report.json": (json.dumps(self.record(), indent=1, allow_nan=False) + "\n").encode(),
        }
        for name, content in contents.items():
            write_atomically(folder / name, [content])
        return tuple(folder / name for name in contents)

    @staticmethod
    def read(path: Path) -> Report:
        """The report of a report.json, or of the folder that has one.

        Raises:
            InputError: it is none.
            ResourceError: it can't be read.
        """
        path = path / "report.json" if path.is_dir() else path
        try:
            if path.stat().st_size > _LARGEST:
                raise InputError("too large for a report", file=path)
            content = path.read_bytes()
        except OSError as error:
            raise ResourceError(f"can't be read: {error.strerror or error}", file=path) from error
        try:
            record = json.loads(content)
        except (ValueError, RecursionError):
            raise InputError("not JSON", file=path) from None
        if not isinstance(record, dict) or record.get("version") != 1:
            raise InputError("not a report that this version reads", file=path)
        record = {
            name: value for name, value in record.items() if name not in ("speedup", "overall_sparsity")
        }
        try:
            return decoded(Report, record)
        except InputError as error:
            raise error.at(file=path) from None
