"""Another variant of the model in the engine's place, between batches, when the pool is told so."""
