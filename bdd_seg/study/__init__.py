"""Studies: many runs of the tools, and what they say together."""
