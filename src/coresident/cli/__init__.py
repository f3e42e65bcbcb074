"""The command line: one file a verb, each a `Command` in the table of `main`."""
