"""`sae selftest`: faults made on purpose on the user's own machine and disk, and how many of them went unnoticed."""
