"""What a CPU has, as the code generator needs to know it: a value, never a global."""

from __future__ import annotations

from dataclasses import dataclass

from coresident.codegen.types import Type
from coresident.errors import TargetError


@dataclass(frozen=True)
class Target:
    """A CPU to compile for.

    Args:
        triple: LLVM triple; objects are ELF whatever the operating system, for our own loader.
        cpu: LLVM's name of the CPU, for its scheduling model.
        features: LLVM feature names that the CPU has ("avx2", "fma", "avx512f", "neon", "dotprod").
        vector_bits: width of the vectors that kernels use.
        registers: number of vector registers.
        l1_bytes, l2_bytes: data caches of one core, which tiles are made to fit.
    """

    triple: str
    cpu: str
    features: frozenset[str]
    vector_bits: int
    registers: int
    l1_bytes: int = 32 << 10
    l2_bytes: int = 512 << 10

    def __post_init__(self) -> None:
        needed = {"x86_64": {"avx2", "fma"}, "aarch64": {"neon"}}.get(self.arch)
        if needed is None:
            raise TargetError(f"no code can be made for {self.arch}; x86_64 and aarch64 can be compiled for")
        if missing := needed - self.features:
            raise TargetError(
                f"this CPU ({self.cpu}) lacks {', '.join(sorted(missing))}; "
                "coresident needs AVX2 and FMA on x86-64 or NEON on AArch64"
            )

    @property
    def arch(self) -> str:
        return self.triple.split("-", 1)[0]

    def has(self, *features: str) -> bool:
        """Whether the CPU has all these features."""
        return self.features.issuperset(features)

    def lanes(self, scalar: Type) -> int:
        """How many lanes of this type one vector holds."""
        return self.vector_bits // max(scalar.bits, 8)

    @property
    def register_bits(self) -> int:
        """Width of the CPU's widest vector register."""
        return 512 if self.has("avx512f") else 128 if self.arch == "aarch64" else 256

    @property
    def load_bits(self) -> int:
        """Bits that a core loads at once: Zen 4 loads vectors of 512 bits in two halves."""
        return min(self.vector_bits, 256) if self.cpu == "znver4" else self.vector_bits

    @property
    def shuffles_apart(self) -> bool:
        """Whether a core shuffles vectors beside its multiply-adds: of 512 bits, Intel's cores do so in one
        of the two pipes that multiply them."""
        return self.vector_bits < 512 or self.cpu.startswith("znver")

    @property
    def feature_string(self) -> str:
        """As LLVM wants it."""
        return ",".join(f"+{name}" for name in sorted(self.features))

    @property
    def key(self) -> str:
        """All that changes the code, as one line: part of every cache key."""
        sizes = f"{self.vector_bits}|{self.l1_bytes}|{self.l2_bytes}"
        return f"{self.triple}|{self.cpu}|{self.feature_string}|{sizes}"


_AVX2 = frozenset(
    [
        "avx",
        "avx2",
        "fma",
        "f16c",
        "bmi",
        "bmi2",
        "lzcnt",
        "popcnt",
        "movbe",
        "sse",
        "sse2",
        "sse3",
        "ssse3",
        "sse4.1",
        "sse4.2",
        "cx16",
        "mmx",
        "fxsr",
    ]
)
_AVX512 = _AVX2 | frozenset(["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"])
_NEON = frozenset(("neon", "fp-armv8"))

NAMED = {
    "x86-64-avx2": Target("x86_64-unknown-linux-gnu", "haswell", _AVX2, 256, 16),
    "x86-64-avx512": Target(
        "x86_64-unknown-linux-gnu", "skylake-avx512", _AVX512, 512, 32, 32 << 10, 1 << 20
    ),
    "x86-64-vnni": Target(
        "x86_64-unknown-linux-gnu", "cascadelake", _AVX512 | {"avx512vnni"}, 512, 32, 32 << 10, 1 << 20
    ),
    "x86-64-znver4": Target(
        "x86_64-unknown-linux-gnu",
        "znver4",
        _AVX512 | {"avx512vnni", "avx512bf16"},
        512,
        32,
        32 << 10,
        1 << 20,
    ),
    "aarch64-neon": Target("aarch64-unknown-linux-gnu", "cortex-a72", _NEON, 128, 32, 32 << 10, 512 << 10),
    "aarch64-dotprod": Target(
        "aarch64-unknown-linux-gnu", "neoverse-n1", _NEON | {"dotprod"}, 128, 32, 64 << 10, 1 << 20
    ),
}
