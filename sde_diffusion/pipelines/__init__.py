"""What a trained network is used for, over many samples: drawing, bits/dim, run folders."""
