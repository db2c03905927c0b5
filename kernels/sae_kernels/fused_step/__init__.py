"""fused_step: see op.py for what it computes."""
