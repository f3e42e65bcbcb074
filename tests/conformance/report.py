"""Runs ONNX's backend tests through `Session`, prints how many pass and names what fails.

python tests/conformance/report.py              # all groups
python tests/conformance/report.py ext Resize   # of these groups and operators
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

import numpy as np
import onnx
from backend_cases import GROUPS, Case, cases

from coresident import Session


def failure(case: Case) -> str | None:
    """Why a case fails, in one line; None if it passes."""
    try:
        check(case)
    except Exception as error:  # whatever it is, the other cases run
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {' '.join(lines)[:300]}"
    return None


def check(case: Case) -> None:
    """Run a case and compare as ONNX's own runner does.

    Raises:
        AssertionError: an output has another type, another shape or other values.
        Error: the session refuses.
    """
    with Session(case.model, threads=1, cache=False) as session:
        names = [value.name for value in session.get_inputs()]
        for given, wanted in case.sets:
            found = session.run(None, _feeds(case, names, given))
            assert len(found) == len(wanted), f"{len(found)} outputs, not {len(wanted)}"
            for i, (a, b) in enumerate(zip(found, wanted)):
                assert (a.dtype, a.shape) == (b.dtype, b.shape), (
                    f"output {i} is {a.dtype} {a.shape}, not {b.dtype} {b.shape}"
                )
                np.testing.assert_allclose(a, b, rtol=case.rtol, atol=case.atol, err_msg=f"output {i}")


def _feeds(case: Case, names: Sequence[str], given: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The stored inputs by name: they stand in the order of the graph's inputs, initializers among them."""
    graph = onnx.load_from_string(case.model).graph
    return {value.name: array for value, array in zip(graph.input, given) if value.name in names}


def main(arguments: Sequence[str]) -> int:
    groups = [one for one in arguments if one in GROUPS] or GROUPS
    ops = {one for one in arguments if one not in GROUPS}
    failed = 0
    for group in groups:
        chosen = [case for case in cases(group) if not ops or case.op in ops]
        failures = {case.name: why for case in chosen if (why := failure(case)) is not None}
        print(f"{group}: {len(chosen) - len(failures)} of {len(chosen)}")
        for name, why in failures.items():
            print(f"  {name}: {why}")
        failed += len(failures)
    return int(failed > 0)


if __name__ == "__main__":
    warnings.simplefilter("ignore", RuntimeWarning)
    sys.exit(main(sys.argv[1:]))
