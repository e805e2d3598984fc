"""The student at work: export, quantisation, prediction, publication."""
