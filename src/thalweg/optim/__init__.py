"""Ways down: optimisers that PyTorch lacks, and one registry that also hands out PyTorch's own."""
