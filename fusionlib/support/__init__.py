"""Files and provenance: what any project needs, whatever its method."""
