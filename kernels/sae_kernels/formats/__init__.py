"""Number formats in which Adam's state is stored: float32, bf16 and 8 bits; see naive.py for their definition."""
