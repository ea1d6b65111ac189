"""Who and what a corpus talks about, and weights that bring its parts to chosen proportions."""
