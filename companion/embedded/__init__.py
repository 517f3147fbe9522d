"""The embedded profile's small models, trained from scratch; each module trains one of them."""
