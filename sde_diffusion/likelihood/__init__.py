"""Log likelihood through the flow, the bounds in discrete and in continuous time, codes of the flow."""
