"""One file for each family, called as its `model_type` (dashes as underscores): the registry finds it by its name."""
