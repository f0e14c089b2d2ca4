"""Weights in and out: one two-way rule table per foreign format."""
