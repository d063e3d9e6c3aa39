"""The protocol as a model, what spin finds in it, and that it speaks of the code that is there."""
