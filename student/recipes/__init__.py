"""Programs that read from top to bottom: the reference trainer and the check of a teacher against a data set."""
