"""Results of runs, for programs and for people."""
