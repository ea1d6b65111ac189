"""What compares documents with each other, or with evaluation sets: exact, paragraph, near and partial duplicates."""
