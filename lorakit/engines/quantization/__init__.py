"""Number formats of a frozen base, a file each."""
