"""From a choice of forms to the network: weights solved again in place, statistics repaired, quantised."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from coresident.errors import UnsupportedModel
from coresident.graph.graph import Graph
from coresident.graph.operator import Array
from coresident.sparsification import correction, training
from coresident.sparsification.agreement import Agreement
from coresident.sparsification.bias_correction import correct_biases
from coresident.sparsification.candidates import weight_bits
from coresident.sparsification.forms import DType
from coresident.sparsification.network import Layer
from coresident.sparsification.project import Project
from coresident.sparsification.quantization import quantize
from coresident.sparsification.ranges import Range, ranges
from coresident.sparsification.samples import Samples
from coresident.sparsification.sensitivity import keep_worst, sensitivity

COSTLY = 0.03
"""Share of the decisions on the probes that bytes may change without layers being kept in floats for it."""
_PART = 0.25
"""Part of the whole loss that may be theirs: where zeros have moved decisions already, a few more that fall
the other way are chance."""


@dataclass(frozen=True)
class Finished:
    """A network that is done.

    Args:
        sparse: in float32, plain ONNX operators.
        graph: the result; the same where nothing is quantised.
        floating: layers that stay in float because of what their bytes would cost, with the reason.
        notes: what its reader should know.
    """

    sparse: Graph
    graph: Graph
    floating: Mapping[str, str]
    notes: tuple[str, ...] = ()


def activation_ranges(project: Project, graph: Graph) -> dict[str, Range]:
    """What bytes are to span, over the calibration samples."""
    project.progress.stage("ranges of activations", 0)
    return ranges(graph, project.calibration.batches(), engine=project.engine)


def finish(
    project: Project,
    sparse: Graph,
    pruned: Sequence[Layer],
    dtype: DType,
    floating: Collection[str],
    probes: Samples,
    reference: Sequence[Array],
    share: float = 1.0,
) -> Finished:
    """Build the network that was chosen.

    Args:
        sparse: the network with the weights that were worked out for each layer by itself.
        pruned: layers that have zeros there.
        dtype: of its products.
        floating: names of nodes that stay in float where the others become bytes.
        probes: samples by which what bytes cost is judged.
        reference: the dense network's outputs for them.
        share: of the time that training may take, where several networks are built to choose from.
    """
    notes: tuple[str, ...] = ()
    if pruned:
        sparse = _corrected(project, sparse, pruned, probes, reference)
        if project.settings.effort == "max":
            sparse, note = imitating(project, sparse, pruned, share)
            notes = (note,)
    if dtype == "float32":
        return Finished(sparse, sparse, {}, notes)
    return replace(_in_bytes(project, sparse, floating, probes, reference), notes=notes)


def _corrected(
    project: Project, sparse: Graph, pruned: Sequence[Layer], probes: Samples, reference: Sequence[Array]
) -> Graph:
    """The network with its weights solved again and statistics repaired, as far as each of them helps.

    In deep networks the layers of one stage may all make up for the same error before them.
    """

    def loss(graph: Graph) -> float:
        return project.compare(reference, project.outputs(graph, probes)).loss

    batches = project.calibration.batches
    engine, progress = project.engine, project.progress
    solved = correction.resolve(
        project.graph,
        sparse,
        pruned,
        batches,
        engine=engine,
        seed=project.settings.seed,
        progress=progress,
    )
    least, best = min((loss(sparse), sparse), (loss(solved), solved), key=lambda one: one[0])
    repaired = correction.repair(
        project.graph, best, project.layers, batches, engine=engine, progress=progress
    )
    return repaired if loss(repaired) < least else best


def imitating(project: Project, sparse: Graph, pruned: Sequence[Layer], share: float) -> tuple[Graph, str]:
    """The network trained to imitate the dense one, where it can be, and what became of it."""
    if not training.is_there():
        return sparse, f"not trained to imitate the dense network, which needs PyTorch: {training.HOW}"
    if project.seconds_left <= 0:
        return sparse, "not trained to imitate the dense network: there is no time left for it"
    from coresident.sparsification.training.imitation import imitate

    try:
        return imitate(project, sparse, pruned, share)
    except UnsupportedModel as error:
        return sparse, f"not trained to imitate the dense network: {error}"
    except MemoryError:
        return sparse, "not trained to imitate the dense network: there is not enough memory for it"


def _in_bytes(
    project: Project, sparse: Graph, floating: Collection[str], probes: Samples, reference: Sequence[Array]
) -> Finished:
    """The network quantised, its biases corrected for what rounding shifts; where that costs many decisions,
    the layers that cost most stay in floats."""

    def judged(graph: Graph) -> Agreement:
        return project.compare(reference, project.outputs(graph, probes))

    found = activation_ranges(project, sparse)
    bits = weight_bits()
    quantised = quantize(sparse, found, skip=floating, weight_bits=bits)
    kept: tuple[str, ...] = ()
    if project.settings.effort != "fast" and project.seconds_left > 0:
        exact, rounded = judged(sparse), judged(quantised)
        if exact.share - rounded.share > COSTLY and rounded.loss - exact.loss > _PART * rounded.loss:
            order = sensitivity(
                sparse,
                found,
                lambda graph: judged(graph).loss,
                skip=floating,
                weight_bits=bits,
                progress=project.progress,
            )
            most = (exact.loss + rounded.loss) / 2
            chosen = keep_worst(
                sparse,
                found,
                order,
                lambda graph: judged(graph).loss,
                most,
                skip=floating,
                weight_bits=bits,
                progress=project.progress,
            )
            quantised, kept = chosen.graph, chosen.floating
    corrected = correct_biases(sparse, quantised, project.calibration.batches, engine=project.engine)
    return Finished(sparse, corrected, dict.fromkeys(kept, "its bytes cost too many decisions"))
