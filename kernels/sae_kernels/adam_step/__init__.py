"""A step of Adam on one parameter, for unit-norm rows too."""
