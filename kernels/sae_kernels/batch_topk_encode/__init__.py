"""batch_topk_encode: see op.py for what it computes."""
