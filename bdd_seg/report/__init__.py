"""The report page: did distillation help, where, and what does it cost."""
