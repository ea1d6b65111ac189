"""Generation: requests, sampling, caches, the loop, beam search, fill-in. Ids and bytes only; it knows no strings."""
