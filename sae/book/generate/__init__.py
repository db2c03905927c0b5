"""Small generative models over the project's stems, heads and autoencoders; all sample through one protocol."""
