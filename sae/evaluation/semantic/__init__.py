"""What latents mean and do: labelled concepts read from them, removed through them, moved between texts by them."""
