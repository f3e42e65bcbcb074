"""Which kernel, which layout, which buffer where: from an optimised graph to a program."""
