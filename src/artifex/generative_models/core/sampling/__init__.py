"""Models that take steps: loops, and samplers as tables of coefficients."""
