"""What goes in: pictures, faces and masks."""
