"""Generation: everything between a validated request and the tokens of its answer."""
