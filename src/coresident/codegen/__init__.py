"""From kernels as loop nests to object code: the typed builder, the targets, LLVM."""
