"""Commands that a user runs beside fit, validate, test and predict."""
