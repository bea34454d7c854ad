"""Functions (x, kernel) -> x0_hat: networks at home, denoisers around denoisers, closed forms, priors."""
