"""`coresident finetune`: prunes and quantises a PyTorch model while it trains on labelled pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from coresident.cli import report as console
from coresident.cli.command import OK, Command, add_json, positive
from coresident.cli.pictures import add_preprocessing, preprocessing
from coresident.errors import InputError, ResourceError
from coresident.graph.graph import Fact
from coresident.sparsification import data
from coresident.sparsification.training import Recipe, load, require
from coresident.vision.tensors import Preprocessing


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="FILE.py:FUNCTION that returns a trained torch.nn.Module, or a .pt2 of torch.export.save",
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="a state dict to load into the model")
    parser.add_argument(
        "--data", required=True, metavar="PATH", help="pictures: a folder, or an .npy or .npz of arrays"
    )
    parser.add_argument(
        "--labels",
        metavar="LABELS",
        help="a folder of masks, a .csv of names and classes, an .npy, or 'folders' (the default for a "
        "folder of pictures: one folder for each class)",
    )
    parser.add_argument("--held-out", help="pictures to judge with: PATH as --data, or a share (0.2)")
    parser.add_argument("--held-out-labels", metavar="LABELS", help="of --held-out PATH, as --labels")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the result")
    what = parser.add_argument_group("what to do", "a recipe, or the usual one of these")
    what.add_argument("--recipe", type=Path, metavar="FILE.yaml", help="of this project, or of SparseML")
    what.add_argument("--sparsity", type=_share, default=0.85, help="share of zeros (default: 0.85)")
    what.add_argument("--pattern", choices=("unstructured", "4block"), default="4block")
    what.add_argument("--quantize", choices=("int8", "none"), default="int8")
    what.add_argument(
        "--weight-bits",
        type=int,
        choices=(7, 8),
        default=8,
        help="7 is exact in other engines on CPUs without VNNI too",
    )
    what.add_argument("--epochs", type=positive, default=20, help="default: 20")
    parser.add_argument("--batch", type=positive, default=32, help="pictures of a step (default: 32)")
    parser.add_argument("--learning-rate", type=_rate, default=0.01, help="to start with (default: 0.01)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    parser.add_argument("--threads", type=positive, metavar="N", help="of PyTorch (default: its own choice)")
    parser.add_argument("--no-resume", action="store_true", help="begin anew")
    add_json(parser)
    add_preprocessing(parser)


def _share(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share like 0.85 or 85%")
    return value


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a learning rate")
    return value


def _number(text: str) -> float:
    """0 where it is none."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def _run(arguments: argparse.Namespace) -> int:
    require()
    import torch

    from coresident.sparsification.training.finetuning import Options, finetune
    from coresident.sparsification.training.sources import load_model

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    recipe = _recipe(arguments)
    torch.manual_seed(arguments.seed)
    model = load_model(arguments.model, arguments.weights)
    out: Path = arguments.out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"the folder can't be made: {error.strerror}", file=out) from error
    options = preprocessing(arguments)
    inputs = _inputs(_channels(model), options)
    with console.stages(arguments.quiet) as progress:
        training, held = _samples(arguments, inputs, options)
        options.save(out / "preprocessing.json")
        try:
            report = finetune(
                model,
                training,
                held,
                recipe,
                out,
                Options(
                    arguments.batch,
                    arguments.learning_rate,
                    seed=arguments.seed,
                    resume=not arguments.no_resume,
                ),
                progress,
            )
        except KeyboardInterrupt:
            console.remark(f"the epochs done are kept in {out}: the same command goes on from there")
            raise
    if arguments.json:
        console.print_json({"output": str(out), **report})
        return OK
    for title in ("dense", "pruned", "result"):
        figures = ", ".join(f"{name} {100 * value:.2f} %" for name, value in report[title].items())
        console.say(f"{title:8}{figures}")
    zeros = [share for share in report["sparsity"].values() if share > 0]
    console.say(f"zeros: {100 * float(np.mean(zeros or [0.0])):.1f} % of {len(zeros)} layers' weights")
    console.say(f"written to {out}")
    return OK


def _recipe(arguments: argparse.Namespace) -> Recipe:
    if arguments.recipe is not None:
        return load(arguments.recipe)
    return Recipe.gradual(
        arguments.sparsity,
        arguments.epochs,
        pattern=arguments.pattern,
        quantise=arguments.quantize == "int8",
        weight_bits=arguments.weight_bits,
        rate=arguments.learning_rate,
    )


def _channels(model: object) -> int:
    """How many channels the first convolution of a model reads; 3 where that can't be told."""
    from torch import nn

    assert isinstance(model, nn.Module)
    for parameter in model.parameters():
        if parameter.ndim == 4:
            return int(parameter.shape[1])
    return 3


def _inputs(channels: int, options: Preprocessing) -> dict[str, Fact]:
    height, width = options.size or ("height", "width")
    return {"image": Fact(np.dtype(np.float32), ("batch", channels, height, width))}


def _samples(
    arguments: argparse.Namespace, inputs: dict[str, Fact], options: Preprocessing
) -> tuple[data.Samples, data.Samples]:
    labels = arguments.labels or ("folders" if Path(arguments.data).is_dir() else None)
    training = data.read(arguments.data, inputs, options, labels, seed=arguments.seed)
    share = _number(arguments.held_out or "0.2")
    if 0 < share < 1:
        return training.split(share, arguments.seed)
    path = Path(arguments.held_out)
    if not path.exists():
        raise InputError(f"--held-out {arguments.held_out} is neither a share between 0 and 1 nor a path")
    labels = arguments.held_out_labels or ("folders" if path.is_dir() else None)
    return training, data.read(path, inputs, options, labels, seed=arguments.seed)


COMMAND = Command(
    "finetune",
    "prune and quantise a PyTorch model while it trains on labelled pictures",
    "Trains a PyTorch model on, with weights set to zero step by step (four input channels at a time), "
    "learning from its dense self and, at the end, computing as with bytes. Writes an ONNX model that runs "
    "here and elsewhere, and a report of its accuracy. For classes of pictures, or masks of pixels. Needs "
    "PyTorch: python -m pip install 'coresident[train]'.",
    _configure,
    _run,
)
