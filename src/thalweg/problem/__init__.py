"""What is minimised: model, loss and data as a function of one vector, and how to leave no trace."""
