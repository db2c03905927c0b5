"""pursue: see op.py for what it computes."""
