"""What `genlab new` writes: one file for each kind of part, checked and tested like all others."""
