"""Lower bounds, and the small assignments that they are made of."""
