"""The perturbation kernel, what a network may predict, processes, grids, noise: numbers alone."""
