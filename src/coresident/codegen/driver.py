"""The thread team's native side, in LLVM IR: how the steps of a program are shared out and joined.

`void coresident_run(job *)` runs a job on the caller's thread with whatever workers come;
`i64 coresident_worker(team *, worker)` is where the team's other threads wait for jobs;
`i64 coresident_ticks()` reads the clock that both use. Fields are those of `runtime/abi.py`.

Sharing out: worker w of T owns a contiguous range of each step's tasks and takes them one by one with compare
and swap; when its range is exhausted it takes from the others'. So the caller finishes a job even if no
worker ever arrives: they may sleep, be preempted, or have died in a fork. Each worker adds the tasks it ran
in a group of steps to the group's count once, and goes on when the count is complete.

Joining: a worker writes the address of the job it is about to read into its slot of the team, then looks
again whether that is the team's job. Nobody waits for workers to leave a job that is done (its counters tell
them that nothing is left); only who frees a job's memory waits until no slot names it.
"""

from __future__ import annotations

import functools

from coresident.codegen import llvm
from coresident.codegen.target import Target
from coresident.runtime import abi

_CLOCK = {"x86_64": "llvm.readcyclecounter", "aarch64": "llvm.readsteadycounter"}
_PAUSE = {
    "x86_64": ("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"),
    # An instruction barrier, since YIELD does nothing on most cores.
    "aarch64": ("declare void @llvm.aarch64.isb(i32)", "call void @llvm.aarch64.isb(i32 15)"),
}


def _field(name: str, base: str, offset: int, kind: str = "i64", order: str = "") -> str:
    """Load a field into %name."""
    load = (
        f"load atomic {kind}, ptr %{name}.at {order}, align 8"
        if order
        else f"load {kind}, ptr %{name}.at, align 8"
    )
    return f"  %{name}.at = getelementptr i8, ptr {base}, i64 {offset}\n  %{name} = {load}\n"


def _give_away(arch: str) -> str:
    """Gives the core to another thread, by the system's function."""
    if arch != "x86_64":
        return """
define internal void @give_away(ptr %f, i64 %windows) nounwind {
  call void %f()
  ret void
}
"""
    return """
define internal void @give_away(ptr %f, i64 %windows) nounwind {
  %other = icmp ne i64 %windows, 0
  br i1 %other, label %win64, label %system_v
win64:
  call win64cc void %f()
  ret void
system_v:
  call void %f()
  ret void
}
"""


def _await() -> str:
    """Waits until a counter has reached a target."""
    return f"""
define internal void @await(ptr %counter, i64 %target, ptr %job) noinline nounwind {{
entry:
  %early = load atomic i64, ptr %counter acquire, align 8
  %at_once = icmp uge i64 %early, %target
  br i1 %at_once, label %done, label %begin
begin:
{_field("patience", "%job", abi.JOB_PATIENCE)}\
{_field("yield", "%job", abi.JOB_YIELD, "ptr")}\
{_field("windows", "%job", abi.JOB_YIELD_WINDOWS)}\
  %start = call i64 @coresident_ticks()
  br label %spin
spin:
  call void @pause()
  %now = load atomic i64, ptr %counter acquire, align 8
  %there = icmp uge i64 %now, %target
  br i1 %there, label %done, label %check
check:
  %clock = call i64 @coresident_ticks()
  %waited = sub i64 %clock, %start
  %impatient = icmp ugt i64 %waited, %patience
  br i1 %impatient, label %give, label %spin
give:
  call void @give_away(ptr %yield, i64 %windows)
  br label %spin
done:
  ret void
}}
"""


def _walk() -> str:
    """One worker's way through the steps of a job."""
    return f"""
define internal void @walk(ptr %job, i64 %generation, i64 %worker) noinline nounwind {{
entry:
{_field("steps", "%job", abi.JOB_STEPS, "ptr")}\
{_field("count", "%job", abi.JOB_STEP_COUNT)}\
{_field("workers", "%job", abi.JOB_WORKERS)}\
{_field("scratch.base", "%job", abi.JOB_SCRATCH, "ptr")}\
{_field("scratch.stride", "%job", abi.JOB_SCRATCH_STRIDE)}\
{_field("profile.any", "%job", abi.JOB_PROFILE, "ptr")}\
  %scratch.offset = mul i64 %worker, %scratch.stride
  %scratch = getelementptr i8, ptr %scratch.base, i64 %scratch.offset
  %is_caller = icmp eq i64 %worker, 0
  %profile = select i1 %is_caller, ptr %profile.any, ptr null
  %ended = add i64 %generation, 1
  call void @stamp(ptr %profile, i64 0)
  br label %step
step:
  %i = phi i64 [ 0, %entry ], [ %i.next, %step.end ]
  %mine = phi i64 [ 0, %entry ], [ %mine.next, %step.end ]
  %all = icmp eq i64 %i, %count
  br i1 %all, label %done, label %open
open:
  %record.offset = mul i64 %i, {abi.STEP_BYTES}
  %record = getelementptr i8, ptr %steps, i64 %record.offset
{_field("kernel", "%record", abi.STEP_KERNEL, "ptr")}\
{_field("words", "%record", abi.STEP_WORDS, "ptr")}\
{_field("barrier", "%record", abi.STEP_BARRIER)}\
{_field("counters", "%record", abi.STEP_COUNTERS, "ptr")}\
  br label %victim
victim:
  %owner = phi i64 [ %worker, %open ], [ %owner.next, %exhausted ]
  %tried = phi i64 [ 0, %open ], [ %tried.next, %exhausted ]
  %mine.before = phi i64 [ %mine, %open ], [ %mine.now, %exhausted ]
  %range.offset = mul i64 %owner, {abi.LINE}
  %range = getelementptr i8, ptr %counters, i64 %range.offset
{_field("start", "%range", abi.RANGE_START)}\
{_field("length", "%range", abi.RANGE_LENGTH)}\
  %first = mul i64 %generation, %length
  %limit = add i64 %first, %length
  %shift = sub i64 %start, %first
  br label %claim
claim:
  %mine.now = phi i64 [ %mine.before, %victim ], [ %mine.now, %swap ], [ %mine.more, %work ]
  %next = load atomic i64, ptr %range monotonic, align 8
  %left = icmp ult i64 %next, %limit
  br i1 %left, label %swap, label %exhausted
swap:
  %after = add i64 %next, 1
  %swapped = cmpxchg ptr %range, i64 %next, i64 %after acq_rel monotonic, align 8
  %won = extractvalue {{ i64, i1 }} %swapped, 1
  br i1 %won, label %work, label %claim
work:
  %task = add i64 %next, %shift
  call void %kernel(ptr %words, i64 %task, ptr %scratch)
  %mine.more = add i64 %mine.now, 1
  br label %claim
exhausted:
  %owner.after = add i64 %owner, 1
  %wraps = icmp eq i64 %owner.after, %workers
  %owner.next = select i1 %wraps, i64 0, i64 %owner.after
  %tried.next = add i64 %tried, 1
  %nobody = icmp eq i64 %tried.next, %workers
  br i1 %nobody, label %shared, label %victim
shared:
  %joins = icmp ne i64 %barrier, 0
  br i1 %joins, label %join, label %step.end
join:
  %group.offset = mul i64 %workers, {abi.LINE}
  %group = getelementptr i8, ptr %counters, i64 %group.offset
  %worked = icmp ne i64 %mine.now, 0
  br i1 %worked, label %report, label %wait
report:
  %reported = atomicrmw add ptr %group, i64 %mine.now acq_rel, align 8
  br label %wait
wait:
{_field("group.tasks", "%record", abi.STEP_GROUP_TASKS)}\
  %target = mul i64 %ended, %group.tasks
  call void @await(ptr %group, i64 %target, ptr %job)
  br label %step.end
step.end:
  %mine.next = phi i64 [ %mine.now, %shared ], [ 0, %wait ]
  %i.next = add i64 %i, 1
  call void @stamp(ptr %profile, i64 %i.next)
  br label %step
done:
  ret void
}}
"""


def _alone() -> str:
    """The steps of a job with one worker."""
    return f"""
define internal void @alone(ptr %job) noinline nounwind {{
entry:
{_field("steps", "%job", abi.JOB_STEPS, "ptr")}\
{_field("count", "%job", abi.JOB_STEP_COUNT)}\
{_field("scratch", "%job", abi.JOB_SCRATCH, "ptr")}\
{_field("profile", "%job", abi.JOB_PROFILE, "ptr")}\
  call void @stamp(ptr %profile, i64 0)
  br label %step
step:
  %i = phi i64 [ 0, %entry ], [ %i.next, %step.end ]
  %all = icmp eq i64 %i, %count
  br i1 %all, label %done, label %open
open:
  %record.offset = mul i64 %i, {abi.STEP_BYTES}
  %record = getelementptr i8, ptr %steps, i64 %record.offset
{_field("kernel", "%record", abi.STEP_KERNEL, "ptr")}\
{_field("words", "%record", abi.STEP_WORDS, "ptr")}\
{_field("tasks", "%record", abi.STEP_TASKS)}\
  br label %more
more:
  %task = phi i64 [ 0, %open ], [ %task.next, %work ]
  %left = icmp ult i64 %task, %tasks
  br i1 %left, label %work, label %step.end
work:
  call void %kernel(ptr %words, i64 %task, ptr %scratch)
  %task.next = add i64 %task, 1
  br label %more
step.end:
  %i.next = add i64 %i, 1
  call void @stamp(ptr %profile, i64 %i.next)
  br label %step
done:
  ret void
}}
"""


def _run() -> str:
    """The caller's entry point."""
    return f"""
define void @coresident_run(ptr %job) nounwind {{
entry:
{_field("workers", "%job", abi.JOB_WORKERS)}\
{_field("generation", "%job", abi.JOB_GENERATION)}\
  %next = add i64 %generation, 1
  %single = icmp eq i64 %workers, 1
  br i1 %single, label %serial, label %parallel
serial:
  call void @alone(ptr %job)
  store i64 %next, ptr %generation.at, align 8
  ret void
parallel:
{_field("team", "%job", abi.JOB_TEAM, "ptr")}\
  %current = getelementptr i8, ptr %team, i64 {abi.TEAM_JOB}
  %current.generation = getelementptr i8, ptr %team, i64 {abi.TEAM_GENERATION}
  store atomic i64 %generation, ptr %current.generation release, align 8
  store atomic ptr %job, ptr %current seq_cst, align 8
  call void @walk(ptr %job, i64 %generation, i64 0)
  store atomic ptr null, ptr %current seq_cst, align 8
  store i64 %next, ptr %generation.at, align 8
  ret void
}}
"""


def _worker() -> str:
    """The other threads' entry point: waits for jobs and joins them until it should sleep or leave."""
    return f"""
define i64 @coresident_worker(ptr %team, i64 %worker) nounwind {{
entry:
  %current = getelementptr i8, ptr %team, i64 {abi.TEAM_JOB}
  %current.generation = getelementptr i8, ptr %team, i64 {abi.TEAM_GENERATION}
  %closed.at = getelementptr i8, ptr %team, i64 {abi.TEAM_CLOSED}
{_field("limit", "%team", abi.TEAM_SPIN)}\
{_field("patience", "%team", abi.TEAM_PATIENCE)}\
{_field("yield", "%team", abi.TEAM_YIELD, "ptr")}\
{_field("windows", "%team", abi.TEAM_YIELD_WINDOWS)}\
  %slots = getelementptr i8, ptr %team, i64 {abi.TEAM_SLOTS}
  %slot.offset = mul i64 %worker, {abi.LINE}
  %slot = getelementptr i8, ptr %slots, i64 %slot.offset
{_field("threads", "%team", abi.TEAM_THREADS)}\
  %sleeping.base = mul i64 %threads, {abi.LINE}
  %sleeping.offset = add i64 %sleeping.base, %worker
  %sleeping = getelementptr i8, ptr %slots, i64 %sleeping.offset
  br label %idle
idle:
  %last.job = phi ptr [ null, %entry ], [ %job, %joined ], [ %last.job, %awake ]
  %last.generation = phi i64 [ 0, %entry ], [ %generation, %joined ], [ %last.generation, %awake ]
  %since = call i64 @coresident_ticks()
  br label %look
look:
  %closed = load atomic i64, ptr %closed.at acquire, align 8
  %leaves = icmp ne i64 %closed, 0
  br i1 %leaves, label %exit, label %look.job
look.job:
  %job = load atomic ptr, ptr %current acquire, align 8
  %none = icmp eq ptr %job, null
  br i1 %none, label %pass, label %look.generation
look.generation:
  %seen = load atomic i64, ptr %current.generation acquire, align 8
  %same.job = icmp eq ptr %job, %last.job
  %same.generation = icmp eq i64 %seen, %last.generation
  %finished = and i1 %same.job, %same.generation
  br i1 %finished, label %pass, label %enter
enter:
  store atomic ptr %job, ptr %slot seq_cst, align 8
  %generation = load atomic i64, ptr %current.generation seq_cst, align 8
  %still = load atomic ptr, ptr %current seq_cst, align 8
  %valid = icmp eq ptr %still, %job
  br i1 %valid, label %joined, label %missed
missed:
  store atomic ptr null, ptr %slot release, align 8
  br label %look
joined:
  call void @walk(ptr %job, i64 %generation, i64 %worker)
  store atomic ptr null, ptr %slot release, align 8
  br label %idle
pass:
  call void @pause()
  %clock = call i64 @coresident_ticks()
  %waited = sub i64 %clock, %since
  %patient = icmp ult i64 %waited, %patience
  br i1 %patient, label %look, label %tired
tired:
  %stays = icmp ult i64 %waited, %limit
  br i1 %stays, label %give, label %sleep
give:
  call void @give_away(ptr %yield, i64 %windows)
  br label %look
sleep:
  store atomic i8 1, ptr %sleeping seq_cst, align 1
  %last.look = load atomic ptr, ptr %current seq_cst, align 8
  %nothing = icmp eq ptr %last.look, null
  br i1 %nothing, label %asleep, label %sleep.generation
sleep.generation:
  %last.seen = load atomic i64, ptr %current.generation seq_cst, align 8
  %same.job.again = icmp eq ptr %last.look, %last.job
  %same.generation.again = icmp eq i64 %last.seen, %last.generation
  %nothing.new = and i1 %same.job.again, %same.generation.again
  br i1 %nothing.new, label %asleep, label %awake
awake:
  store atomic i8 0, ptr %sleeping seq_cst, align 1
  br label %idle
asleep:
  ret i64 {abi.WORKER_SLEEP}
exit:
  ret i64 {abi.WORKER_EXIT}
}}
"""


_WINDOWS = """
define win64cc void @coresident_run_windows(ptr %job) nounwind {
  call void @coresident_run(ptr %job)
  ret void
}

define win64cc i64 @coresident_worker_windows(ptr %team, i64 %worker) nounwind {
  %why = call i64 @coresident_worker(ptr %team, i64 %worker)
  ret i64 %why
}
"""


def module(target: Target) -> str:
    """The entry points as LLVM text."""
    declaration, pause = _PAUSE[target.arch]
    clock = _CLOCK[target.arch]
    parts = "".join([_give_away(target.arch), _await(), _walk(), _alone(), _run(), _worker()])
    if target.arch == "x86_64":
        parts += _WINDOWS
    return f"""
declare i64 @{clock}()
{declaration}

define internal void @pause() alwaysinline nounwind {{
  {pause}
  ret void
}}

define i64 @coresident_ticks() nounwind {{
  %ticks = call i64 @{clock}()
  ret i64 %ticks
}}

define internal void @stamp(ptr %profile, i64 %index) alwaysinline nounwind {{
  %off = icmp eq ptr %profile, null
  br i1 %off, label %done, label %write
write:
  %ticks = call i64 @{clock}()
  %place = getelementptr i64, ptr %profile, i64 %index
  store i64 %ticks, ptr %place, align 8
  br label %done
done:
  ret void
}}
{parts}"""


@functools.cache
def object_code(target: Target) -> bytes:
    """The entry points as an ELF object, one of the objects of every program.

    They are not optimised: they take some ten instructions a task, and a program of one small kernel would
    spend most of its compilation on them.
    """
    return llvm.compile_object(module(target), target, optimised=False)
