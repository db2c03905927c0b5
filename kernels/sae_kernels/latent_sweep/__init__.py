"""latent_sweep: see op.py for what it computes."""
