"""Finding the recipe: candidates, successive halving, the front of the best, and its report."""
