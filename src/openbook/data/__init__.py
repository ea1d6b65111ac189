"""Documents → shards of token ids → packed rows → batches."""
