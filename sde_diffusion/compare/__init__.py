"""Samplers at budgets on the same noise: the runs, how they are judged, what they are compared on."""
