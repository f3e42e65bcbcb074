"""Measurements: engines that take turns, and a network layer by layer against what the machine can do."""
