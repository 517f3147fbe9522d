"""The paper's claims: what it reports, and what a measurement says of it."""
