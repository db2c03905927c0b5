"""What the latents mean: collected examples, names, prompts, steering."""
