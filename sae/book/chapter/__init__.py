"""The textbook's chapter on autoencoders, claim by claim: each is an experiment that trains, measures and draws."""
