"""The small models of the embedded profile, trained from scratch."""
