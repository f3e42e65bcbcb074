"""From a trained dense network to one that this CPU runs faster, with what that cost shown."""
