"""Running compiled networks: the program, the loader, the thread team, memory, sessions. Needs no graph and no LLVM."""
