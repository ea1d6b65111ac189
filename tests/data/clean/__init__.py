"""Tests of what is done to one document."""
