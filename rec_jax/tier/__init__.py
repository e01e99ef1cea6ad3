"""Tables larger than a device: their rows lie in a store, and a device has a cache of some."""
