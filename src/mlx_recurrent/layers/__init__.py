"""The layers: they hold weights, and call functions."""
