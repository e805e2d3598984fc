"""Everything around a run that is not distillation: mends of the libraries, and hooks that protect a run."""
