"""The command line: one file a verb. Importing it does not import torch."""
