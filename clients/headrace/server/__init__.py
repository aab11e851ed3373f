"""Redis, as headrace uses it: where it is, how it is reached, what it says of itself, and whether it fits."""
