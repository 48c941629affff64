"""From a frozen teacher to a verified entry of a model repository."""
