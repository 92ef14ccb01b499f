"""Problems to try everything on: known states of digit classifiers, small classics, textbook functions."""
