"""The mathematics, a module a subject; each has `proofs()` and `bounds()`."""
