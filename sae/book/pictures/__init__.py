"""Pictures of image autoencoders, and the self-contained page that shows them."""
