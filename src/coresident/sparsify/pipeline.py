"""`sparsify`: from a trained dense network to one that this CPU runs faster, and the proof of what it does."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coresident.compiler import compile_file
from coresident.errors import Error, InputError
from coresident.onnx.reader import read
from coresident.runtime import cpu
from coresident.runtime.digest import digest
from coresident.runtime.files import write_atomically
from coresident.source import Source
from coresident.sparsify import agreement, data as samples_data
from coresident.sparsify.checkpoint import Checkpoint
from coresident.sparsify.network import layers, prepare
from coresident.sparsify.progress import NO_PROGRESS, Progress
from coresident.sparsify.project import Project
from coresident.sparsify.report import Report
from coresident.sparsify.search import Found, search
from coresident.sparsify.settings import Settings
from coresident.sparsify.verification import verified
from coresident.vision.tensors import Preprocessing
