"""What language and image autoencoders share: dictionary, codes, losses."""
