"""Graph -> Graph: one named pass a file, run in the one order of `pipeline.PASSES`."""
