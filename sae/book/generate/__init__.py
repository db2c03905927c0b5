"""Small generative models over the project's stems, heads and autoencoders; all are sampled in one way."""
