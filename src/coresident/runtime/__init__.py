"""Running compiled networks: the program, loader, thread team and memory. Needs no graph and no LLVM."""
