"""threshold_encode: see op.py for what it computes."""
