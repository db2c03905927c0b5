"""Pictures of image autoencoders, and the self-contained page that holds them."""
