"""The student: input preparation, the WaffleIron network, its file format and its run-time backends."""
