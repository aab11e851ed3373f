"""The chaos harness: real processes, faults from a seed, a history each, and a checker that reads them all."""
