"""Many runs and what they say together: optimisers compared, batch sizes compared."""
