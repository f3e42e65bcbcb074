"""The memory that compiled code and Python share: offsets in bytes, fields of 64 bits unless said otherwise.

Counters never restart. A context counts its runs (`JOB_GENERATION`), and in run `g` a worker's range of
`length` tasks is what its counter passes from `g * length` to `(g + 1) * length`; a group of steps is done
when its count reaches `(g + 1) * STEP_GROUP_TASKS`. So nothing is reset between runs, and a worker that comes
late, or is still walking a run that has ended, finds every range exhausted and every group done.
"""

from __future__ import annotations

VERSION = 1
"""Of this file, the kernels' parameters and the entry points: objects of another version can't be run."""

LINE = 64
"""Bytes between things that different cores write."""

# A job: one context of one program.
JOB_STEPS = 0
"""Address of the table of steps."""
JOB_STEP_COUNT = 8
JOB_WORKERS = 16
JOB_GENERATION = 24
"""Runs finished."""
JOB_SCRATCH = 32
"""Address of worker 0's scratch."""
JOB_SCRATCH_STRIDE = 40
JOB_PROFILE = 48
"""Address of (steps + 1) words that take the caller's clock at the start and after each step, or 0."""
JOB_YIELD = 56
"""Address of a function of the system that gives the core to another thread."""
JOB_YIELD_WINDOWS = 64
"""1 if that function follows the Windows x64 calling convention."""
JOB_PATIENCE = 72
"""Ticks to spin at the end of a group before giving the core away."""
JOB_TEAM = 80
"""Address of the team; unused with one worker."""
JOB_BYTES = 128

# A step, one line each.
STEP_KERNEL = 0
STEP_WORDS = 8
STEP_TASKS = 16
STEP_BARRIER = 24
"""1 if all tasks so far must end before the next step."""
STEP_GROUP_TASKS = 32
"""Tasks of the steps since the last barrier, this one included; read where STEP_BARRIER is 1."""
STEP_COUNTERS = 40
"""Address of a line a worker (its range), then one with the group's tasks done; unused with one worker."""
STEP_BYTES = LINE

# A worker's range in a step.
RANGE_NEXT = 0
RANGE_START = 8
RANGE_LENGTH = 16

# A team.
TEAM_JOB = 0
"""Address of the job that runs now, or 0."""
TEAM_GENERATION = 8
"""That job's generation; written before TEAM_JOB."""
TEAM_CLOSED = LINE
TEAM_SPIN = LINE + 8
"""Ticks that a worker waits for a job before it sleeps."""
TEAM_PATIENCE = LINE + 16
"""Ticks before it begins to give its core away between looks."""
TEAM_YIELD = LINE + 24
TEAM_YIELD_WINDOWS = LINE + 32
TEAM_THREADS = LINE + 40
TEAM_SLOTS = 2 * LINE
"""A line a worker: the address of the job whose memory it may be reading, or 0."""


def team_sleeping(threads: int) -> int:
    """Offset of one byte a worker: 1 if it has gone, or is about to go, to sleep."""
    return TEAM_SLOTS + threads * LINE


def team_bytes(threads: int) -> int:
    """Size of a team."""
    return team_sleeping(threads) + -(-threads // LINE) * LINE


# What the worker's entry point returns.
WORKER_SLEEP = 0
WORKER_EXIT = 1
