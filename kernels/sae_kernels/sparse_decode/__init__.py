"""sparse_decode: see op.py for what it computes."""
