"""Text encoders from published weights: texts -> vectors, and vectors of a dataset's items."""
