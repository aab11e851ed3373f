"""Fewer weights: what a model is made of, what of it matters, and cutting the rest away."""
