"""From a trained dense network to one that this CPU runs several times faster."""
