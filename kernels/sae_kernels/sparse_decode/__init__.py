"""The reconstruction f W_dec + b_dec from sparse codes f."""
