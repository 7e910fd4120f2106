"""What every search runs on: the solver interface, one run of it, stopping criteria, results, random numbers."""
