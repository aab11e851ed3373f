"""Training: students that learn to answer like their teacher, and models that recover from a cut."""
