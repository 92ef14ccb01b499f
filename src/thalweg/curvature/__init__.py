"""The second order of an objective. Lanczos knows neither model nor data; verdicts are made elsewhere."""
