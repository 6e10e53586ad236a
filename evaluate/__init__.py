"""How good a model is, by a suite of tasks; which strength is best; whether a release may go out."""
