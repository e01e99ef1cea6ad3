"""A trained model at work: ranks, exports, recommendations, on the devices of a mesh."""
