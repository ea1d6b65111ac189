"""One file for each family of routes: typed request in, typed reply or chunks out."""
