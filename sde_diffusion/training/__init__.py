"""One update of a training, averages of the weights, the guard of the loss."""
