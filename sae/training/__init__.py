"""Training: the step, the schedules, checkpoints, logging, and the run that ties them to a harvest."""
